"""k-means: finds clear clusters, equals a plain implementation, and depends on the seed only."""

import dataclasses
import itertools

import numpy as np
import pytest

from spirit_jax.errors import InputError
from spirit_jax.training import kmeans
from spirit_jax.training.configs import STARTS, KMeansConfig

CONFIG = KMeansConfig()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(kmeans, "CHUNK", 64)


def make_blobs(each=40):
    """The corners of a cube, and vectors around them."""
    rng = np.random.default_rng(0)
    centers = np.array(list(itertools.product([-10, 10], repeat=3)))
    points = centers.repeat(each, axis=0) + 0.1 * rng.normal(size=(len(centers) * each, 3))
    return centers, rng.permutation(points).astype(np.float32)


def lloyd(points, centroids, iterations):
    """Lloyd's algorithm in plain NumPy."""
    for _ in range(iterations):
        labels = np.square(points[:, None] - centroids).sum(-1).argmin(1)
        centroids = np.stack([points[labels == k].mean(0) for k in range(len(centroids))])
    return centroids


def distortion(points, centroids):
    return np.square(points[:, None] - centroids).sum(-1).min(1).mean()


@pytest.mark.parametrize("seed", range(3))
def test_clear_clusters_are_recovered(seed):
    centers, points = make_blobs()
    centroids = kmeans.fit(points, 8, dataclasses.replace(CONFIG, seed=seed))
    distances = np.square(centers[:, None] - centroids).sum(-1)
    assert sorted(distances.argmin(1)) == list(range(8)) and distances.min(1).max() < 0.01


def test_iterations_match_lloyds_algorithm():
    points = np.random.default_rng(1).normal(size=(301, 5)).astype(np.float32)
    first = kmeans.fit(points, 6, dataclasses.replace(CONFIG, iterations=1))
    fourth = kmeans.fit(points, 6, dataclasses.replace(CONFIG, iterations=4))
    np.testing.assert_allclose(fourth, lloyd(points, first, 3), atol=1e-5)
    assert distortion(points, fourth) < distortion(points, first)


def test_the_chunk_size_does_not_change_the_assignment(monkeypatch):
    points = np.random.default_rng(2).normal(size=(257, 4)).astype(np.float32)
    centroids = np.random.default_rng(3).normal(size=(9, 4)).astype(np.float32)
    expected = np.square(points[:, None] - centroids).sum(-1).argmin(1)
    for chunk in (16, 100, 1000):
        monkeypatch.setattr(kmeans, "CHUNK", chunk)
        labels = kmeans.assign(points, centroids)
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, expected)
    assert kmeans.assign(points[:0], centroids).shape == (0,)


def test_an_empty_cluster_restarts_at_a_far_vector():
    """Random starts put two centroids into one blob; only a restart moves one to the other."""
    points = np.zeros((400, 2), np.float32)
    points[:4] = [[50, 0], [0, 50], [-50, 0], [0, -50]]
    config = dataclasses.replace(CONFIG, start="random")
    centroids = kmeans.fit(points, 5, config)
    assert distortion(points, centroids) < 1e-6


def test_the_seed_determines_the_centroids():
    points = np.random.default_rng(4).normal(size=(200, 3)).astype(np.float32)
    centroids = kmeans.fit(points, 20, CONFIG)
    np.testing.assert_array_equal(centroids, kmeans.fit(points, 20, CONFIG))
    assert not np.array_equal(
        centroids, kmeans.fit(points, 20, dataclasses.replace(CONFIG, seed=1))
    )


def test_kmeans_plus_plus_starts_beat_random_starts():
    _, points = make_blobs()
    costs = {}
    for start in STARTS:
        configs = [KMeansConfig(start=start, iterations=1, seed=seed) for seed in range(5)]
        costs[start] = np.mean([distortion(points, kmeans.fit(points, 8, c)) for c in configs])
    assert costs["k-means++"] < costs["random"]


def test_more_clusters_than_vectors_and_invalid_settings_are_rejected():
    with pytest.raises(InputError, match="3 frames cannot be put into 4 clusters"):
        kmeans.fit(np.zeros((3, 2), np.float32), 4, CONFIG)
    with pytest.raises(InputError, match="start is 'best'"):
        KMeansConfig(start="best")
    with pytest.raises(InputError, match="at least 1"):
        KMeansConfig(frames=0)
