"""Writes the keys and values of new tokens into the cache on a TPU, in place.

XLA writes the new tokens one row after another if their slots differ. With many rows, this takes
most of the time of a decoding step. The kernel reads and rewrites, for each row, the block of slots
that contains the new token, and reads the next row's block at the same time.

Letters: b rows, g key-value heads, s cache slots, k head width.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from spirit_jax import sharding

LANES = 128  # last dimension of a tile of TPU memory
# The other dimension of a tile, in bytes: it has 8 float32, 16 bfloat16 or 32 int8 values.
TILE_BYTES = 32


def fits(stored: jax.Array, new: jax.Array) -> bool:
    """Whether `write_newest` supports these arrays: a token for every row, and whole tiles."""
    is_token_per_row = len(new) == len(stored) and new.shape[2] == 1
    return is_token_per_row and (stored.ndim == 3 or stored.shape[3] % LANES == 0)


def write_newest(
    stored: jax.Array, new: jax.Array, starts_b: jax.Array, interpret: bool = False
) -> jax.Array:
    """Writes the keys or values of one new token per row.

    Args:
      stored: keys or values (b, g, s, k), or their scales (b, g, s).
      new: (b, g, 1, k) or (b, g, 1), of the same dtype.
      starts_b: int32, the slot of each row's token.
      interpret: runs the kernel on any device, slowly, for tests.

    Returns:
      `stored` with the new tokens.
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
    # Not `//` and `%`: their cases for negative numbers can only be compiled on a real TPU.
    old_block = pl.BlockSpec(
        (1, kv_heads, size, *width),
        lambda row, starts: (row, 0, jax.lax.div(starts[row], size), *zeros),
    )
    new_block = pl.BlockSpec((1, kv_heads, 1, *width), lambda row, _: (row, 0, 0, *zeros))

    def kernel(starts_ref, new_ref, old_ref, out_ref):
        slot_in_block = jax.lax.rem(starts_ref[pl.program_id(0)], size)
        is_new = jax.lax.broadcasted_iota(jnp.int32, old_ref.shape, 2) == slot_in_block
        # float32 represents every int8 and bfloat16 exactly, and all TPUs support its masks.
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
