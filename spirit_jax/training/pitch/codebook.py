"""A codebook that is updated by exponential moving averages instead of gradients.

Letters: n vectors, d their width, v codes.

After van den Oord et al. (arXiv 1711.00937, appendix A.1); dead codes are re-initialised with
vectors of the batch, as in Jukebox (arXiv 2005.00341, section 3.1).
"""

import jax
import jax.numpy as jnp
from flax import struct

from spirit_jax.training.configs import EmaConfig


@struct.dataclass
class Codebook:
    """A codebook with its moving averages.

    Attributes:
      codes_vd: float32, the codes.
      sums_vd: float32, moving average of the sum of the vectors assigned to each code in a step.
      counts_v: float32, moving average of their number; 0 in a new codebook, so that its codes are
        re-initialised with vectors of the first step.
    """

    codes_vd: jax.Array
    sums_vd: jax.Array
    counts_v: jax.Array


def start(codes_vd: jax.Array, count: float = 0.0) -> Codebook:
    """A codebook with initial codes; `count` is the initial average of assigned vectors."""
    counts_v = jnp.full(codes_vd.shape[0], count, jnp.float32)
    return Codebook(codes_vd, codes_vd * counts_v[:, None], counts_v)


def update(
    codebook: Codebook,
    vectors_nd: jax.Array,
    ids_n: jax.Array,
    mask_n: jax.Array,
    key: jax.Array,
    config: EmaConfig,
) -> tuple[Codebook, jax.Array]:
    """Updates a codebook with the vectors of a step.

    A code is its average sum divided by its average count. A dead code, whose count is below
    `restart_below`, is re-initialised with a vector of this step drawn at random, and with the mean
    count of all codes, so that it is not dead in the next step.

    Args:
      codebook: before the step.
      vectors_nd: float32, encoder outputs.
      ids_n: int32, the assigned code of each vector.
      mask_n: float32, 0 for padding.
      key: of the random draws.
      config: decay and threshold of dead codes.

    Returns:
      The codebook after the step, and the number of re-initialised codes.
    """
    size = len(codebook.counts_v)
    one_hot_nv = jax.nn.one_hot(ids_n, size) * mask_n[:, None]
    new_counts_v = one_hot_nv.sum(axis=0)
    new_sums_vd = jnp.einsum("nv,nd->vd", one_hot_nv, vectors_nd, precision="highest")
    decay = config.decay
    counts_v = decay * codebook.counts_v + (1 - decay) * new_counts_v
    sums_vd = decay * codebook.sums_vd + (1 - decay) * new_sums_vd

    total = mask_n.sum()
    drawn_v = draw(key, mask_n, size)
    dead_v = counts_v < config.restart_below
    counts_v = jnp.where(dead_v, total / size, counts_v)
    sums_vd = jnp.where(dead_v[:, None], vectors_nd[drawn_v] * (total / size), sums_vd)
    # A code to which no vector was ever assigned does not change.
    codes_vd = jnp.where(
        counts_v[:, None] > 0, sums_vd / jnp.maximum(counts_v, 1e-12)[:, None], codebook.codes_vd
    )
    return Codebook(codes_vd, sums_vd, counts_v), dead_v.sum()


def draw(key: jax.Array, mask_n: jax.Array, size: int) -> jax.Array:
    """Draws `size` indices of unmasked vectors, with replacement."""
    weights_n = mask_n / jnp.maximum(mask_n.sum(), 1)
    return jax.random.choice(key, len(mask_n), (size,), p=weights_n)
