"""Attention of the decoder: rotary position embedding, masks, and the key-value cache.

Letters: b batch, t query positions, s key positions (cache slots), h query heads, g key-value
heads, k head width, l layers.
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
    """Keys and values of earlier tokens: (b, s, g, k), or (l, b, s, g, k) for scanned layers."""

    k: jax.Array
    v: jax.Array


@struct.dataclass
class KVCache:
    """The key-value cache.

    Attributes:
      layers: a tuple with a `LayerCache` for each layer, or a stacked one for scanned layers.
      valid_bs: bool, slots that hold a token (False for padding).
      length: int32 scalar, number of slots written; the next token is written to this slot.
    """

    layers: LayerCache | tuple[LayerCache, ...]
    valid_bs: jax.Array
    length: jax.Array


def write_cache(
    cache: LayerCache,
    k_btgk: jax.Array,
    v_btgk: jax.Array,
    slot: jax.Array,
    layer: jax.Array | None,
) -> tuple[LayerCache, jax.Array, jax.Array]:
    """Writes new keys and values.

    Only the new slots are written, so that a loop that carries the cache updates it in place.

    Args:
      cache: of one layer, or of all layers stacked.
      k_btgk, v_btgk: new keys and values.
      slot: int32 scalar, first slot to write.
      layer: int32 scalar, index of the layer in a stacked cache; None for one layer.

    Returns:
      The cache, and k_bsgk and v_bsgk of this layer.
    """

    def write(stored, new):
        new = new.astype(stored.dtype)
        if layer is None:
            stored = jax.lax.dynamic_update_slice(stored, new, (0, slot, 0, 0))
            return stored, stored
        stored = jax.lax.dynamic_update_slice(stored, new[None], (layer, 0, slot, 0, 0))
        return stored, jax.lax.dynamic_index_in_dim(stored, layer, keepdims=False)

    k_stored, k_bsgk = write(cache.k, k_btgk)
    v_stored, v_bsgk = write(cache.v, v_btgk)
    return LayerCache(k_stored, v_stored), k_bsgk, v_bsgk


def causal_mask(segments_bt: jax.Array) -> jax.Array:
    """Causal mask within segments, bool (b, t, s); segment 0 is padding."""
    same_bts = segments_bt[:, :, None] == segments_bt[:, None, :]
    t = segments_bt.shape[1]
    return same_bts & (segments_bt[:, None, :] > 0) & jnp.tri(t, dtype=bool)


def cache_mask(valid_bs: jax.Array, length: jax.Array, t: int) -> jax.Array:
    """Causal mask of `t` new tokens over a cache, bool (b, t, s).

    Args:
      valid_bs: bool, slots that hold a token.
      length: int32 scalar, slot of the first new token.
      t: number of new tokens.
    """
    slots_s = jnp.arange(valid_bs.shape[1])
    last_t = length + jnp.arange(t)
    return valid_bs[:, None, :] & (slots_s <= last_t[:, None])


def attend(
    q_bthk: jax.Array, k_bsgk: jax.Array, v_bsgk: jax.Array, mask_bts: jax.Array
) -> jax.Array:
    """Grouped-query attention (arXiv 2305.13245) with softmax in float32.

    Args:
      q_bthk, k_bsgk, v_bsgk: queries, keys and values of one dtype.
      mask_bts: bool, True where a query sees a key.

    Returns:
      (b, t, h, k), of the same dtype.
    """
    return jax.nn.dot_product_attention(q_bthk, k_bsgk, v_bsgk, mask=mask_bts[:, None])
