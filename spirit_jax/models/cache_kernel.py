"""Writes the keys and values of new tokens into the cache on a TPU, in place.

XLA writes tokens at different slots one row after another, which takes most of a decoding step of
many rows. The kernel rewrites the block of slots around each row's new token, while it reads the
next row's block.

Letters: b rows, g key-value heads, s cache slots, k head width.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from spirit_jax import sharding

LANES = 128  # of a TPU's vector
TILE_BYTES = 32  # slots of a block of keys, times their bytes: a tile of a TPU's memory


def fits(stored: jax.Array, new: jax.Array) -> bool:
    """Whether `write_newest` takes these arrays."""
    is_whole = len(new) == len(stored) and new.shape[2] == 1
    return is_whole and (stored.ndim == 3 or stored.shape[3] % LANES == 0)


def write_newest(
    stored: jax.Array, new: jax.Array, starts_b: jax.Array, interpret: bool = False
) -> jax.Array:
    """Writes a new token of each row.

    Args:
      stored: keys or values (b, g, s, k), or their scales (b, g, s).
      new: (b, g, 1, k) or (b, g, 1), of the same dtype.
      starts_b: int32, the slot of each row's token.
      interpret: runs the kernel on any device, slowly, for tests.
    """
    axes = sharding.CACHE_AXES[: stored.ndim]
    return sharding.per_device(
        functools.partial(_write, interpret=interpret),
        (stored, new, starts_b),
        (axes, axes, axes[:1]),
        axes,
    )


def _write(stored: jax.Array, new: jax.Array, starts_b: jax.Array, interpret: bool) -> jax.Array:
    b, kv_heads, slots, *width = stored.shape
    size = LANES if not width else TILE_BYTES // stored.dtype.itemsize
    size = min(size, slots)
    zeros = (0,) * len(width)
    # `//` and `%` of JAX have cases for negative numbers, which need a real TPU to compile.
    old_block = pl.BlockSpec(
        (1, kv_heads, size, *width),
        lambda row, starts: (row, 0, jax.lax.div(starts[row], size), *zeros),
    )
    new_block = pl.BlockSpec((1, kv_heads, 1, *width), lambda row, _: (row, 0, 0, *zeros))

    def kernel(starts_ref, new_ref, old_ref, out_ref):
        at = jax.lax.rem(starts_ref[pl.program_id(0)], size)
        is_new = jax.lax.broadcasted_iota(jnp.int32, old_ref.shape, 2) == at
        # In float32, which holds every int8 and bfloat16, and whose masks all TPUs support.
        old, token = (ref[...].astype(jnp.float32) for ref in (old_ref, new_ref))
        out_ref[...] = jnp.where(is_new, token, old).astype(out_ref.dtype)

    block_bytes = stored.dtype.itemsize * stored.size // slots * size
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(b,),
            in_specs=[new_block, old_block],
            out_specs=old_block,
        ),
        out_shape=jax.ShapeDtypeStruct(stored.shape, stored.dtype),
        input_output_aliases={2: 0},
        cost_estimate=pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=2 * block_bytes),
        interpret=interpret,
        name="write_newest",
    )(starts_b, new, stored)
