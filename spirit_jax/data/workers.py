"""Worker processes that compute the rows of the virtual shards of a stream.

A worker has some of the virtual shards, and computes their rows of the next steps in advance. So
the rows and the state of the stream do not depend on the number of workers.
"""

import contextlib
import multiprocessing
import queue
import signal
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from spirit_jax.errors import InputError
from spirit_jax.files import describe

STEPS_AHEAD = 4  # of a worker; a step of 64 rows of 2,048 tokens is 2.5 MB


class StepRows(NamedTuple):
    """The rows of some virtual shards in one step.

    Attributes:
      rows: arrays of each row, by its index among the rows of a step.
      states: the states of the shards that have advanced.
    """

    rows: dict[int, dict[str, np.ndarray]]
    states: dict[str, str]


class Worker:
    """A process that computes rows in advance; it is started when they are first needed."""

    def __init__(self, make: Callable[[], Any]):
        """`make`, called in the process, returns a `pipeline.RowReader`; it must be picklable."""
        self._make = make
        self._state: Any = None
        self._steps: queue.Queue | None = None
        self._close: Callable[[], Any] = lambda: None

    def states(self) -> dict[str, str]:
        """The positions in all shards before the next step; `next` has not been called yet."""
        self._start()
        return self._get()

    def next(self) -> StepRows:
        """The rows of the next step.

        Raises:
          InputError: as in the process, or the process has ended.
        """
        return self._get()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """See `pipeline.Stream.set_state`; the process is started again."""
        self._close()
        self._state = state

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(self._make, self._state, sender), daemon=True)
        process.start()
        sender.close()  # so that reading ends with the process
        self._process, self._steps, stopped = process, queue.Queue(STEPS_AHEAD), threading.Event()
        arguments = (receiver, self._steps, stopped)
        threading.Thread(target=_receive, args=arguments, daemon=True).start()
        self._close = weakref.finalize(self, _stop, process, stopped)

    def _get(self) -> Any:
        result = self._steps.get()
        if isinstance(result, Exception):
            raise result
        if result is None:
            self._process.join()
            raise InputError(
                f"A process that reads the data has ended (exit code {self._process.exitcode}); is "
                "there enough memory? data.workers=0 reads without such processes."
            )
        return result


def _run(make: Callable[[], Any], state: Mapping[str, Any] | None, sender: Any) -> None:
    """The process: computes steps until the other end of the pipe is closed."""
    # Ctrl-C is for the training, which saves a checkpoint first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        reader = make()
        if state is not None:
            reader.set_state(state)
        sender.send(reader.states())
        while True:
            sender.send(reader.next())
    except (BrokenPipeError, ConnectionResetError):
        pass  # the training has ended
    except Exception as error:
        sender.send(error if isinstance(error, InputError) else InputError(describe(error)))


def _receive(receiver: Any, steps: queue.Queue, stopped: threading.Event) -> None:
    """Fills the queue of results; None marks the end of the process."""
    result: Any = True
    while result is not None and not stopped.is_set():
        try:
            result = receiver.recv()
        except (EOFError, OSError):
            result = None
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                steps.put(result, timeout=1.0)
                break
    receiver.close()


def _stop(process: Any, stopped: threading.Event) -> None:
    stopped.set()
    process.terminate()
    process.join()
