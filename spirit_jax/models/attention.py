"""Attention of a decoder: rotary positions, masks, and the key-value cache.

Letters: b batch, t query positions, s key positions (cache slots), h query heads, g key-value
heads, k head width, l layers.
"""

import math

import jax
import jax.numpy as jnp
from flax import struct

from spirit_jax.models.configs import RopeScaling


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> jax.Array:
    """Rotary frequencies in radians a position, float32 (head_dim / 2,)."""
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequencies = 1.0 / (theta**exponents)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    # 1 keeps a frequency (short wavelengths), 0 divides it by the factor (long ones).
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
    # A TPU is slow at moving half of its lanes, and quick at a product, here with ones and zeros.
    swap_kk = jnp.roll(jnp.eye(2 * half, dtype=x_bthk.dtype), half, axis=0)
    return x_bthk @ swap_kk


@struct.dataclass
class LayerCache:
    """Keys and values of earlier tokens: (b, s, g, k), or (l, b, s, g, k) under a scan."""

    k: jax.Array
    v: jax.Array


@struct.dataclass
class KVCache:
    """What attention keeps of the tokens before.

    Attributes:
      layers: a `LayerCache` for each layer (a tuple), or one stacked for the scan over layers.
      valid_bs: bool, the slots that hold a token (padding slots never do).
      length: int32 scalar, the slots written so far; the next token goes to this one.
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
    """Writes new keys and values from `slot` on: (the cache, this layer's k_bsgk, v_bsgk).

    `layer` picks the layer of a stacked cache. Only the new slots are written, so that the loop
    that carries the cache updates it in place.
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
    """bool (b, t, s): this or an earlier token of the same segment. Segment 0 is padding."""
    same_bts = segments_bt[:, :, None] == segments_bt[:, None, :]
    t = segments_bt.shape[1]
    return same_bts & (segments_bt[:, None, :] > 0) & jnp.tri(t, dtype=bool)


def cache_mask(valid_bs: jax.Array, length: jax.Array, t: int) -> jax.Array:
    """bool (b, t, s): the slots that hold tokens, up to each of `t` new ones from `length` on."""
    slots_s = jnp.arange(valid_bs.shape[1])
    last_t = length + jnp.arange(t)
    return valid_bs[:, None, :] & (slots_s <= last_t[:, None])


def attend(
    q_bthk: jax.Array, k_bsgk: jax.Array, v_bsgk: jax.Array, mask_bts: jax.Array
) -> jax.Array:
    """Grouped-query attention, softmax in float32: (b, t, h, k)."""
    return jax.nn.dot_product_attention(q_bthk, k_bsgk, v_bsgk, mask=mask_bts[:, None])
