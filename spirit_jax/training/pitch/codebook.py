"""A codebook that follows the vectors assigned to it, by moving averages instead of gradients.

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
    """The codes and what moves them.

    Attributes:
      codes_vd: float32, the codes.
      sums_vd: moving average of the sum of the vectors that a code is given in a step.
      counts_v: moving average of their number; 0 in a new codebook, so that vectors of the first
        step take the place of its codes.
    """

    codes_vd: jax.Array
    sums_vd: jax.Array
    counts_v: jax.Array


def start(codes_vd: jax.Array, count: float = 0.0) -> Codebook:
    """A codebook of given codes, as if each had been given `count` vectors a step."""
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
    """The codebook after a step.

    Sums and counts move by `decay` towards those of this step, and a code is the one divided by
    the other. A code whose count is then below `restart_below` becomes a vector of this step drawn
    at random, with the count of a code of average use, so that it has time to be used.

    Args:
      codebook: before.
      vectors_nd: what was quantized.
      ids_n: int32, the code that each was given.
      mask_n: which of them count.
      key: of the draws.
      config: how it moves.

    Returns:
      The codebook, and the number of codes that were re-initialised.
    """
    size = len(codebook.counts_v)
    one_hot_nv = jax.nn.one_hot(ids_n, size) * mask_n[:, None]
    new_counts_v = one_hot_nv.sum(axis=0)
    new_sums_vd = jnp.einsum("nv,nd->vd", one_hot_nv, vectors_nd, precision="highest")
    keep = config.decay
    counts_v = keep * codebook.counts_v + (1 - keep) * new_counts_v
    sums_vd = keep * codebook.sums_vd + (1 - keep) * new_sums_vd

    total = mask_n.sum()
    drawn_v = draw(key, mask_n, size)
    fresh_v = counts_v < config.restart_below
    counts_v = jnp.where(fresh_v, total / size, counts_v)
    sums_vd = jnp.where(fresh_v[:, None], vectors_nd[drawn_v] * (total / size), sums_vd)
    # A code that was never given a vector stays where it is.
    codes_vd = jnp.where(
        counts_v[:, None] > 0, sums_vd / jnp.maximum(counts_v, 1e-12)[:, None], codebook.codes_vd
    )
    return Codebook(codes_vd, sums_vd, counts_v), fresh_v.sum()


def draw(key: jax.Array, mask_n: jax.Array, size: int) -> jax.Array:
    """Places of `size` vectors that count, drawn at random with replacement."""
    weights_n = mask_n / jnp.maximum(mask_n.sum(), 1)
    return jax.random.choice(key, len(mask_n), (size,), p=weights_n)
