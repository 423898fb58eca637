"""One-dimensional convolution whose gradients are quick on a CPU too.

Letters: b batch, t time, c channels in, d channels out, k kernel width, s stride.

XLA has a fast path for plain convolutions on a CPU, which those it makes for gradients miss: they
take many times as long as the forward pass. So gradients are written here as plain ones.
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
    """A convolution over time, (b, t, c) to (b, t', d); `padding` is before and after.

    It is written as one over images of height 1: on a CPU, XLA then walks along time in its inner
    loop, and a wide kernel over few channels is up to twice as fast as with `nn.Conv`. (A grouped
    one is slower so, and a strided one the same.)
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
    written = functools.partial(_written_gradients, *settings)
    found = functools.partial(_found_gradients, *settings)
    return jax.lax.platform_dependent(*saved, dy_btd, cpu=written, default=found)


def _found_gradients(*settings_and_arrays):
    *settings, x_btc, kernel_kcd, dy_btd = settings_and_arrays
    _, pull = jax.vjp(lambda x, kernel: _convolve(x, kernel, *settings), x_btc, kernel_kcd)
    return pull(dy_btd)


def _written_gradients(padding: Padding, dilation: int, stride: int, precision, *arrays):
    x_btc, kernel_kcd, dy_btd = arrays
    if stride == 1:
        return _gradients(x_btc, kernel_kcd, dy_btd, padding, dilation, precision)
    if dilation > 1:
        raise NotImplementedError("A convolution with a stride and a dilation has no gradient.")
    # Over `stride` frames at a time, as one with as many times the channels, it has no stride.
    frames, channels = x_btc.shape[1:]
    taps = -(-len(kernel_kcd) // stride)
    size = (dy_btd.shape[1] + taps - 1) * stride  # what is seen, and zeros to a multiple
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
    unseen = frames - dx_btc.shape[1]
    dx_btc = jnp.pad(dx_btc, ((0, 0), (0, unseen), (0, 0)))
    return dx_btc, dkernel_kcd.reshape(wide_kcd.shape)[: len(kernel_kcd)]


def _gradients(x_btc, kernel_kcd, dy_btd, padding: Padding, dilation: int, precision):
    """Of a convolution without a stride, by its input and its kernel."""
    reach = dilation * (len(kernel_kcd) - 1)
    outside = (reach - padding[0], reach - padding[1])
    flipped_kdc = kernel_kcd[::-1].swapaxes(1, 2)
    dx_btc = conv1d(dy_btd, flipped_kdc, outside, dilation, 1, precision)
    # Every tap is a sum over b and t: a convolution of every channel, with rows for its channels.
    # XLA would take padding and transposes into it, and leave the fast path.
    x_btc = jnp.pad(x_btc, ((0, 0), padding, (0, 0)))
    seen_ctb, dy_tbd = jax.lax.optimization_barrier((x_btc.transpose(), dy_btd.swapaxes(0, 1)))
    dkernel_ckd = conv1d(seen_ctb, dy_tbd, (0, 0), 1, dilation, precision)
    return dx_btc, dkernel_ckd.swapaxes(0, 1)


conv1d.defvjp(_forward, _backward)


class Conv1d(nn.Module):
    """`conv1d` with a kernel and a bias of its own, as long as its input.

    An even kernel pads one frame less before than after.
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
