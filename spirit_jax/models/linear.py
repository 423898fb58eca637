"""Linear layers for decoding: int8 weights, and products of a single row.

Axes: c input channels, o output channels; either may be several axes of a kernel.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental.layout import Format, Layout


def dot_general(
    lhs: jax.Array,
    rhs: jax.Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """`jax.lax.dot_general` of rows and a kernel, which on a GPU is fast for a single row too.

    A GPU multiplies one row as sums over products: with `lay_out`, that reads the kernel at 0.9 of
    the memory's bandwidth, and int8 kernels without a converted copy.

    Args:
      lhs: (..., *c), rows.
      rhs: (*c, *o), a kernel.
      dimension_numbers, precision, preferred_element_type: see `jax.lax.dot_general`; the last axes
        of `lhs` and the first axes of `rhs` are contracted.
    """
    (lhs_axes, rhs_axes), _ = dimension_numbers
    dtype = preferred_element_type or lhs.dtype
    in_shape, out_shape = rhs.shape[: len(rhs_axes)], rhs.shape[len(rhs_axes) :]
    rows = lhs.shape[: lhs.ndim - len(lhs_axes)]

    def dot(lhs, rhs):
        return jax.lax.dot_general(
            lhs, rhs.astype(lhs.dtype), dimension_numbers, precision, preferred_element_type
        )

    def sum_products(lhs, rhs):
        x_co = lhs.reshape(*in_shape, *(1,) * len(out_shape)).astype(jnp.float32)
        y_o = jnp.sum(x_co * rhs.astype(jnp.float32), axis=tuple(range(len(in_shape))))
        return y_o.reshape(*rows, *out_shape).astype(dtype)

    if math.prod(rows) > 1:
        return dot(lhs, rhs)
    return jax.lax.platform_dependent(lhs, rhs, cuda=sum_products, default=dot)


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
        numbers = ((tuple(axis + x.ndim for axis in self.axis), axes), ((), ()))
        y = dot_general(
            x.astype(self.dtype), kernel_co, numbers, preferred_element_type=jnp.float32
        )
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
    import qwix  # only here: it takes a second to import

    outputs = tuple(range(inputs, kernel_co.ndim))
    rounded = qwix.quantize(kernel_co.astype(jnp.float32), jnp.int8, channelwise_axes=outputs)
    scale_o = rounded.scale.reshape(kernel_co.shape[inputs:]).astype(jnp.float32)
    return {"kernel": rounded.qvalue, "scale": scale_o}


def lay_out(kernel: jax.Array, inputs: Sequence[int]) -> jax.Array:
    """The same array with the weights of each output channel side by side in memory.

    Args:
      kernel: on a device or sharded.
      inputs: its axes that are input channels.
    """
    outputs = tuple(axis for axis in range(kernel.ndim) if axis not in inputs)
    return jax.device_put(kernel, Format(Layout(outputs + tuple(inputs)), kernel.sharding))
