"""A thread that runs the engine for all clients of a server.

Handlers run in an event loop, and the engine in this thread alone. So no handler waits for the
engine's lock, and a request joins the batch between two steps.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator

from spirit_jax.generation.base_engine import STREAMED_STEPS, BaseEngine
from spirit_jax.generation.request import Generation, Request
from spirit_jax.serving.errors import ApiError

log = logging.getLogger(__name__)

Chunk = tuple[list[int], list[float]]  # new ids, and their log probabilities


class Ticket:
    """A request of a client; created in the event loop by `Worker.submit`.

    Attributes:
      generation: the request in the engine; None until it was admitted.
      is_streamed: whether its ids are wanted while they are generated.
      is_cancelled: whether nobody waits for it any more.
      has_ended: whether the end was passed on.
    """

    def __init__(self, request: Request, is_streamed: bool):
        self.request, self.is_streamed = request, is_streamed
        self.generation: Generation | None = None
        self.is_cancelled = self.has_ended = False
        self._sent = 0
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[Chunk | Exception | None] = asyncio.Queue()

    async def chunks(self) -> AsyncIterator[Chunk]:
        """Yields new ids until the request has ended.

        Leaving the loop early cancels the request, if the iterator is closed.

        Raises:
          InputError: the request cannot be used, or its end was prevented.
        """
        try:
            while (news := await self._news.get()) is not None:
                if isinstance(news, Exception):
                    raise news
                yield news
        finally:
            self.is_cancelled = True

    async def finish(self) -> Generation:
        """Waits for the end of the request; see `chunks`."""
        async for _ in self.chunks():
            pass
        return self.generation

    def report(self) -> int:
        """Passes on what is new, in the worker's thread; returns the number of new ids."""
        generation = self.generation
        done = generation.done  # before the ids are read, so that none is missing
        new = slice(self._sent, None)
        chunk = generation.ids[new], generation.log_probs[new]
        self._sent += len(chunk[0])
        if chunk[0]:
            self.post(chunk)
        if done:
            self.post(generation.error)
            self.has_ended = True
        return len(chunk[0])

    def post(self, news: Chunk | Exception | None) -> None:
        """Passes news to the event loop, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._news.put_nowait, news)
        except RuntimeError:  # the event loop is closed
            self.is_cancelled = True


class Worker:
    """Runs the engine's steps while there are requests.

    Attributes:
      live: number of requests that wait or run.
      tokens: number of tokens that were generated.
      aborted: number of requests that were cancelled before their end.
    """

    def __init__(self, engine: BaseEngine):
        self._engine = engine
        self._inbox: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._tickets: list[Ticket] = []
        self._count_lock = threading.Lock()
        self.live = self.tokens = self.aborted = 0
        self._has_dropped = False  # a step must free the row of a cancelled request
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the current step, and all requests with an error."""
        self._stopping.set()
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, request: Request, is_streamed: bool = False) -> Ticket:
        """Queues a request. Called in an event loop, which gets the results."""
        ticket = Ticket(request, is_streamed)
        with self._count_lock:
            self.live += 1
        self._inbox.put(ticket)
        return ticket

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._admit()
            self._has_dropped = False
            is_streamed = any(ticket.is_streamed for ticket in self._tickets)
            try:
                self._engine.step(STREAMED_STEPS if is_streamed else None)
            except Exception as error:
                log.exception("a step of the engine failed")
                self._end_all(error)
            for ticket in list(self._tickets):
                self.tokens += ticket.report()
                if ticket.has_ended:
                    self._forget(ticket)
        while not self._inbox.empty():
            if (ticket := self._inbox.get()) is not None:
                self._tickets.append(ticket)
        self._end_all(ApiError(503, "The server is being stopped.", "stopped"))

    def _admit(self) -> None:
        """Takes requests from the inbox; waits for one if there is nothing to do."""
        while not (self._tickets or self._has_dropped) or not self._inbox.empty():
            ticket = self._inbox.get()
            if ticket is None:
                return
            self._tickets.append(ticket)
            if ticket.is_cancelled:
                self._cancel(ticket)
                continue
            try:
                ticket.generation = self._engine.submit(ticket.request)
            except Exception as error:
                ticket.post(error)
                self._forget(ticket)
        for ticket in list(self._tickets):
            if ticket.is_cancelled and not ticket.generation.done:
                self._cancel(ticket)

    def _cancel(self, ticket: Ticket) -> None:
        self.aborted += 1
        if ticket.generation is not None:
            ticket.generation.cancel()
            self._has_dropped = True
        self._forget(ticket)

    def _end_all(self, error: Exception) -> None:
        for ticket in list(self._tickets):
            if ticket.generation is not None:
                ticket.generation.cancel()
            ticket.post(error)
            self._forget(ticket)

    def _forget(self, ticket: Ticket) -> None:
        self._tickets.remove(ticket)
        with self._count_lock:
            self.live -= 1
