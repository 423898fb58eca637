"""Attention of the decoder: rotary position embedding, masks, and the key-value cache.

Letters: b batch, t query positions, s key positions (cache slots), h query heads, g key-value
heads, k head width, n queries of a key-value head, r rows of the cache.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from spirit_jax.models import cache_kernel
from spirit_jax.models.llama_config import RopeScaling

TPU_ROWS = 8  # least rows of a product on a TPU's matrix unit
# Slots that attention on a CPU reads at once: fewer, down to the second number, if their keys and
# values have more bytes than stay in the cache of a core.
BLOCK, SMALLEST_BLOCK, BLOCK_BYTES = 64, 16, 1 << 20
# A larger block leaves the CPU's cache; then few slots are read faster as a whole, if half of them
# are filled.
LARGE_BLOCK, FEW_SLOTS = 4 << 20, 512


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> jax.Array:
    """Rotary frequencies (arXiv 2104.09864) in radians per position, float32 (head_dim / 2,).

    Args:
      head_dim: width of a head.
      theta: base of the frequencies.
      scaling: for long contexts; None for none.
    """
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequencies = 1.0 / (theta**exponents)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "yarn":
        keep = 1 - _yarn_ramp(head_dim, theta, scaling)
        return keep * frequencies + (1 - keep) * frequencies / scaling.factor
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    # 1 keeps a frequency (short wavelengths), 0 divides it by the factor (long wavelengths).
    keep = (scaling.original_max_positions / wavelengths - low) / (high - low)
    keep = jnp.clip(keep, 0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor


def _yarn_ramp(head_dim: int, theta: float, scaling: RopeScaling) -> jax.Array:
    """0 for frequencies that yarn keeps, 1 for those that it divides: float32 (head_dim / 2,).

    The bounds are computed as transformers does, which rounds them outwards to whole indices.
    """

    def index_of(turns: float) -> float:
        """Index of the frequency with so many turns in the context length of pretraining."""
        wavelength = scaling.original_max_positions / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(theta))

    low, high = index_of(scaling.beta_fast), index_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    return jnp.clip((jnp.arange(head_dim // 2, dtype=jnp.float32) - low) / (high - low), 0, 1)


def rope_tables(
    positions_bt: jax.Array, frequencies: jax.Array, factor: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of position x frequency for both halves of a head: float32 (b, t, 1, k).

    Args:
      positions_bt: int32 positions.
      frequencies: from `rope_frequencies`.
      factor: that multiplies both.
    """
    angles_bthk = positions_bt[:, :, None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles_bthk), jnp.sin(angles_bthk)
    if factor != 1:
        cos, sin = cos * factor, sin * factor
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


def apply_rope(x_bthk: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates each half-split pair of a head by its angle, in float32."""
    cos, sin = tables
    swapped_bthk = _swap_halves(x_bthk).astype(jnp.float32)
    return (x_bthk.astype(jnp.float32) * cos + swapped_bthk * sin).astype(x_bthk.dtype)


def _swap_halves(x_bthk: jax.Array) -> jax.Array:
    half = x_bthk.shape[-1] // 2

    def roll(x_bthk):
        return jnp.roll(x_bthk, half, axis=-1)

    def multiply(x_bthk):
        return x_bthk @ jnp.roll(jnp.eye(2 * half, dtype=x_bthk.dtype), half, axis=0)

    if x_bthk.dtype != jnp.bfloat16:
        return roll(x_bthk)
    # On a TPU, multiplying by a permutation matrix is faster than rolling by half of the lanes.
    return jax.lax.platform_dependent(x_bthk, tpu=multiply, default=roll)


@struct.dataclass
class LayerCache:
    """Keys and values of a layer; a token has the slot of its position.

    Attributes:
      k, v: (b, g, s, k), in the dtype of the computation or int8.
      k_scale_bgs, v_scale_bgs: float32, what int8 keys and values are multiplied by: a scale for
        each token and head, so that a prefix has the same values with any later tokens. None for
        others.
    """

    k: jax.Array
    v: jax.Array
    k_scale_bgs: jax.Array | None = None
    v_scale_bgs: jax.Array | None = None


@struct.dataclass
class KVCache:
    """The key-value cache.

    Attributes:
      layers: the cache of each layer.
      lengths_b: int32, number of tokens of each row. Later slots may hold anything finite.
      rows_b: int32, the rows of `layers` that the batch has; None for the first ones.
      window: number of slots to attend to, from slot 0; None for all.
    """

    layers: tuple[LayerCache, ...]
    lengths_b: jax.Array
    rows_b: jax.Array | None = None
    window: int | None = struct.field(pytree_node=False, default=None)


@struct.dataclass
class NewTokens:
    """Where the tokens of a call are in the cache; see `KVCache`.

    Attributes:
      positions_bt: int32; a token attends to the slots up to its position.
      starts_b: int32, the slot of each row's first new token.
    """

    positions_bt: jax.Array
    starts_b: jax.Array
    rows_b: jax.Array | None = None
    window: int | None = struct.field(pytree_node=False, default=None)


def write_cache(
    cache: LayerCache, k_btgk: jax.Array, v_btgk: jax.Array, new: NewTokens
) -> LayerCache:
    """Writes new keys and values.

    Only the new slots are written, so that a loop that carries the cache updates it in place.

    Args:
      cache: of one layer; it must have slots up to start + t in each row. It may have more rows
        than `k_btgk` if t is 1 or `new` names the rows.
      k_btgk, v_btgk: new keys and values.
      new: their places.
    """
    k_bgtk, v_bgtk = k_btgk.swapaxes(1, 2), v_btgk.swapaxes(1, 2)
    if cache.k_scale_bgs is None:
        parts = LayerCache(k_bgtk, v_bgtk)
    else:
        (k_bgtk, k_scale_bgt), (v_bgtk, v_scale_bgt) = to_int8(k_bgtk), to_int8(v_bgtk)
        parts = LayerCache(k_bgtk, v_bgtk, k_scale_bgt, v_scale_bgt)
    return jax.tree.map(lambda stored, part: _write(stored, part, new), cache, parts)


def _write(stored: jax.Array, part: jax.Array, new: NewTokens) -> jax.Array:
    """Writes (b, g, t, ...) into slots of rows of (r, g, s, ...)."""
    part = part.astype(stored.dtype)
    starts_b, rows_b = new.starts_b, new.rows_b
    if rows_b is None and len(part) == 1:
        rows_b = jnp.zeros(1, jnp.int32)
    if rows_b is not None:
        for i in range(len(part)):
            place = (rows_b[i], 0, starts_b[i]) + (0,) * (stored.ndim - 3)
            stored = jax.lax.dynamic_update_slice(stored, part[i : i + 1], place)
        return stored
    if len(part) < len(stored):
        return stored.at[jnp.arange(len(part)), :, starts_b].set(part[:, :, 0])
    if not cache_kernel.fits(stored, part):
        return _write_rows(stored, part, starts_b)
    return jax.lax.platform_dependent(
        stored, part, starts_b, tpu=cache_kernel.write_newest, default=_write_rows
    )


def _write_rows(stored: jax.Array, part: jax.Array, starts_b: jax.Array) -> jax.Array:
    def put(row, part, start):
        return jax.lax.dynamic_update_slice(row, part, (0, start) + (0,) * (row.ndim - 2))

    return jax.vmap(put)(stored, part, starts_b)


def to_int8(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rounds vectors to int8.

    Args:
      x: (..., k).

    Returns:
      int8 (..., k), and float32 scales (...) by which they are multiplied to restore `x`. The
      largest absolute value of a vector becomes 127.
    """
    scale = jnp.max(jnp.abs(x), axis=-1).astype(jnp.float32) / 127
    inverse = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)
    return jnp.round(x.astype(jnp.float32) * inverse[..., None]).astype(jnp.int8), scale


def attend_cache(q_bthk: jax.Array, cache: LayerCache, new: NewTokens) -> jax.Array:
    """Grouped-query attention (arXiv 2305.13245) of new tokens over a cache that has them too.

    Args:
      q_bthk: queries.
      cache: of one layer.
      new: the places of the queries' tokens.

    Returns:
      (b, t, h, k), in the dtype of the queries; softmax is in float32.
    """
    b, t, heads, width = q_bthk.shape
    kv_heads = cache.k.shape[1]
    # The query heads of a key-value head are rows of one matrix product.
    q_btgrk = q_bthk.reshape(b, t, kv_heads, -1, width)
    q_bgnk = q_btgrk.swapaxes(1, 2).reshape(b, kv_heads, -1, width)
    last_bn = jnp.repeat(new.positions_bt, heads // kv_heads, axis=1)

    def attend(q_bgnk, cache, last_bn):
        slots = cache.k.shape[2] if new.window is None else new.window
        return _attend_slots(q_bgnk, _part(cache, new.rows_b, b, 0, slots), last_bn)

    def attend_blocks(q_bgnk, cache, last_bn):
        blocks = functools.partial(_attend_blocks, rows_b=new.rows_b)
        if new.rows_b is not None or not _may_be_read_as_a_whole(cache, b):
            return blocks(q_bgnk, cache, last_bn)
        is_half_full = 2 * jnp.max(last_bn) >= cache.k.shape[2]
        return jax.lax.cond(is_half_full, _attend_slots, blocks, q_bgnk, cache, last_bn)

    on_tpu = _with_more_rows(attend) if q_bgnk.shape[2] < TPU_ROWS else attend
    y_bgnk = jax.lax.platform_dependent(
        q_bgnk, cache, last_bn, cpu=attend_blocks, tpu=on_tpu, default=attend
    )
    return y_bgnk.reshape(b, kv_heads, t, -1, width).swapaxes(1, 2).reshape(q_bthk.shape)


def _part(
    cache: LayerCache, rows_b: jax.Array | None, b: int, start: jax.Array | int, slots: int
) -> LayerCache:
    """Some slots of the first b rows, or of the rows `rows_b`."""

    def cut(stored):
        sizes = (stored.shape[1], slots, *stored.shape[3:])
        zeros = (0,) * (stored.ndim - 3)
        if rows_b is None:
            return jax.lax.dynamic_slice(stored, (0, 0, start, *zeros), (b, *sizes))
        parts = [
            jax.lax.dynamic_slice(stored, (row, 0, start, *zeros), (1, *sizes)) for row in rows_b
        ]
        return jnp.concatenate(parts)

    return jax.tree.map(cut, cache)


def _attend_slots(q_bgnk: jax.Array, cache: LayerCache, last_bn: jax.Array) -> jax.Array:
    """Attention over all slots of a cache: the plain form, to which the others are compared."""
    mask_bns = jnp.arange(cache.k.shape[2]) <= last_bn[:, :, None]
    weights_bgns = jax.nn.softmax(_scores(q_bgnk, cache, mask_bns), axis=-1)
    return _weighted_values(weights_bgns, cache, q_bgnk.dtype)


def _scores(q_bgnk: jax.Array, cache: LayerCache, mask_bns: jax.Array) -> jax.Array:
    """Products of queries and keys over the root of the width, in float32; -inf if masked."""
    k_bgsk = cache.k.astype(q_bgnk.dtype)
    scores_bgns = jnp.einsum("bgnk,bgsk->bgns", q_bgnk, k_bgsk, preferred_element_type=jnp.float32)
    if cache.k_scale_bgs is not None:
        scores_bgns *= cache.k_scale_bgs[:, :, None]
    return jnp.where(mask_bns[:, None], scores_bgns * q_bgnk.shape[-1] ** -0.5, -jnp.inf)


def _weighted_values(
    weights_bgns: jax.Array, cache: LayerCache, dtype: Any, sum_dtype: Any = None
) -> jax.Array:
    if cache.v_scale_bgs is not None:
        weights_bgns *= cache.v_scale_bgs[:, :, None]
    return jnp.einsum(
        "bgns,bgsk->bgnk",
        weights_bgns.astype(dtype),
        cache.v.astype(dtype),
        preferred_element_type=sum_dtype,
    )


def _may_be_read_as_a_whole(cache: LayerCache, b: int) -> bool:
    """Whether attention of b rows on a CPU may be faster over all slots, which are not copied."""
    rows, _, slots, _ = cache.k.shape
    return b == rows and slots <= FEW_SLOTS and BLOCK * _slot_bytes(cache, b) > LARGE_BLOCK


def _slot_bytes(cache: LayerCache, b: int) -> int:
    """Bytes of the keys and values of a slot in b rows."""
    _, kv_heads, _, width = cache.k.shape
    return 2 * b * kv_heads * width * cache.k.dtype.itemsize


def _attend_blocks(
    q_bgnk: jax.Array, cache: LayerCache, last_bn: jax.Array, rows_b: jax.Array | None
) -> jax.Array:
    """Attention over the filled slots, for a CPU: up to the last one that any query attends to.

    A block of slots is read at a time and stays in the CPU's cache; the softmax is accumulated as
    in flash attention (arXiv 2205.14135). So one compiled function does for all lengths, and
    nothing of the cache is copied.
    """
    b, kv_heads, n, width = q_bgnk.shape
    slots = cache.k.shape[2]
    size = min(BLOCK, max(SMALLEST_BLOCK, BLOCK_BYTES // _slot_bytes(cache, b)), slots)

    def add_block(i, carry):
        largest_bgn, total_bgn, sum_bgnk = carry
        start = jnp.minimum(i * size, slots - size)  # the last block may overlap another
        block = _part(cache, rows_b, b, start, size)
        slot_s = start + jnp.arange(size)
        mask_bns = (slot_s >= i * size) & (slot_s <= last_bn[:, :, None])
        scores_bgns = _scores(q_bgnk, block, mask_bns)
        new_largest_bgn = jnp.maximum(largest_bgn, scores_bgns.max(axis=-1))
        weights_bgns = jnp.exp(scores_bgns - new_largest_bgn[..., None])
        shrink_bgn = jnp.exp(largest_bgn - new_largest_bgn)
        total_bgn = total_bgn * shrink_bgn + weights_bgns.sum(axis=-1)
        values_bgnk = _weighted_values(weights_bgns, block, q_bgnk.dtype, jnp.float32)
        return new_largest_bgn, total_bgn, sum_bgnk * shrink_bgn[..., None] + values_bgnk

    # Every query attends to slot 0, so the largest score is that of a key after the first block.
    lowest = jnp.full((b, kv_heads, n), jnp.finfo(jnp.float32).min)
    zeros_bgn, zeros_bgnk = jnp.zeros((b, kv_heads, n)), jnp.zeros((b, kv_heads, n, width))
    blocks = jnp.max(last_bn) // size + 1
    _, total_bgn, sum_bgnk = jax.lax.fori_loop(
        0, blocks, add_block, (lowest, zeros_bgn, zeros_bgnk)
    )
    return (sum_bgnk / total_bgn[..., None]).astype(q_bgnk.dtype)


def _with_more_rows(attend: Callable) -> Callable:
    """`attend` with rows of zeros, so that the compiler uses the TPU's matrix unit.

    It multiplies a single row on the vector unit: by its estimate, in up to seven times the time.
    """

    def attend_padded(q_bgnk, cache, last_bn):
        rows = q_bgnk.shape[2]
        q_bgnk = jnp.pad(q_bgnk, ((0, 0), (0, 0), (0, TPU_ROWS - rows), (0, 0)))
        last_bn = jnp.pad(last_bn, ((0, 0), (0, TPU_ROWS - rows)))
        return attend(q_bgnk, cache, last_bn)[:, :, :rows]

    return attend_padded


def causal_mask(segments_bt: jax.Array) -> jax.Array:
    """Causal mask within segments, bool (b, t, s); segment 0 is padding."""
    same_bts = segments_bt[:, :, None] == segments_bt[:, None, :]
    t = segments_bt.shape[1]
    return same_bts & (segments_bt[:, None, :] > 0) & jnp.tri(t, dtype=bool)
