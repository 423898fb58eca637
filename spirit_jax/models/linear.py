"""Linear layers with int8 weights.

Axes: c input channels, o output channels; either may be several axes of a kernel.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental.layout import Format, Layout

from spirit_jax import devices

# Output and input channels that a program of `row_product` reads at once. On an H200 the kernel
# reads 2.9 TB/s with these; of (1, 4096), (4, 2048), (8, 1024) and (16, 512) none was faster.
BLOCK_O, BLOCK_C = 2, 4096
CPU_BLOCK = 1 << 16  # weights that `block_product` converts at once: 256 KiB in float32


def multiply(x: jax.Array, kernel_co: jax.Array, inputs: int) -> jax.Array:
    """The product of rows and an int8 kernel, summed in float32.

    Args:
      x: (..., *c), rows.
      kernel_co: int8.
      inputs: number of axes of c.

    Returns:
      float32 (..., *o).
    """

    def dot(x, kernel_co):
        contracted = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
        return jax.lax.dot_general(
            x,
            kernel_co.astype(x.dtype),
            (contracted, ((), ())),
            preferred_element_type=jnp.float32,
        )

    def multiply_row(x, kernel_co):
        c = math.prod(kernel_co.shape[:inputs])
        y_o = row_product(x.reshape(c), kernel_co.reshape(c, -1).T)
        return y_o.reshape(*x.shape[:-inputs], *kernel_co.shape[inputs:])

    def multiply_blocks(x, kernel_co):
        c, out_shape = math.prod(kernel_co.shape[:inputs]), kernel_co.shape[inputs:]
        x_rc = x.reshape(-1, c)
        y_ro = block_product(x_rc, kernel_co.reshape(c, -1))
        return y_ro.reshape(*x.shape[:-inputs], *out_shape)

    is_row = x.size == math.prod(kernel_co.shape[:inputs])
    on_gpu = multiply_row if is_row and has_row_kernel(kernel_co, inputs) else dot
    return jax.lax.platform_dependent(x, kernel_co, cpu=multiply_blocks, cuda=on_gpu, default=dot)


def block_product(x_rc: jax.Array, kernel_co: jax.Array) -> jax.Array:
    """The product of rows and an int8 kernel on a CPU; float32 (r, o).

    A block of input channels is converted at a time, which stays in the cache. XLA's own product
    converts the whole kernel in memory, which takes ten times as long.

    Args:
      x_rc: float rows.
      kernel_co: int8.
    """
    inputs, outputs = kernel_co.shape
    largest = max(CPU_BLOCK // outputs, 16)
    size = max(n for n in range(1, min(largest, inputs) + 1) if inputs % n == 0)

    def add_block(i, sums_ro):
        x_rn = jax.lax.dynamic_slice_in_dim(x_rc, i * size, size, axis=1)
        kernel_no = jax.lax.dynamic_slice_in_dim(kernel_co, i * size, size).astype(x_rc.dtype)
        return sums_ro + jnp.dot(x_rn, kernel_no, preferred_element_type=jnp.float32)

    zeros_ro = jnp.zeros((len(x_rc), outputs), jnp.float32)
    return jax.lax.fori_loop(0, inputs // size, add_block, zeros_ro)


def has_row_kernel(kernel_co: jax.Array, inputs: int) -> bool:
    """Whether `row_product` works on this device: a GPU of compute capability 8, or newer."""
    if not devices.is_modern_gpu() or jax.sharding.get_abstract_mesh().size > 1:
        return False
    return math.prod(kernel_co.shape[inputs:]) % BLOCK_O == 0


def row_product(x_c: jax.Array, kernel_oc: jax.Array, interpret: bool = False) -> jax.Array:
    """The product of one row and an int8 kernel, by a Pallas kernel for GPUs; float32 (o,).

    XLA's own product reads the int8 kernel at a third of the memory's bandwidth.

    Args:
      x_c: the row.
      kernel_oc: int8; the number of output channels is a multiple of `BLOCK_O`.
      interpret: runs on any device, slowly, for tests.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    outputs, inputs = kernel_oc.shape

    def sum_products(x_ref, kernel_ref, y_ref):
        def add_block(i, sums_oc):
            block = pl.ds(i * BLOCK_C, BLOCK_C)
            is_input_c = i * BLOCK_C + jnp.arange(BLOCK_C) < inputs
            is_input_oc = jnp.broadcast_to(is_input_c, (BLOCK_O, BLOCK_C))
            x_c = triton.load(x_ref.at[block], mask=is_input_c, other=0)
            w_oc = triton.load(kernel_ref.at[:, block], mask=is_input_oc, other=0)
            return sums_oc + x_c.astype(jnp.float32) * w_oc.astype(jnp.float32)

        zeros_oc = jnp.zeros((BLOCK_O, BLOCK_C), jnp.float32)
        blocks = -(-inputs // BLOCK_C)
        y_ref[...] = jnp.sum(jax.lax.fori_loop(0, blocks, add_block, zeros_oc), axis=1)

    return pl.pallas_call(
        sum_products,
        grid=(outputs // BLOCK_O,),
        in_specs=[
            pl.BlockSpec((inputs,), lambda i: (0,)),
            pl.BlockSpec((BLOCK_O, inputs), lambda i: (i, 0)),
        ],
        out_specs=pl.BlockSpec((BLOCK_O,), lambda i: (i,)),
        out_shape=jax.ShapeDtypeStruct((outputs,), jnp.float32),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
    )(x_c, kernel_oc)


class Int8Dense(nn.Module):
    """A linear layer with an int8 kernel and a float32 scale for each output channel.

    Attributes:
      out_shape: shape of the output channels.
      axis: the axes of the input that are its channels, the last ones.
      dtype: of the input and the result; products are summed in float32.
      names: logical axes of the kernel.
      use_bias: adds a bias, of `param_dtype`.
    """

    out_shape: tuple[int, ...]
    axis: tuple[int, ...]
    dtype: Any
    param_dtype: Any
    names: tuple[str, ...]
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        axes = tuple(range(len(self.axis)))
        shape = x.shape[-len(axes) :] + self.out_shape
        out_names = self.names[len(axes) :]

        def param(name, init, names, shape, dtype):
            return self.param(name, nn.with_logical_partitioning(init, names), shape, dtype)

        kernel_co = param("kernel", nn.initializers.zeros, self.names, shape, jnp.int8)
        scale_o = param("scale", nn.initializers.ones, out_names, self.out_shape, jnp.float32)
        y = multiply(x.astype(self.dtype), kernel_co, len(axes))
        y = (y * scale_o).astype(self.dtype)
        if self.use_bias:
            zeros = nn.initializers.zeros
            y += param("bias", zeros, out_names, self.out_shape, self.param_dtype).astype(y.dtype)
        return y


def quantize(kernel_co: jax.Array, inputs: int) -> dict[str, jax.Array]:
    """Rounds a kernel to int8, with a scale for each output channel.

    Args:
      kernel_co: float.
      inputs: number of its first axes that are input channels.

    Returns:
      {"kernel": int8 (*c, *o), "scale": float32 (*o)}; the largest absolute value of an output
      channel becomes 127.
    """
    kernel_co = kernel_co.astype(jnp.float32)
    scale_o = jnp.abs(kernel_co).max(axis=tuple(range(inputs))) / 127
    scale_o = jnp.where(scale_o == 0, 1, scale_o)  # a channel of zeros
    return {"kernel": jnp.round(kernel_co / scale_o).astype(jnp.int8), "scale": scale_o}


def lay_out(kernel: Any, order: tuple[int, ...]) -> Any:
    """The same array with another order of its axes in memory.

    Args:
      kernel: on a device or sharded; or a `jax.ShapeDtypeStruct` with a sharding.
      order: its axes, the slowest first.
    """
    place = Format(Layout(order), kernel.sharding)
    if isinstance(kernel, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(kernel.shape, kernel.dtype, sharding=place)
    return jax.device_put(kernel, place)
