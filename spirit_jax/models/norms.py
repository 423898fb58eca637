"""Normalisation layers that several networks share.

Letters: b batch, t time, c channels.
"""

import jax
from flax import linen as nn

from spirit_jax.models.frames import masked_standardize


def layer_norm(eps: float, name: str) -> nn.LayerNorm:
    """A layer norm over channels, in float32."""
    # The fast variance, E[x^2] - E[x]^2, loses precision if the mean is large.
    return nn.LayerNorm(epsilon=eps, use_fast_variance=False, name=name)


class TimeNorm(nn.Module):
    """Normalises each channel over true frames: a group norm with one channel per group."""

    eps: float

    @nn.compact
    def __call__(self, x_btc: jax.Array, mask_bt: jax.Array) -> jax.Array:
        scale_c = self.param("scale", nn.initializers.ones, (x_btc.shape[-1],))
        bias_c = self.param("bias", nn.initializers.zeros, (x_btc.shape[-1],))
        return masked_standardize(x_btc, mask_bt, self.eps) * scale_c + bias_c
