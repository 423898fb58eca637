"""What suits a network to a language: a narrow network beside every layer.

Letters: b batch, t time, d model width.
"""

import jax
from flax import linen as nn

NORM_EPS = 1e-5  # whatever that of the network's other norms is


class Adapter(nn.Module):
    """What a language adds to a layer's output (MMS, arXiv 2305.13516): norm, linear, ReLU, linear.

    `size` is the width between the two linear layers; `precision` is as in `TrunkConfig`.
    """

    size: int
    precision: str = "highest"

    @nn.compact
    def __call__(self, x_btd: jax.Array) -> jax.Array:
        y_btd = nn.LayerNorm(epsilon=NORM_EPS, use_fast_variance=False, name="norm")(x_btd)
        narrow = nn.Dense(self.size, precision=self.precision, name="narrow")
        widen = nn.Dense(x_btd.shape[-1], precision=self.precision, name="widen")
        return widen(nn.relu(narrow(y_btd)))
