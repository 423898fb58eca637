"""The compiled functions of generation: prefill of a chunk, copying a row, and decoding.

Axes: b rows of the cache, r rows that are prefilled together, t tokens of a chunk, s cache slots,
n decoding steps of a call, v vocabulary, e EOS ids, g key-value heads, k head width.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from spirit_jax import sharding
from spirit_jax.generation.masks import Masks
from spirit_jax.generation.sampling import NEVER, Sampling, next_tokens
from spirit_jax.models.attention import KVCache, LayerCache
from spirit_jax.models.attention_backends import reads_filled_slots
from spirit_jax.models.llama import Llama, init_cache

MAX_STEPS = 32  # largest number of steps of one call of `decode`


@struct.dataclass
class Rows:
    """The input of decoding for each row, besides the cache.

    Attributes:
      tokens_b: int32, the newest token, which is not in the cache yet.
      lengths_b: int32, number of tokens in the cache.
      counts_b: int32, number of generated tokens so far.
      limits_b: int32, largest number of generated tokens. Idle rows, which are not decoded in this
        call, have a limit of at most `counts_b`.
      masks_b: int32, index in `Runner.masks` of the mask of tokens that may be generated.
      seeds_b2: uint32, the random seed, and the number of the sample with this seed.
      sampling: settings of each row.
    """

    tokens_b: jax.Array
    lengths_b: jax.Array
    counts_b: jax.Array
    limits_b: jax.Array
    masks_b: jax.Array
    seeds_b2: jax.Array
    sampling: Sampling


@struct.dataclass
class State:
    """The arrays that stay on the device between calls.

    Attributes:
      layers: the cache of each layer.
      seen_bv: bool, tokens of prompt and output of rows with a repetition penalty.
    """

    layers: tuple[LayerCache, ...]
    seen_bv: jax.Array


@struct.dataclass
class Decoded:
    """New tokens of each row.

    Attributes:
      steps: int32 scalar, number of steps that were run.
      tokens_bn: int32, the new tokens; undefined after the first `counts_b` of a row.
      log_probs_bn: float32, natural log probability of each token, in the model's distribution over
        the allowed tokens.
      counts_b: int32, number of new tokens.
      masks_b: int32, index of the mask of each row's next token.
    """

    steps: jax.Array
    tokens_bn: jax.Array
    log_probs_bn: jax.Array
    counts_b: jax.Array
    masks_b: jax.Array


@dataclasses.dataclass(frozen=True)
class Runner:
    """A model with the compiled functions that generate with it.

    Attributes:
      model: the language model, with unrolled layers.
      params: its parameters; may be sharded over `mesh`.
      masks: the sets of tokens that requests may generate.
      eos_e: int32, ids that end generation.
      mesh: rows are sharded over its axes `data` and `fsdp`, and heads over `tensor`.
    """

    model: Llama
    params: Any
    masks: Masks
    eos_e: np.ndarray
    mesh: jax.sharding.Mesh | None = None

    def init(self, rows: int, slots: int) -> State:
        """An empty cache with this number of rows and slots."""
        with self._in_mesh():
            return _init(self.model, rows, slots)

    def prefill(
        self,
        state: State,
        tokens_rt: np.ndarray,
        rows: Sequence[int],
        starts: Sequence[int],
        window: int,
    ) -> State:
        """Writes the keys and values of a chunk of tokens of each of some rows.

        Args:
          state: donated.
          tokens_rt: int32. The cache entries of padding at the end are overwritten by later tokens.
          rows: the rows of the cache.
          starts: number of tokens in each row before the chunk.
          window: number of slots to attend to, from slot 0; at least the largest start + t.
        """
        rows_r, starts_r = np.array(rows, np.int32), np.array(starts, np.int32)
        with self._in_mesh():
            return _prefill(self.model, self.params, state, tokens_rt, rows_r, starts_r, window)

    def copy(self, state: State, source: int, target: int) -> State:
        """Copies the keys and values of a row to another row; `state` is donated."""
        with self._in_mesh():
            return _copy(state, np.int32(source), np.int32(target))

    def mark_seen(self, state: State, row: int, seen_v: np.ndarray) -> State:
        """Sets `State.seen_bv` of a row; `state` is donated."""
        with self._in_mesh():
            return _mark_seen(state, np.int32(row), seen_v)

    def decode(
        self, state: State, rows: Rows, window: int, steps: int, most_ended: int
    ) -> tuple[State, Decoded]:
        """Generates tokens for the first rows of the cache.

        Args:
          state: donated. The cache's last slot is overwritten in rows that are not decoded, so it
            must not have a token.
          rows: the first rows, as numpy arrays.
          window: number of slots to attend to, from slot 0; at least the longest row's number of
            tokens + steps.
          steps: largest number of steps, at most `MAX_STEPS`.
          most_ended: number of rows that may have ended before the last step.

        Returns:
          The state, and the new tokens as arrays on the device.
        """
        with self._in_mesh():
            return _decode(
                self.model,
                self.params,
                state,
                rows,
                self.masks,
                self.eos_e,
                np.int32(steps),
                np.int32(most_ended),
                window,
            )

    def lower_decode(self, rows: int, slots: int) -> jax.stages.Lowered:
        """`decode` of all rows and slots of a cache, to be compiled without arrays or devices.

        Args:
          rows, slots: of the cache.

        Returns:
          The traced function. `params`, `masks` and the devices of `mesh` may be abstract.
        """

        def shape(size: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(size, dtype)

        def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            place = sharding.cache_sharding(leaf.shape, self.mesh) if self.mesh else None
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

        ints_b, floats_b = shape((rows,), jnp.int32), shape((rows,), jnp.float32)
        sampling = Sampling(floats_b, ints_b, floats_b, floats_b, floats_b)
        seeds_b2 = shape((rows, 2), jnp.uint32)
        described = Rows(ints_b, ints_b, ints_b, ints_b, ints_b, seeds_b2, sampling)
        with self._in_mesh():
            state = jax.eval_shape(lambda: _init(self.model, rows, slots))
            state = state.replace(layers=jax.tree.map(placed, state.layers))
            return _decode.lower(
                self.model,
                self.params,
                state,
                described,
                self.masks,
                self.eos_e,
                shape((), jnp.int32),
                shape((), jnp.int32),
                slots,
            )

    def needs_windows(self, state: State, decoding: bool) -> bool:
        """Whether attention reads whole windows, and not only the filled slots; see `decode`."""
        return not reads_filled_slots(state.layers[0], decoding)

    def _in_mesh(self):
        return jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext()


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _init(model: Llama, rows: int, slots: int) -> State:
    seen_bv = jnp.zeros((rows, model.config.vocab_size), bool)
    return State(init_cache(model, rows, slots).layers, seen_bv)


@functools.partial(jax.jit, static_argnames=("model", "window"), donate_argnames="state")
def _prefill(model, params, state, tokens_rt, rows_r, starts_r, window) -> State:
    cache = KVCache(state.layers, starts_r, rows_r, window)
    positions_rt = starts_r[:, None] + jnp.arange(tokens_rt.shape[1])
    ones_rt = jnp.ones_like(tokens_rt)
    _, cache = model.apply(
        {"params": params}, tokens_rt, ones_rt, positions_rt, cache, method="features"
    )
    return state.replace(layers=_constrain(cache.layers))


@functools.partial(jax.jit, donate_argnums=0)
def _copy(state: State, source: jax.Array, target: jax.Array) -> State:
    def copy(stored):
        row = jax.lax.dynamic_slice_in_dim(stored, source, 1)
        return jax.lax.dynamic_update_slice_in_dim(stored, row, target, 0)

    return state.replace(layers=_constrain(jax.tree.map(copy, state.layers)))


@functools.partial(jax.jit, donate_argnums=0)
def _mark_seen(state: State, row: jax.Array, seen_v: jax.Array) -> State:
    return state.replace(seen_bv=state.seen_bv.at[row].set(seen_v))


@struct.dataclass
class _Loop:
    """What a decoding step passes to the next one; see `Rows`, `State` and `Decoded`."""

    step: jax.Array
    done_b: jax.Array
    tokens_b: jax.Array
    lengths_b: jax.Array
    counts_b: jax.Array
    masks_b: jax.Array
    layers: tuple[LayerCache, ...]
    seen_bv: jax.Array
    tokens_bn: jax.Array
    log_probs_bn: jax.Array


@functools.partial(jax.jit, static_argnames=("model", "window"), donate_argnames="state")
def _decode(
    model, params, state, rows, masks, eos_e, most, most_ended, window
) -> tuple[State, Decoded]:
    b = len(rows.tokens_b)
    # Attention that reads only filled slots works on the cache itself, and so does a loop over all
    # rows and slots. Otherwise the loop works on a copy of the first rows and slots, and `_put_new`
    # writes the new slots back.
    in_place = reads_filled_slots(state.layers[0])
    layers = state.layers
    if not in_place:
        layers = jax.tree.map(lambda stored: stored[:b, :, :window], layers)
    idle_b = rows.counts_b >= rows.limits_b

    def unfinished(loop):
        ended = jnp.sum(loop.done_b & ~idle_b)
        return (loop.step < most) & ~jnp.all(loop.done_b) & (ended <= most_ended)

    first = _Loop(
        jnp.int32(0),
        idle_b,
        rows.tokens_b,
        rows.lengths_b,
        rows.counts_b,
        rows.masks_b,
        layers,
        state.seen_bv[:b],
        jnp.zeros((b, MAX_STEPS), jnp.int32),
        jnp.zeros((b, MAX_STEPS), jnp.float32),
    )
    step = functools.partial(_step, model, params, rows, _row_keys(rows.seeds_b2), masks, eos_e)
    last = jax.lax.while_loop(unfinished, step, first)
    layers = last.layers
    if not in_place:
        put = functools.partial(_put_new, lengths_b=rows.lengths_b, idle_b=idle_b)
        layers = jax.tree.map(put, state.layers, layers)
    seen_bv = jax.lax.dynamic_update_slice(state.seen_bv, last.seen_bv, (0, 0))
    state = State(_constrain(layers), seen_bv)
    counts_b = last.counts_b - rows.counts_b
    new = Decoded(last.step, last.tokens_bn, last.log_probs_bn, counts_b, last.masks_b)
    # Replicated, since on several hosts every process reads them.
    return state, jax.tree.map(lambda x: sharding.constrain(x, *(None,) * x.ndim), new)


def _row_keys(seeds_b2: jax.Array) -> jax.Array:
    return jax.vmap(lambda seed_2: jax.random.fold_in(jax.random.key(seed_2[0]), seed_2[1]))(
        seeds_b2
    )


def _step(model, params, rows, row_keys_b, masks, eos_e, loop: _Loop) -> _Loop:
    """Generates a token for each row that is not done."""
    b, slots = len(loop.tokens_b), loop.layers[0].k.shape[2]
    # A row that is done attends to one slot, however many tokens it has, and writes to the last.
    positions_b = jnp.where(loop.done_b, 0, loop.lengths_b)
    starts_b = jnp.where(loop.done_b, slots - 1, loop.lengths_b)
    logits_btv, cache = model.apply(
        {"params": params},
        loop.tokens_b[:, None],
        jnp.ones((b, 1), jnp.int32),
        positions_b[:, None],
        KVCache(loop.layers, starts_b),
    )
    logits_bv = logits_btv[:, 0]
    allowed_bv = masks.allowed_mv[loop.masks_b]
    keys_b = jax.vmap(jax.random.fold_in)(row_keys_b, loop.counts_b)
    next_b = next_tokens(logits_bv, allowed_bv, loop.seen_bv, keys_b, rows.sampling)
    logs_bv = jax.nn.log_softmax(jnp.where(allowed_bv, logits_bv, NEVER), axis=-1)
    logs_b1 = jnp.take_along_axis(logs_bv, next_b[:, None], axis=-1)
    live_b = ~loop.done_b
    seen_bv = jax.lax.cond(
        jnp.any(rows.sampling.penalty_b != 1),
        lambda seen_bv: seen_bv.at[jnp.arange(b), next_b].max(live_b),
        lambda seen_bv: seen_bv,
        loop.seen_bv,
    )
    masks_b = loop.masks_b
    if masks.next_mv is not None:
        masks_b = jnp.where(live_b, masks.next_mv[masks_b, next_b], masks_b)
    counts_b = loop.counts_b + live_b
    return _Loop(
        loop.step + 1,
        loop.done_b | jnp.isin(next_b, eos_e) | (counts_b >= rows.limits_b),
        jnp.where(live_b, next_b, loop.tokens_b),
        loop.lengths_b + live_b,
        counts_b,
        masks_b,
        cache.layers,
        seen_bv,
        jax.lax.dynamic_update_slice(loop.tokens_bn, next_b[:, None], (0, loop.step)),
        jax.lax.dynamic_update_slice(loop.log_probs_bn, logs_b1, (0, loop.step)),
    )


def _put_new(
    stored: jax.Array, part: jax.Array, lengths_b: jax.Array, idle_b: jax.Array
) -> jax.Array:
    """Writes the slots of a call's new tokens back, and as many as a call can have.

    The loop writes to idle rows too. If a row has more tokens than the window has slots, it
    overwrites one of them, so the rows in `idle_b` keep their stored keys and values.
    """
    if part.shape == stored.shape:  # not a copy: the loop worked on the donated array itself
        return part
    b, _, window = part.shape[:3]
    size = min(MAX_STEPS, window)

    def put(stored_gs, part_gs, length, idle):
        start = jnp.minimum(length, window - size)
        new = jax.lax.dynamic_slice_in_dim(part_gs, start, size, axis=1)
        old = jax.lax.dynamic_slice_in_dim(stored_gs, start, size, axis=1)
        new = jnp.where(idle, old, new)
        return jax.lax.dynamic_update_slice_in_dim(stored_gs, new, start, axis=1)

    if b == len(stored):
        return jax.vmap(put)(stored, part, lengths_b, idle_b)
    rows = jax.vmap(put)(stored[:b], part, lengths_b, idle_b)
    return jax.lax.dynamic_update_slice(stored, rows, (0,) * stored.ndim)


def _constrain(layers: Any) -> Any:
    """Keeps the cache's sharding from call to call."""
    axes = sharding.CACHE_AXES
    return jax.tree.map(lambda stored: sharding.constrain(stored, *axes[: stored.ndim]), layers)
