"""One-dimensional convolution with fast gradients on a CPU.

Letters: b batch, t time, c channels in, d channels out, k kernel width, s stride.

On a CPU, XLA has a fast path for plain convolutions. The convolutions of its gradients do not use
it and are many times slower. So the gradients are written here as plain convolutions.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

Padding = tuple[int, int]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def conv1d(
    x_btc: jax.Array,
    kernel_kcd: jax.Array,
    padding: Padding = (0, 0),
    dilation: int = 1,
    stride: int = 1,
    precision: str | None = None,
) -> jax.Array:
    """A convolution over time.

    It is computed as a convolution of images of height 1. On a CPU this is up to twice as fast as
    `nn.Conv` for a wide kernel and few channels, since time is XLA's inner loop. (Grouped
    convolutions are slower this way, and strided ones equally fast.)

    Args:
      x_btc: input.
      kernel_kcd: kernel.
      padding: zeros before and after.
      dilation, stride: of the convolution; a gradient needs one of them to be 1.
      precision: a `jax.lax.Precision` name.

    Returns:
      (b, t', d).
    """
    return _convolve(x_btc, kernel_kcd, padding, dilation, stride, precision)


def _convolve(x_btc, kernel_kcd, padding: Padding, dilation: int, stride: int, precision):
    y_b1td = jax.lax.conv_general_dilated(
        x_btc[:, None],
        kernel_kcd[None],
        window_strides=(1, stride),
        padding=((0, 0), padding),
        rhs_dilation=(1, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )
    return y_b1td[:, 0]


def _forward(x_btc, kernel_kcd, *settings):
    return conv1d(x_btc, kernel_kcd, *settings), (x_btc, kernel_kcd)


def _backward(padding: Padding, dilation: int, stride: int, precision, saved, dy_btd):
    settings = padding, dilation, stride, precision
    on_cpu = functools.partial(_plain_gradients, *settings)
    default = functools.partial(_xla_gradients, *settings)
    return jax.lax.platform_dependent(*saved, dy_btd, cpu=on_cpu, default=default)


def _xla_gradients(*settings_and_arrays):
    *settings, x_btc, kernel_kcd, dy_btd = settings_and_arrays
    _, pull = jax.vjp(lambda x, kernel: _convolve(x, kernel, *settings), x_btc, kernel_kcd)
    return pull(dy_btd)


def _plain_gradients(padding: Padding, dilation: int, stride: int, precision, *arrays):
    x_btc, kernel_kcd, dy_btd = arrays
    if stride == 1:
        return _gradients(x_btc, kernel_kcd, dy_btd, padding, dilation, precision)
    if dilation > 1:
        raise NotImplementedError("A convolution with a stride and a dilation has no gradient.")
    # With groups of `stride` frames as channels, it is a convolution without a stride.
    frames, channels = x_btc.shape[1:]
    taps = -(-len(kernel_kcd) // stride)
    size = (
        dy_btd.shape[1] + taps - 1
    ) * stride  # frames that are used, padded to a multiple of the stride
    after = max(size - padding[0] - frames, 0)
    x_btc = jnp.pad(x_btc, ((0, 0), (padding[0], after), (0, 0)))[:, :size]
    missing = taps * stride - len(kernel_kcd)
    wide_kcd = jnp.pad(kernel_kcd, ((0, missing), (0, 0), (0, 0)))
    dx_btc, dkernel_kcd = _gradients(
        x_btc.reshape(len(x_btc), -1, stride * channels),
        wide_kcd.reshape(taps, stride * channels, -1),
        dy_btd,
        (0, 0),
        1,
        precision,
    )
    dx_btc = dx_btc.reshape(x_btc.shape)[:, padding[0] : padding[0] + frames]
    unused = frames - dx_btc.shape[1]
    dx_btc = jnp.pad(dx_btc, ((0, 0), (0, unused), (0, 0)))
    return dx_btc, dkernel_kcd.reshape(wide_kcd.shape)[: len(kernel_kcd)]


def _gradients(x_btc, kernel_kcd, dy_btd, padding: Padding, dilation: int, precision):
    """Gradients with respect to input and kernel, for stride 1."""
    reach = dilation * (len(kernel_kcd) - 1)
    outside = (reach - padding[0], reach - padding[1])
    flipped_kdc = kernel_kcd[::-1].swapaxes(1, 2)
    dx_btc = conv1d(dy_btd, flipped_kdc, outside, dilation, 1, precision)
    # The kernel's gradient is a convolution over time with the batch as input channels. The barrier
    # keeps XLA from fusing padding and transposes into it, which would miss the fast path.
    x_btc = jnp.pad(x_btc, ((0, 0), padding, (0, 0)))
    x_ctb, dy_tbd = jax.lax.optimization_barrier((x_btc.transpose(), dy_btd.swapaxes(0, 1)))
    dkernel_ckd = conv1d(x_ctb, dy_tbd, (0, 0), 1, dilation, precision)
    return dx_btc, dkernel_ckd.swapaxes(0, 1)


conv1d.defvjp(_forward, _backward)


class Conv1d(nn.Module):
    """A `conv1d` layer with bias and "same" padding.

    For an even kernel, the padding before is one frame shorter than after.
    """

    features: int
    kernel_size: int
    dilation: int = 1
    precision: str | None = None

    @nn.compact
    def __call__(self, x_btc: jax.Array) -> jax.Array:
        shape = (self.kernel_size, x_btc.shape[-1], self.features)
        kernel_kcd = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias_d = self.param("bias", nn.initializers.zeros, (self.features,))
        reach = self.dilation * (self.kernel_size - 1)
        padding = (reach // 2, reach - reach // 2)
        return conv1d(x_btc, kernel_kcd, padding, self.dilation, 1, self.precision) + bias_d
