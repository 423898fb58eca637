"""Attention of the decoder: rotary position embedding, masks, and the key-value cache.

Letters: b batch, t query positions, s key positions (cache slots), h query heads, g key-value
heads, k head width, n queries of a key-value head.
"""

import math

import jax
import jax.numpy as jnp
from flax import struct

from spirit_jax.models import cache_kernel
from spirit_jax.models.llama_config import RopeScaling

TPU_ROWS = 8  # least rows of a product on a TPU's matrix unit


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
        each token and head, so that a prefix has the same values whatever follows. None for
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
    """

    layers: tuple[LayerCache, ...]
    lengths_b: jax.Array


def write_cache(
    cache: LayerCache, k_btgk: jax.Array, v_btgk: jax.Array, starts_b: jax.Array
) -> LayerCache:
    """Writes new keys and values into the first rows.

    Only the new slots are written, so that a loop that carries the cache updates it in place.

    Args:
      cache: of one layer; it must have slots up to start + t in each row. It may have more rows
        than `k_btgk` if t is 1.
      k_btgk, v_btgk: new keys and values.
      starts_b: int32, the slot of each row's first new token.
    """
    k_bgtk, v_bgtk = k_btgk.swapaxes(1, 2), v_btgk.swapaxes(1, 2)
    if cache.k_scale_bgs is None:
        k, v = (_write(old, new, starts_b) for old, new in ((cache.k, k_bgtk), (cache.v, v_bgtk)))
        return LayerCache(k, v)
    (k_bgtk, k_scale_bgt), (v_bgtk, v_scale_bgt) = to_int8(k_bgtk), to_int8(v_bgtk)
    new = LayerCache(k_bgtk, v_bgtk, k_scale_bgt, v_scale_bgt)
    return jax.tree.map(lambda stored, part: _write(stored, part, starts_b), cache, new)


def _write(stored: jax.Array, new: jax.Array, starts_b: jax.Array) -> jax.Array:
    """Writes (b, g, t, ...) into slots of the first rows of (rows, g, s, ...)."""
    new = new.astype(stored.dtype)
    zeros = (0,) * (stored.ndim - 3)
    if len(new) == 1:
        return jax.lax.dynamic_update_slice(stored, new, (0, 0, starts_b[0], *zeros))
    if len(new) < len(stored):
        return stored.at[jnp.arange(len(new)), :, starts_b].set(new[:, :, 0])
    if not cache_kernel.fits(stored, new):
        return _write_rows(stored, new, starts_b)
    return jax.lax.platform_dependent(
        stored, new, starts_b, tpu=cache_kernel.write_newest, default=_write_rows
    )


def _write_rows(stored: jax.Array, new: jax.Array, starts_b: jax.Array) -> jax.Array:
    def put(row, part, start):
        return jax.lax.dynamic_update_slice(row, part, (0, start) + (0,) * (row.ndim - 2))

    return jax.vmap(put)(stored, new, starts_b)


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


def attend_cache(q_bthk: jax.Array, cache: LayerCache, positions_bt: jax.Array) -> jax.Array:
    """Grouped-query attention (arXiv 2305.13245) of new tokens over a cache that has them too.

    Args:
      q_bthk: queries.
      cache: of one layer.
      positions_bt: int32; a query attends to the slots up to its position.

    Returns:
      (b, t, h, k), in the dtype of the queries; softmax is in float32.
    """
    b, t, heads, width = q_bthk.shape
    kv_heads = cache.k.shape[1]
    # The query heads of a key-value head are rows of one matrix product.
    q_btgrk = q_bthk.reshape(b, t, kv_heads, -1, width)
    q_bgnk = q_btgrk.swapaxes(1, 2).reshape(b, kv_heads, -1, width)
    last_bn = jnp.repeat(positions_bt, heads // kv_heads, axis=1)
    if q_bgnk.shape[2] < TPU_ROWS:
        y_bgnk = jax.lax.platform_dependent(
            q_bgnk, cache, last_bn, tpu=_attend_few_rows, default=_attend_rows
        )
    else:
        y_bgnk = _attend_rows(q_bgnk, cache, last_bn)
    return y_bgnk.reshape(b, kv_heads, t, -1, width).swapaxes(1, 2).reshape(q_bthk.shape)


def _attend_rows(q_bgnk: jax.Array, cache: LayerCache, last_bn: jax.Array) -> jax.Array:
    k_bgsk, v_bgsk = (x.astype(q_bgnk.dtype) for x in (cache.k, cache.v))
    slots, width = k_bgsk.shape[2:]
    scores_bgns = jnp.einsum("bgnk,bgsk->bgns", q_bgnk, k_bgsk, preferred_element_type=jnp.float32)
    if cache.k_scale_bgs is not None:
        scores_bgns *= cache.k_scale_bgs[:, :, None]
    mask_bns = jnp.arange(slots) <= last_bn[:, :, None]
    scores_bgns = jnp.where(mask_bns[:, None], scores_bgns * width**-0.5, -jnp.inf)
    weights_bgns = jax.nn.softmax(scores_bgns, axis=-1)
    if cache.v_scale_bgs is not None:
        weights_bgns *= cache.v_scale_bgs[:, :, None]
    return jnp.einsum("bgns,bgsk->bgnk", weights_bgns.astype(v_bgsk.dtype), v_bgsk)


def _attend_few_rows(q_bgnk: jax.Array, cache: LayerCache, last_bn: jax.Array) -> jax.Array:
    """The same with rows of zeros, so that the compiler uses the TPU's matrix unit.

    It multiplies a single row on the vector unit: by its estimate, in up to seven times the time.
    """
    rows = q_bgnk.shape[2]
    q_bgnk = jnp.pad(q_bgnk, ((0, 0), (0, 0), (0, TPU_ROWS - rows), (0, 0)))
    last_bn = jnp.pad(last_bn, ((0, 0), (0, TPU_ROWS - rows)))
    return _attend_rows(q_bgnk, cache, last_bn)[:, :, :rows]


def causal_mask(segments_bt: jax.Array) -> jax.Array:
    """Causal mask within segments, bool (b, t, s); segment 0 is padding."""
    same_bts = segments_bt[:, :, None] == segments_bt[:, None, :]
    t = segments_bt.shape[1]
    return same_bts & (segments_bt[:, None, :] > 0) & jnp.tri(t, dtype=bool)
