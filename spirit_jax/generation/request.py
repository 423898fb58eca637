"""A request to continue a prompt, and its result."""

import dataclasses
from collections.abc import Callable, Sequence

from spirit_jax.generation.config import GenerationConfig


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to continue.

    Attributes:
      prompt: token ids, at least one.
      mask: index of the mask (`Runner.masks`) of the first token that is generated.
      config: number of tokens and sampling settings.
      sample: number of the sample, to draw different samples of one prompt with one seed.
      stop: called with all ids generated so far; returns None to continue, or the number of ids to
        keep, which ends the request.
      on_tokens: called with the new ids whenever there are some. If it or `stop` raises an error,
        the request ends.
    """

    prompt: Sequence[int]
    mask: int
    config: GenerationConfig
    sample: int = 0
    stop: Callable[[list[int]], int | None] | None = None
    on_tokens: Callable[[list[int]], None] | None = None


class Generation:
    """A request in the engine, and its result.

    Attributes:
      request: the request.
      ids: generated token ids so far, including EOS.
      log_probs: natural log probability of each id among the allowed ids, at temperature 1 and
        without repetition penalty, top-k, top-p or min-p.
      done: whether it has ended.
      error: the error that `Request.on_tokens` or `Request.stop` raised, or None.
      reused: number of prompt tokens that were not computed again.
      mask: index of the mask of the next token.
    """

    def __init__(self, request: Request, limit: int):
        self.request = request
        self.limit = limit
        self.ids: list[int] = []
        self.log_probs: list[float] = []
        self.done = False
        self.cancelled = False
        self.error: Exception | None = None
        self.reused = 0
        self.mask = request.mask

    def cancel(self) -> None:
        """Ends the request at the beginning of the next step, which frees its row."""
        self.cancelled = True
