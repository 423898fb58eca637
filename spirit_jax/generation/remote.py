"""An engine whose language model runs elsewhere: vLLM generates, by token ids.

vLLM batches the requests, so each runs at
once, in a thread that reads its answer.
"""

import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from spirit_jax.errors import InputWarning
from spirit_jax.generation.base_engine import BaseEngine
from spirit_jax.generation.masks import Masks
from spirit_jax.generation.request import Generation
from spirit_jax.generation.vllm import Away, Client, Waiting

WAIT_SECONDS = 600.0  # for a server that is away
STEP_SECONDS = 0.05  # of `step`, at most
SCORED = 16  # prompts at once
MAX_CHANGING = 8  # ids after which the mask changes; with more, tokens are requested one by one
ROWS = 256  # vLLM's usual number of requests that decode together


class RemoteEngine(BaseEngine):
    """Requests to vLLM."""

    def __init__(
        self,
        url: str,
        masks: Masks,
        eos: Sequence[int],
        slots: int,
        wait_seconds: float = WAIT_SECONDS,
    ):
        """Connects to a server; waits for it if it does not answer.

        Args:
          url: see `vllm.Client`.
          masks: from `make_masks`, as numpy arrays.
          eos: ids that end generation.
          slots: of the model.
          wait_seconds: the longest time to wait for a server that is away.

        Raises:
          InputError: see `vllm.Client`.
        """
        self._client = Client(url, wait_seconds)
        self._allowed = [np.flatnonzero(mask_v).tolist() for mask_v in masks.allowed_mv]
        self._next_mv = masks.next_mv
        self._eos = list(eos)
        count, vocab_size = masks.allowed_mv.shape
        self._padding = vocab_size - 1 - max(map(max, self._allowed))
        super().__init__(min(slots, self._client.max_tokens or slots), vocab_size, count)
        self._news = threading.Condition(self._lock)
        self._has_news = False
        self._pool = ThreadPoolExecutor(ROWS, "vllm")

    @property
    def rows(self) -> int:
        """The most requests at once; others wait."""
        return ROWS

    @property
    def notice(self) -> str | None:
        """A sentence for users while the server is waited for, otherwise None."""
        return self._client.notice

    def warm_up(self) -> None:
        """Does nothing: vLLM has compiled what it needs."""

    def _start(self, generation: Generation) -> None:
        self._pool.submit(self._run, generation)

    def step(self, most: int | None = None) -> None:
        """Waits for new tokens of any request, at most `STEP_SECONDS`."""
        with self._news:
            self._news.wait_for(lambda: self._has_news, STEP_SECONDS)
            self._has_news = False

    def score(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `vllm.Client.score`, for many prompts.

        vLLM's probabilities are over all rows of the embedding, those of the engine here only over
        the tokens. A warning says so.
        """
        if self._padding:
            message = (
                f"{self._client.url}: vLLM counts the {self._padding} padding rows of the "
                "embedding as tokens, so scores are a little lower than without --lm."
            )
            warnings.warn(message, InputWarning, stacklevel=2)
        with ThreadPoolExecutor(SCORED) as pool:
            return list(pool.map(lambda prompt: self._client.score(list(prompt)), prompts))

    def _run(self, generation: Generation) -> None:
        """Reads the answer of a request, in a thread; sends it again if the server was away."""
        waiting = Waiting(self._client)
        try:
            while not generation.done and not generation.cancelled:
                try:
                    body = self._body(generation)
                    for part in self._client.generate(body, lambda: generation.cancelled):
                        waiting.end()
                        self._add(generation, part)
                        if generation.done or part.has_ended:
                            break
                    else:
                        break  # cancelled
                except Away as error:
                    waiting.wait(error)
        except Exception as error:
            generation.error = error
        self._end(generation)

    def _body(self, generation: Generation) -> dict[str, Any]:
        """The request for the tokens that are still to be generated."""
        request, count = generation.request, len(generation.ids)
        config = request.config
        # Ids after which another mask applies end an answer, and the rest is another request.
        allowed = self._allowed[generation.mask]
        changing = [i for i in allowed if self._next_mv[generation.mask, i] != generation.mask]
        sampling: dict[str, Any] = {"temperature": 0.0}
        if config.do_sample:
            sampling = {
                "temperature": config.temperature,
                "top_p": config.top_p,
                "top_k": config.top_k,
                "min_p": config.min_p,
                "seed": _mix(config.seed, request.sample, count),
            }
        return sampling | {
            "prompt": [*map(int, request.prompt), *generation.ids],
            "max_tokens": 1 if len(changing) > MAX_CHANGING else generation.limit - count,
            "repetition_penalty": config.repetition_penalty,
            "allowed_token_ids": allowed,
            "stop_token_ids": self._eos + changing[:MAX_CHANGING],
            "logprobs": 0,
            "return_tokens_as_token_ids": True,
        }

    def _add(self, generation: Generation, part: Any) -> None:
        """Adds new tokens, and ends the request if it is finished."""
        request = generation.request
        with self._news:
            generation.ids += part.ids
            generation.log_probs += part.log_probs
            kept = request.stop(generation.ids) if request.stop else None
            if kept is not None:
                del generation.ids[kept:], generation.log_probs[kept:]
            if request.on_tokens and part.ids:
                request.on_tokens(part.ids)
            mask = generation.mask
            if part.ids:
                generation.mask = int(self._next_mv[mask, part.ids[-1]])
            has_ended = part.has_ended and generation.mask == mask
            has_ended |= len(generation.ids) >= generation.limit
            has_ended |= bool(part.ids) and part.ids[-1] in self._eos
            generation.done = has_ended or kept is not None
            self._has_news = True
            self._news.notify_all()

    def _end(self, generation: Generation) -> None:
        with self._news:
            generation.done = self._has_news = True
            self._news.notify_all()


def _mix(seed: int, sample: int, count: int) -> int:
    """A seed for each sample of a request, and for the rest of an interrupted answer.

    It has 32 bits: torch's generator on a CPU ignores the others, so seeds that differ only there
    have the same samples.

    Args:
      seed: of the request.
      sample: number of the sample.
      count: number of tokens that the answer has already.
    """
    return int(np.random.SeedSequence((seed, sample, count)).generate_state(1)[0])
