"""What all engines do with requests: check them, wait for them and stream them."""

import abc
import threading
from collections.abc import Iterator, Sequence

from spirit_jax.errors import InputError
from spirit_jax.generation.request import Generation, Request

STREAMED_STEPS = 8  # decoding steps for each result of `stream`


class BaseEngine(abc.ABC):
    """An engine, which generates in this process or elsewhere.

    Attributes:
      slots: the most tokens of a prompt and its continuation together.
      notice: a sentence for users while nothing can be generated, otherwise None.
    """

    slots: int
    notice: str | None = None

    def __init__(self, slots: int, vocab_size: int, masks: int):
        """For a model.

        Args:
          slots: see the class.
          vocab_size: number of ids.
          masks: number of masks that a request may name.
        """
        self.slots, self._vocab_size, self._masks = slots, vocab_size, masks
        self._lock = threading.RLock()

    @property
    @abc.abstractmethod
    def rows(self) -> int:
        """The most requests that are generated together; others wait."""

    @abc.abstractmethod
    def warm_up(self) -> None:
        """Compiles all steps that requests may need; call it before the first request."""

    @abc.abstractmethod
    def step(self, most: int | None = None) -> None:
        """Generates some tokens for the requests that run.

        Args:
          most: the most tokens of a request; None for as many as are efficient.
        """

    @abc.abstractmethod
    def _start(self, generation: Generation) -> None:
        """Takes a request that was checked."""

    def submit(self, request: Request) -> Generation:
        """Queues a request.

        Raises:
          InputError: its prompt is empty, has an id outside the vocabulary, or fills all slots; or
            its mask does not exist.
        """
        self._check(request)
        room = self.slots - len(request.prompt)
        generation = Generation(request, min(request.config.max_new_tokens, room))
        self._start(generation)
        return generation

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Submits requests, and runs steps until they have ended.

        Returns:
          The results, in the order of the requests.

        Raises:
          InputError: a request cannot be used; then none of them is run.
        """
        for number, request in enumerate(requests):
            self._check(request, f"Prompt {number}")
        # Those with the most tokens to generate first: a long request that started last would
        # decode alone at the end.
        order = sorted(range(len(requests)), key=lambda i: -requests[i].config.max_new_tokens)
        submitted = {i: self.submit(requests[i]) for i in order}
        generations = [submitted[i] for i in range(len(requests))]
        try:
            self.run(generations)
        except BaseException:  # such as Ctrl-C in a notebook, whose engine is used again
            for generation in generations:
                generation.cancel()
            raise
        for generation in generations:
            if generation.error is not None:
                raise generation.error
        return generations

    def run(self, generations: Sequence[Generation]) -> None:
        """Runs steps until these requests have ended."""
        while not all(generation.done for generation in generations):
            self.step()

    def stream(self, generation: Generation) -> Iterator[list[int]]:
        """Calls `step` until a request has ended, and yields its new ids after each call."""
        sent = 0
        while True:
            with self._lock:  # within a step, ids may be there that `Request.stop` removes
                new, done = generation.ids[sent:], generation.done
            sent += len(new)
            if new:
                yield new
            elif done:
                return
            else:
                self.step(STREAMED_STEPS)

    def _check(self, request: Request, name: str = "The prompt") -> None:
        """Raises `InputError` if a request cannot be used; `name` is that of its prompt."""
        prompt, size = request.prompt, self._vocab_size
        if len(prompt) == 0:
            raise InputError(f"{name} has no tokens; it needs at least the BOS token.")
        outside = [token for token in prompt if not 0 <= token < size]
        if outside:
            raise InputError(f"{name} has the token {outside[0]}, but the vocabulary has {size}.")
        if len(prompt) >= self.slots:
            raise InputError(
                f"{name} has {len(prompt)} tokens, but there are {self.slots} positions: there is "
                "no room for another token."
            )
        if not 0 <= request.mask < self._masks:
            raise InputError(f"There is no mask {request.mask}; there are {self._masks}.")
