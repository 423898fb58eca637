"""Generation for many requests at once, with continuous batching.

Requests join and leave at any time. Each has a row of the key-value cache; all rows decode
together. All prompt tokens but the last are prefilled, in chunks, so that a long prompt does not
stall other rows. The last one is the first input of decoding, so prefill computes no logits. A row
keeps its tokens after its request has ended. A later request whose prompt has the same beginning
gets this row, or a copy of it if the row is in use.

A slot of the cache has the key and value of one token. A window is the number of slots, from the
first, that a call attends to. On a CPU, calls attend to the filled slots alone, and the window is
always all slots.

    engine = Engine(runner, rows=8, slots=2048)
    generation = engine.submit(Request(prompt_ids, mask=0, config=GenerationConfig()))
    engine.run([generation])
    generation.ids
"""

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spirit_jax import bucketing, sharding
from spirit_jax.errors import InputError
from spirit_jax.generation.base_engine import BaseEngine
from spirit_jax.generation.config import GenerationConfig
from spirit_jax.generation.masks import Masks
from spirit_jax.generation.request import Generation, Request
from spirit_jax.generation.runner import MAX_STEPS, Rows, Runner
from spirit_jax.generation.sampling import Sampling
from spirit_jax.models.llama import Llama

ROWS = 16  # requests that decode together, by default
CHUNKS = (256, 64, 16)  # tokens of a prefill call
GROUP = 4  # rows whose chunks of the smallest size are prefilled together
SMALLEST_WINDOW = 256  # slots that a call attends to, where it does not find the filled ones
# While prompts are prefilled, calls of this many tokens and of this many decoding steps alternate.
# With fewer tokens, short prompts would join one by one, and most rows of a call would be idle.
PREFILL_TOKENS, STEPS_BETWEEN = 512, 8
# A call of decoding ends when more than one of so many rows has ended: their requests have answers,
# and others get the rows. On a CPU each call copies the cache, so one for each row would be slower.
ENDED_PART = 4
LEAST_PREFIX = 16  # tokens; a shorter common beginning of two prompts is not reused


@dataclasses.dataclass
class _Row:
    """A row of the cache: the tokens whose keys and values it has, and its request or None."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    generation: Generation | None = None

    @property
    def to_prefill(self) -> int:
        """Number of prompt tokens that are still to be prefilled."""
        if self.generation is None:
            return 0
        return max(len(self.generation.request.prompt) - 1 - len(self.tokens), 0)


class Engine(BaseEngine):
    """The scheduler: which request has which row, and what runs next.

    All methods may be called from several threads. A thread that waits for its own request runs
    steps, which serve all requests.
    """

    def __init__(self, runner: Runner, rows: int, slots: int):
        """Allocates the cache.

        Args:
          runner: the compiled steps, with the model.
          rows: number of requests that decode together; rounded up to a power of two times
            `sharding.batch_multiple`.
          slots: the most tokens of a prompt and its continuation together.
        """
        super().__init__(slots, runner.model.config.vocab_size, len(runner.masks.allowed_mv))
        self._runner = runner
        self._multiple = sharding.batch_multiple(runner.mesh)
        self._rows = [_Row() for _ in range(bucketing.power_of_two(rows, self._multiple))]
        self._state = runner.init(len(self._rows), self._capacity)
        self._queue: deque[Generation] = deque()

    @property
    def rows(self) -> int:
        """The most requests that decode together."""
        return len(self._rows)

    @property
    def _capacity(self) -> int:
        """Slots of a row: a chunk of the smallest size fits after any token."""
        return -(-(self.slots + CHUNKS[-1]) // CHUNKS[-1]) * CHUNKS[-1]

    def _start(self, generation: Generation) -> None:
        with self._lock:
            self._queue.append(generation)

    def warm_up(self) -> None:
        """Compiles all steps that requests may need; call it before the first request."""
        with self._lock:
            for window in self._windows(decoding=False):
                for size in CHUNKS:
                    groups = (1, GROUP) if size == CHUNKS[-1] and self.rows >= GROUP else (1,)
                    for count in groups if size <= window else ():
                        tokens_rt, starts = np.zeros((count, size), np.int32), [0] * count
                        self._state = self._runner.prefill(
                            self._state, tokens_rt, range(count), starts, window
                        )
            for window in self._windows(decoding=True):
                count = self._multiple
                while count <= self.rows:
                    self._state, _ = self._runner.decode(
                        self._state, self._describe(count), window, 0, count
                    )
                    count *= 2
            self._state = self._runner.copy(self._state, 0, 0)
            seen_v = np.zeros(self._runner.model.config.vocab_size, bool)
            self._state = self._runner.mark_seen(self._state, 0, seen_v)

    def step(self, most: int | None = None) -> None:
        """Admits requests, then prefills a few chunks and runs up to `most` steps of decoding.

        If no row is ready to decode, chunks of prefill are run until one is.

        Args:
          most: `MAX_STEPS` if not given.
        """
        with self._lock:
            try:
                self._drop_cancelled()
                self._admit()
                prefilled = 0
                while prefilled < PREFILL_TOKENS or not self._decoding():
                    size = self._prefill()
                    if not size:
                        break
                    prefilled += size
                    self._admit()  # requests that waited for these tokens
                if self._decoding():
                    self._decode(MAX_STEPS if most is None else most)
            except BaseException as error:
                self._reset(error)
                raise

    def _reset(self, error: BaseException) -> None:
        """Ends all running requests, with an empty cache: the old one may have been donated."""
        for row in self._rows:
            row.tokens = []
            if row.generation is not None:
                stopped = InputError("Generation was interrupted.")
                row.generation.error = error if isinstance(error, Exception) else stopped
                self._end(row)
        self._state = self._runner.init(len(self._rows), self._capacity)

    def _decoding(self) -> list[int]:
        """Indices of the rows that are ready to decode."""
        return [i for i, row in enumerate(self._rows) if row.generation and not row.to_prefill]

    def _drop_cancelled(self) -> None:
        for row in self._rows:
            if row.generation and row.generation.cancelled:
                self._end(row)
        for generation in [g for g in self._queue if g.cancelled]:
            self._queue.remove(generation)
            generation.done = True

    def _end(self, row: _Row) -> None:
        """Ends a row's request; the row keeps its tokens."""
        row.generation.done = True
        row.generation = None

    def _admit(self) -> None:
        """Gives free rows to waiting requests, in order.

        A request waits while another row is being prefilled with tokens that it can reuse.
        """
        while self._queue:
            free = [i for i, row in enumerate(self._rows) if row.generation is None]
            request = self._queue[0].request
            source, shared = self._find_prefix(request.prompt)
            if not free or self._is_being_prefilled(request.prompt, shared):
                return
            if shared < LEAST_PREFIX:
                source, shared = free[0], 0
            target = source if source in free else free[0]
            if target != source:
                self._state = self._runner.copy(self._state, source, target)
            row = self._rows[target]
            row.tokens, row.generation = list(request.prompt[:shared]), self._queue.popleft()
            row.generation.reused = shared
            if request.config.repetition_penalty != 1:
                seen_v = np.zeros(self._runner.model.config.vocab_size, bool)
                seen_v[list(request.prompt)] = True
                self._state = self._runner.mark_seen(self._state, target, seen_v)

    def _find_prefix(self, prompt: Sequence[int]) -> tuple[int, int]:
        """(index of a row, number of tokens): the row that has the longest beginning of a prompt.

        The prompt's last token is not counted, since decoding needs it as input.
        """

        def shared(i: int) -> tuple[int, bool, int]:
            row = self._rows[i]
            return _common(row.tokens, prompt[:-1]), row.generation is None, -i

        best = max(range(len(self._rows)), key=shared)
        return best, shared(best)[0]

    def _is_being_prefilled(self, prompt: Sequence[int], count: int) -> bool:
        """Whether a row will soon have more of a prompt's beginning than `count` tokens."""
        return any(
            _common(row.generation.request.prompt[:-1], prompt[:-1]) >= count + LEAST_PREFIX
            for row in self._rows
            if row.to_prefill
        )

    def _prefill(self) -> int:
        """Prefills a chunk of the row with the fewest tokens left, or of several rows.

        Returns:
          The number of tokens, with padding; 0 if no row has tokens to prefill.
        """
        waiting = [i for i, row in enumerate(self._rows) if row.to_prefill]
        if not waiting:
            return 0
        waiting.sort(key=lambda i: self._rows[i].to_prefill)
        sizes = [self._chunk_of(self._rows[i]) for i in waiting]
        count = GROUP if sizes[:GROUP] == [CHUNKS[-1]] * GROUP else 1
        size, indices = sizes[0], waiting[:count]
        starts = [len(self._rows[i].tokens) for i in indices]
        tokens_rt = np.zeros((count, size), np.int32)
        for tokens_t, i, start in zip(tokens_rt, indices, starts, strict=True):
            row = self._rows[i]
            tokens = row.generation.request.prompt[start : start + min(size, row.to_prefill)]
            tokens_t[: len(tokens)] = tokens
            row.tokens.extend(tokens)
        window = self._window(max(starts) + size, decoding=False)
        self._state = self._runner.prefill(self._state, tokens_rt, indices, starts, window)
        return count * size

    def _chunk_of(self, row: _Row) -> int:
        """Size of the next chunk of a row."""
        return _chunk(row.to_prefill, self._capacity - len(row.tokens))

    def _decode(self, most: int) -> None:
        """Runs one decoding call, of up to `most` steps, for all rows that are ready."""
        indices = self._decoding()
        prefilling = any(row.to_prefill for row in self._rows)
        steps = min(most, STEPS_BETWEEN) if prefilling else most
        count = bucketing.power_of_two(indices[-1] + 1, self._multiple)
        longest = max(len(self._rows[i].tokens) for i in indices)
        steps = min(steps, self._capacity - longest)
        rows = self._describe(count)
        window = self._window(longest + steps, decoding=True)
        most_ended = len(indices) // ENDED_PART
        self._state, decoded = self._runner.decode(self._state, rows, window, steps, most_ended)
        decoded = jax.tree.map(np.asarray, decoded)
        for i in indices:
            new = slice(decoded.counts_b[i])
            self._rows[i].generation.mask = int(decoded.masks_b[i])
            tokens, logs = decoded.tokens_bn[i, new], decoded.log_probs_bn[i, new]
            self._add_tokens(self._rows[i], tokens.tolist(), logs.tolist())

    def _describe(self, count: int) -> Rows:
        """The argument `rows` of `Runner.decode`, for the first `count` rows."""
        tokens_b, lengths_b, counts_b, limits_b, masks_b = np.zeros((5, count), np.int32)
        seeds_b2 = np.zeros((count, 2), np.uint32)
        temperature_b, min_p_b = np.zeros((2, count), np.float32)
        top_p_b, penalty_b = np.ones((2, count), np.float32)
        top_k_b = np.zeros(count, np.int32)
        for i, row in enumerate(self._rows[:count]):
            lengths_b[i] = len(row.tokens)
            if row.generation is None or row.to_prefill:
                continue
            generation, request = row.generation, row.generation.request
            config = request.config
            tokens_b[i] = generation.ids[-1] if generation.ids else request.prompt[-1]
            counts_b[i], limits_b[i] = len(generation.ids), generation.limit
            masks_b[i] = generation.mask
            seeds_b2[i] = config.seed, request.sample
            temperature_b[i] = config.temperature if config.do_sample else 0
            top_p_b[i], top_k_b[i], min_p_b[i] = config.top_p, config.top_k, config.min_p
            penalty_b[i] = config.repetition_penalty
        sampling = Sampling(temperature_b, top_k_b, top_p_b, min_p_b, penalty_b)
        return Rows(tokens_b, lengths_b, counts_b, limits_b, masks_b, seeds_b2, sampling)

    def _add_tokens(self, row: _Row, ids: list[int], log_probs: list[float]) -> None:
        """Adds new tokens to a row and its request, and ends the request if it is finished."""
        generation, request = row.generation, row.generation.request
        # The newest token is not in the cache yet.
        before = [generation.ids[-1] if generation.ids else request.prompt[-1]]
        row.tokens.extend((before + ids)[: len(ids)])
        generation.ids.extend(ids)
        generation.log_probs.extend(log_probs)
        eos = set(self._runner.eos_e.tolist())
        ended = len(generation.ids) >= generation.limit or bool(ids and ids[-1] in eos)
        try:
            kept = request.stop(generation.ids) if request.stop else None
            if kept is not None:
                del generation.ids[kept:], generation.log_probs[kept:]
                ended = True
            if request.on_tokens and ids:
                request.on_tokens(ids)
        except Exception as error:  # in the caller's function; other requests go on
            generation.error, ended = error, True
        if ended:
            self._end(row)

    def _windows(self, decoding: bool) -> list[int]:
        """All windows that calls may have."""
        return sorted({self._window(slots, decoding) for slots in range(1, self._capacity + 1)})

    def _window(self, slots: int, decoding: bool) -> int:
        """The smallest window, of the few that are compiled, with at least these slots.

        All slots, where attention reads only the filled ones.
        """
        if self._runner.needs_windows(self._state, decoding):
            return min(_power_of_four(slots, SMALLEST_WINDOW), self._capacity)
        return self._capacity


def _power_of_four(size: int, smallest: int) -> int:
    while smallest < size:
        smallest *= 4
    return smallest


def _chunk(left: int, room: int) -> int:
    """The largest chunk that fits and of which at least half is tokens, else the smallest."""
    for size in CHUNKS:
        if size <= room and (left >= size // 2 or size == CHUNKS[-1]):
            return size
    raise AssertionError(f"a chunk of {CHUNKS[-1]} tokens does not fit in {room} slots")


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning of two sequences; 0 if it is too short to reuse."""
    if list(first[:LEAST_PREFIX]) != list(second[:LEAST_PREFIX]):
        return 0
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return i
    return min(len(first), len(second))


def continue_prompts(
    model: Llama,
    params: Any,
    prompts: Sequence[Sequence[int]],
    allowed_v: np.ndarray,
    eos: Sequence[int],
    config: GenerationConfig,
    mesh: jax.sharding.Mesh | None = None,
    rows: int = ROWS,
) -> list[Generation]:
    """Continues prompts with a new engine.

    Args:
      model: the language model, with unrolled layers.
      params: its parameters; may be sharded over `mesh`.
      prompts: token ids, at least one for each prompt.
      allowed_v: bool, tokens that may be generated.
      eos: ids that end the generation of a prompt.
      config: number of tokens and sampling settings. Generation also ends at the model's last
        position.
      mesh: the rows and the model are sharded over it.
      rows: the most prompts that decode together.

    Returns:
      The results, in order.

    Raises:
      InputError: a prompt is empty, has an id outside the vocabulary, or fills all positions.
    """
    masks = Masks(jnp.asarray(allowed_v)[None])
    runner = Runner(model, params, masks, np.array(eos, np.int32), mesh)
    requests = [Request(prompt, 0, config, sample=i) for i, prompt in enumerate(prompts)]
    slots = slots_of(requests, model.config.max_positions)
    engine = Engine(runner, min(rows, len(prompts)) or 1, slots)
    return engine.generate(requests)


def slots_of(requests: Sequence[Request], positions: int) -> int:
    """The number of slots that the longest request needs, rounded up, at most `positions`.

    It is a multiple of an eighth of a power of two: few sizes are compiled, and few slots are read
    that nothing uses.
    """
    longest = max((len(r.prompt) + r.config.max_new_tokens for r in requests), default=1)
    step = bucketing.power_of_two(longest, SMALLEST_WINDOW) // 8
    return min(max(-(-longest // step) * step, SMALLEST_WINDOW), positions)
