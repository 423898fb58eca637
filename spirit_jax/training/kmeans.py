"""k-means in JAX with bounded memory.

Letters: n vectors, d their width, v centroids, c vectors in a chunk.

Lloyd's algorithm; centroids are initialised by k-means++ (Arthur and Vassilvitskii, 2007) or at
random. The result depends on the vectors and the seed only.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from spirit_jax.errors import InputError
from spirit_jax.training.configs import KMeansConfig

CHUNK = 8192  # vectors whose distances to all centroids are in memory at once


def fit(vectors_nd: np.ndarray, clusters: int, config: KMeansConfig) -> np.ndarray:
    """Fits k-means to vectors.

    Args:
      vectors_nd: float32 (n, d); all are used, so draw the sample of `config.frames` before.
      clusters: number of centroids.
      config: initialisation, iterations and seed.

    Returns:
      Centroids, float32 (clusters, d).

    Raises:
      InputError: there are fewer vectors than centroids.
    """
    if len(vectors_nd) < clusters:
        raise InputError(f"{len(vectors_nd)} frames cannot be put into {clusters} clusters.")
    chunks_kcd, true_kc = _split(np.asarray(vectors_nd, np.float32), CHUNK)
    key = jax.random.key(config.seed)
    return np.asarray(_fit(chunks_kcd, true_kc, key, config.iterations, clusters, config.start))


def assign(vectors_nd: np.ndarray, centroids_vd: np.ndarray) -> np.ndarray:
    """The nearest centroid of every vector, int32 (n,)."""
    if not len(vectors_nd):
        return np.zeros(0, np.int32)
    chunks_kcd, _ = _split(np.asarray(vectors_nd, np.float32), min(CHUNK, _power(len(vectors_nd))))
    return np.asarray(_assign(chunks_kcd, centroids_vd)).ravel()[: len(vectors_nd)]


def nearest(vectors_cd: jax.Array, centroids_vd: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each vector's nearest centroid, int32, and the squared distance to it."""
    products_cv = jnp.einsum("cd,vd->cv", vectors_cd, centroids_vd, precision="highest")
    scores_cv = jnp.square(centroids_vd).sum(-1) - 2 * products_cv
    squares_c = jnp.square(vectors_cd).sum(-1)
    nearest_c = jnp.argmin(scores_cv, axis=-1).astype(jnp.int32)
    return nearest_c, jnp.maximum(scores_cv.min(axis=-1) + squares_c, 0)


@jax.jit
def _assign(chunks_kcd: jax.Array, centroids_vd: jax.Array) -> jax.Array:
    return jax.lax.map(lambda chunk_cd: nearest(chunk_cd, centroids_vd)[0], chunks_kcd)


@functools.partial(jax.jit, static_argnames=("clusters", "start"))
def _fit(chunks_kcd, true_kc, key, iterations, clusters: int, start: str) -> jax.Array:
    start_key, reseed_key = jax.random.split(key)
    draw_start = _spread_start if start == "k-means++" else _draw
    centroids_vd = draw_start(chunks_kcd, true_kc, clusters, start_key)
    labels_kc = jnp.full(true_kc.shape, -1)

    def unfinished(carry):
        number, _, _, changed = carry
        return changed & (number < iterations)

    def iterate(carry):
        number, centroids_vd, before_kc, _ = carry
        labels_kc, sums_vd, counts_v, distances_kc = _gather(chunks_kcd, true_kc, centroids_vd)
        # Empty clusters are re-initialised with vectors that are far from their centroids.
        key = jax.random.fold_in(reseed_key, number)
        far_vd = _draw(chunks_kcd, distances_kc, clusters, key)
        empty_v1 = (counts_v == 0)[:, None]
        means_vd = sums_vd / jnp.maximum(counts_v, 1)[:, None]
        changed = (labels_kc != before_kc).any() | empty_v1.any()
        return number + 1, jnp.where(empty_v1, far_vd, means_vd), labels_kc, changed

    return jax.lax.while_loop(unfinished, iterate, (0, centroids_vd, labels_kc, True))[1]


def _gather(chunks_kcd, true_kc, centroids_vd):
    """Labels, sums and counts of each cluster, and squared distances."""

    def add(carry, chunk):
        vectors_cd, true_c = chunk
        sums_vd, counts_v = carry
        labels_c, distances_c = nearest(vectors_cd, centroids_vd)
        one_hot_cv = jax.nn.one_hot(labels_c, len(centroids_vd)) * true_c[:, None]
        sums_vd += jnp.einsum("cv,cd->vd", one_hot_cv, vectors_cd, precision="highest")
        return (sums_vd, counts_v + one_hot_cv.sum(0)), (labels_c, distances_c * true_c)

    zeros = jnp.zeros_like(centroids_vd), jnp.zeros(len(centroids_vd))
    (sums_vd, counts_v), (labels_kc, distances_kc) = jax.lax.scan(add, zeros, (chunks_kcd, true_kc))
    return labels_kc, sums_vd, counts_v, distances_kc


def _draw(chunks_kcd, weights_kc, count: int, key: jax.Array) -> jax.Array:
    """`count` vectors drawn without replacement, with probabilities proportional to weights."""
    noise_n = jax.random.gumbel(key, (weights_kc.size,))
    _, places = jax.lax.top_k(jnp.log(weights_kc.ravel()) + noise_n, count)
    return chunks_kcd.reshape(-1, chunks_kcd.shape[-1])[places]


def _spread_start(chunks_kcd, true_kc, clusters: int, key: jax.Array) -> jax.Array:
    """k-means++: draws each centroid with probability by squared distance to those before."""
    first_1d = _draw(chunks_kcd, true_kc, 1, key)
    centroids_vd = jnp.tile(first_1d, (clusters, 1))

    def distances(centroid_d):
        def of_chunk(chunk):
            vectors_cd, true_c = chunk
            return jnp.square(vectors_cd - centroid_d).sum(-1) * true_c

        return jax.lax.map(of_chunk, (chunks_kcd, true_kc))

    def add(number, carry):
        centroids_vd, least_kc = carry
        # If all distances are 0 (fewer distinct vectors than centroids), draw any vector.
        weights_kc = jnp.where(least_kc.any(), least_kc, true_kc)
        drawn_1d = _draw(chunks_kcd, weights_kc, 1, jax.random.fold_in(key, number))
        least_kc = jnp.minimum(least_kc, distances(drawn_1d[0]))
        return centroids_vd.at[number].set(drawn_1d[0]), least_kc

    return jax.lax.fori_loop(1, clusters, add, (centroids_vd, distances(first_1d[0])))[0]


def _split(vectors_nd: np.ndarray, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    """Zero-padded chunks (k, c, d) of vectors, and a float mask (k, c) that is 0 for padding."""
    count = -(-len(vectors_nd) // chunk)
    rest = count * chunk - len(vectors_nd)
    true_n = np.pad(np.ones(len(vectors_nd), np.float32), (0, rest))
    padded_nd = np.pad(vectors_nd, ((0, rest), (0, 0)))
    return padded_nd.reshape(count, chunk, -1), true_n.reshape(count, chunk)


def _power(size: int) -> int:
    """The next power of two, so that few shapes are compiled."""
    return 1 << (size - 1).bit_length()
