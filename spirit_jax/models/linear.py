"""Linear layers for generation: int8 weights, and orders of axes that are fast.

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
CPU_BLOCK = 1 << 16  # weights that `product_of_outputs` converts at once: 256 KiB in float32
CPU_LANES, CPU_CHANNELS = 32, 2048  # input channels of a vector, and of a loop, of `_int8_row`


def multiply(x: jax.Array, kernel: jax.Array, inputs: int, outputs_first: bool) -> jax.Array:
    """The product of rows and a kernel, summed in float32.

    Args:
      x: (..., *c), rows.
      kernel: (*c, *o), or (*o, *c) if `outputs_first`; int8, or a float dtype.
      inputs: number of axes of c.
      outputs_first: the order of the kernel's axes; see `product_of_outputs`.

    Returns:
      float32 (..., *o).
    """
    if outputs_first:
        out_shape = kernel.shape[: kernel.ndim - inputs]
        c = math.prod(kernel.shape[kernel.ndim - inputs :])
        y_ro = product_of_outputs(x.reshape(-1, c), kernel.reshape(-1, c))
        return y_ro.reshape(*x.shape[: x.ndim - inputs], *out_shape)

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

    if kernel.dtype != jnp.int8:
        return dot(x, kernel)
    is_row = x.size == math.prod(kernel.shape[:inputs])
    on_gpu = multiply_row if is_row and has_row_kernel(kernel, inputs) else dot
    return jax.lax.platform_dependent(x, kernel, cuda=on_gpu, default=dot)


def product_of_outputs(x_rc: jax.Array, kernel_oc: jax.Array) -> jax.Array:
    """The product of rows and a kernel in the order that is fastest on a CPU; float32 (r, o).

    XLA multiplies a few rows several times as fast when the kernel is the left operand, with the
    input channels contiguous in memory. An int8 kernel is converted in blocks of output channels
    that fit in the processor's cache; XLA's product would write the whole converted kernel to
    memory.

    Args:
      x_rc: float rows.
      kernel_oc: int8, or a float dtype.
    """

    def multiply_block(kernel_nc):
        product_nr = jax.lax.dot_general(
            kernel_nc.astype(x_rc.dtype),
            x_rc,
            (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        # Without the barrier XLA swaps the operands to save the transposition.
        return jax.lax.optimization_barrier(product_nr)

    outputs, inputs = kernel_oc.shape
    if kernel_oc.dtype != jnp.int8:
        return multiply_block(kernel_oc).T
    if len(x_rc) == 1 and inputs % CPU_LANES == 0:
        return _int8_row(x_rc[0], kernel_oc)[None]
    largest = max(CPU_BLOCK // inputs, 16)
    size = max(n for n in range(1, min(largest, outputs) + 1) if outputs % n == 0)

    def write_block(i, y_or):
        kernel_nc = jax.lax.dynamic_slice_in_dim(kernel_oc, i * size, size)
        return jax.lax.dynamic_update_slice_in_dim(y_or, multiply_block(kernel_nc), i * size, 0)

    zeros_or = jnp.zeros((outputs, len(x_rc)), jnp.float32)
    return jax.lax.fori_loop(0, outputs // size, write_block, zeros_or).T


def _int8_row(x_c: jax.Array, kernel_oc: jax.Array) -> jax.Array:
    """The product of one row and an int8 kernel on a CPU; float32 (o,).

    The sum over channels is written out, for `CPU_LANES` neighbouring channels at a time. XLA
    compiles it to one loop of vector instructions, in which the converted kernel stays in
    registers. It does not vectorise a sum over the last axis.
    """
    x_c = x_c.astype(jnp.float32)
    outputs, inputs = kernel_oc.shape
    sums_on = jnp.zeros((outputs, CPU_LANES), jnp.float32)
    for start in range(0, inputs, CPU_LANES):
        if start % CPU_CHANNELS == 0:
            sums_on = jax.lax.optimization_barrier(sums_on)  # bounds the size of the loop
        lanes = slice(start, start + CPU_LANES)
        sums_on += kernel_oc[:, lanes].astype(jnp.float32) * x_c[lanes]
    # Without the barrier and with `sum` XLA would undo this.
    return jax.lax.optimization_barrier(sums_on) @ jnp.ones(CPU_LANES)


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


class DecodingDense(nn.Module):
    """A linear layer in the forms for generation: int8 weights, or output channels first.

    Attributes:
      out_shape: shape of the output channels.
      axis: the axes of the input that are its channels, the last ones.
      dtype: of the input and the result; products are summed in float32.
      names: logical axes of a kernel of (*c, *o).
      use_bias: adds a bias, of `param_dtype`.
      int8: the kernel is int8, with a float32 scale for each output channel.
      outputs_first: the kernel is (*o, *c); see `product_of_outputs`.
    """

    out_shape: tuple[int, ...]
    axis: tuple[int, ...]
    dtype: Any
    param_dtype: Any
    names: tuple[str, ...]
    use_bias: bool = False
    int8: bool = False
    outputs_first: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = len(self.axis)
        in_shape, in_names = x.shape[-inputs:], self.names[:inputs]
        out_names = self.names[inputs:]

        def param(name, init, names, shape, dtype):
            return self.param(name, nn.with_logical_partitioning(init, names), shape, dtype)

        shape, names = in_shape + self.out_shape, self.names
        if self.outputs_first:
            shape, names = self.out_shape + in_shape, out_names + in_names
        dtype = jnp.int8 if self.int8 else self.param_dtype
        kernel = param("kernel", nn.initializers.zeros, names, shape, dtype)
        y = multiply(x.astype(self.dtype), kernel, inputs, self.outputs_first)
        if self.int8:
            ones = nn.initializers.ones
            y *= param("scale", ones, out_names, self.out_shape, jnp.float32)
        y = y.astype(self.dtype)
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
