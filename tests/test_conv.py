"""Gradients of `conv1d` equal those of JAX's own convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spirit_jax.models.conv import conv1d


@pytest.mark.parametrize(
    ("frames", "kernel", "padding", "dilation", "stride"),
    [
        (50, 7, (9, 9), 3, 1),
        (50, 2, (1, 1), 1, 1),
        (51, 5, (2, 2), 1, 3),
        (53, 8, (0, 0), 1, 4),
        (50, 3, (0, 0), 1, 2),
        (10, 2, (0, 0), 1, 3),
    ],
)
def test_gradients_match_the_jax_convolution(frames, kernel, padding, dilation, stride):
    x_btc = jax.random.normal(jax.random.key(0), (3, frames, 4))
    kernel_kcd = jax.random.normal(jax.random.key(1), (kernel, 4, 6))

    def library(x_btc, kernel_kcd):
        return jax.lax.conv_general_dilated(
            x_btc,
            kernel_kcd,
            (stride,),
            (padding,),
            rhs_dilation=(dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
            precision="highest",
        )

    def ours(x_btc, kernel_kcd):
        return conv1d(x_btc, kernel_kcd, padding, dilation, stride, "highest")

    def gradients(conv):
        return jax.grad(lambda *args: jnp.sin(conv(*args)).sum(), argnums=(0, 1))(x_btc, kernel_kcd)

    for actual, expected in zip(gradients(ours), gradients(library), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-5)
