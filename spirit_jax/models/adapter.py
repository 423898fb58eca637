"""Language adapters: a small bottleneck network after every transformer layer.

Letters: b batch, t time, d model width.
"""

import jax
from flax import linen as nn

NORM_EPS = 1e-5  # independent of the network's other norms


class Adapter(nn.Module):
    """A language adapter (MMS, arXiv 2305.13516): layer norm, linear, ReLU, linear.

    Attributes:
      size: width of the bottleneck.
      precision: see `TrunkConfig`.
    """

    size: int
    precision: str = "highest"

    @nn.compact
    def __call__(self, x_btd: jax.Array) -> jax.Array:
        y_btd = nn.LayerNorm(epsilon=NORM_EPS, use_fast_variance=False, name="norm")(x_btd)
        narrow = nn.Dense(self.size, precision=self.precision, name="narrow")
        widen = nn.Dense(x_btd.shape[-1], precision=self.precision, name="widen")
        return widen(nn.relu(narrow(y_btd)))
