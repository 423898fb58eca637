"""Attention of the decoder: rotary position embedding, masks, and the key-value cache.

Letters: b batch, t query positions, s key positions (cache slots), h query heads, g key-value
heads, k head width, n queries of a key-value head.
"""

import math

import jax
import jax.numpy as jnp
from flax import struct

from spirit_jax.models.configs import RopeScaling


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
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    # 1 keeps a frequency (short wavelengths), 0 divides it by the factor (long wavelengths).
    keep = (scaling.original_max_positions / wavelengths - low) / (high - low)
    keep = jnp.clip(keep, 0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor


def rope_tables(positions_bt: jax.Array, frequencies: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of position x frequency for both halves of a head: float32 (b, t, 1, k)."""
    angles_bthk = positions_bt[:, :, None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles_bthk), jnp.sin(angles_bthk)
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


def apply_rope(x_bthk: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates each half-split pair of a head by its angle, in float32."""
    cos, sin = tables
    swapped_bthk = _swap_halves(x_bthk).astype(jnp.float32)
    return (x_bthk.astype(jnp.float32) * cos + swapped_bthk * sin).astype(x_bthk.dtype)


def _swap_halves(x_bthk: jax.Array) -> jax.Array:
    half = x_bthk.shape[-1] // 2
    if x_bthk.dtype != jnp.bfloat16:
        return jnp.roll(x_bthk, half, axis=-1)
    # On a TPU, multiplying by a permutation matrix is faster than rolling by half of the lanes.
    swap_kk = jnp.roll(jnp.eye(2 * half, dtype=x_bthk.dtype), half, axis=0)
    return x_bthk @ swap_kk


@struct.dataclass
class LayerCache:
    """Keys and values of a layer, (b, g, s, k); a token has the slot of its position."""

    k: jax.Array
    v: jax.Array


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
    """Writes new keys and values.

    Only the new slots are written, so that a loop that carries the cache updates it in place.

    Args:
      cache: of one layer; it must have slots up to start + t in each row.
      k_btgk, v_btgk: new keys and values.
      starts_b: int32, the slot of each row's first new token.
    """

    def write(stored_bgsk: jax.Array, new_btgk: jax.Array) -> jax.Array:
        new_bgtk = new_btgk.swapaxes(1, 2).astype(stored_bgsk.dtype)
        if len(new_bgtk) == 1:
            return jax.lax.dynamic_update_slice(stored_bgsk, new_bgtk, (0, 0, starts_b[0], 0))
        put = lambda row, new, start: jax.lax.dynamic_update_slice(row, new, (0, start, 0))  # noqa: E731
        return jax.vmap(put)(stored_bgsk, new_bgtk, starts_b)

    return LayerCache(write(cache.k, k_btgk), write(cache.v, v_btgk))


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
    kv_heads, slots = cache.k.shape[1:3]
    # The query heads of a key-value head are rows of one matrix product.
    q_btgrk = q_bthk.reshape(b, t, kv_heads, -1, width)
    q_bgnk = q_btgrk.swapaxes(1, 2).reshape(b, kv_heads, -1, width)
    k_bgsk, v_bgsk = (x.astype(q_bthk.dtype) for x in (cache.k, cache.v))
    scores_bgns = jnp.einsum("bgnk,bgsk->bgns", q_bgnk, k_bgsk, preferred_element_type=jnp.float32)
    last_bn = jnp.repeat(positions_bt, heads // kv_heads, axis=1)
    mask_bns = jnp.arange(slots) <= last_bn[:, :, None]
    scores_bgns = jnp.where(mask_bns[:, None], scores_bgns * width**-0.5, -jnp.inf)
    weights_bgns = jax.nn.softmax(scores_bgns, axis=-1).astype(v_bgsk.dtype)
    y_bgnk = jnp.einsum("bgns,bgsk->bgnk", weights_bgns, v_bgsk)
    return y_bgnk.reshape(b, kv_heads, t, -1, width).swapaxes(1, 2).reshape(q_bthk.shape)


def causal_mask(segments_bt: jax.Array) -> jax.Array:
    """Causal mask within segments, bool (b, t, s); segment 0 is padding."""
    same_bts = segments_bt[:, :, None] == segments_bt[:, None, :]
    t = segments_bt.shape[1]
    return same_bts & (segments_bt[:, None, :] > 0) & jnp.tri(t, dtype=bool)
