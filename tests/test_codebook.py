"""The codebook with exponential moving averages: its formula, restarts, and devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spirit_jax import sharding
from spirit_jax.errors import InputError
from spirit_jax.training.configs import EmaConfig
from spirit_jax.training.pitch import codebook as ema
from spirit_jax.training.recipe import code_usage

CODES, WIDTH, ROWS = 6, 3, 40


def make_batch(seed):
    """(vectors, ids, mask); no vector has code 0."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    mask = (rng.random(ROWS) < 0.8).astype(np.float32)
    return vectors, rng.integers(1, CODES, ROWS).astype(np.int32), mask


def first_codes():
    return jnp.asarray(np.random.default_rng(9).standard_normal((CODES, WIDTH)), jnp.float32)


def run(steps, config, to_device=jnp.asarray):
    update = jax.jit(functools.partial(ema.update, config=config))
    codebook, restarts = ema.start(first_codes(), 2.0), []
    for step in range(steps):
        batch = [to_device(array) for array in make_batch(step)]
        codebook, restarted = update(codebook, *batch, jax.random.key(step))
        restarts.append(int(restarted))
    return codebook, restarts


def test_codes_follow_the_published_formula():
    decay, steps = 0.9, 5
    sums, counts = np.array(first_codes(), np.float64) * 2, np.full(CODES, 2.0)
    for step in range(steps):
        vectors, ids, mask = make_batch(step)
        for code in range(CODES):
            assigned = vectors[(ids == code) & (mask > 0)]
            sums[code] = decay * sums[code] + (1 - decay) * assigned.sum(0)
            counts[code] = decay * counts[code] + (1 - decay) * len(assigned)
    codebook, restarts = run(steps, EmaConfig(decay, restart_below=0))
    np.testing.assert_allclose(codebook.codes_vd, sums / counts[:, None], rtol=1e-5)
    np.testing.assert_allclose(codebook.counts_v, counts, rtol=1e-5)
    assert restarts == [0] * steps


def test_rarely_used_codes_restart_at_vectors_of_the_batch():
    """The count of code 0 is 2 x 0.9 ** n after n steps, which is below 1.5 after three."""
    codebook, restarts = run(3, EmaConfig(0.9, restart_below=1.5))
    without, _ = run(3, EmaConfig(0.9, restart_below=0))
    assert restarts == [0, 0, 1]
    vectors, _, mask = make_batch(2)
    distances = np.abs(vectors - np.asarray(codebook.codes_vd[0])).sum(1)
    assert distances.min() < 1e-6 and mask[distances.argmin()] == 1
    np.testing.assert_allclose(codebook.counts_v[0], mask.sum() / CODES, rtol=1e-6)
    np.testing.assert_array_equal(codebook.codes_vd[1:], without.codes_vd[1:])


def test_restarts_draw_from_all_vectors_except_padding():
    mask = jnp.arange(ROWS) % 4 == 0
    indices = ema.draw(jax.random.key(0), mask, 500)
    assert set(indices.tolist()) == set(range(0, ROWS, 4))


def test_a_new_codebook_takes_its_codes_from_the_first_batch():
    vectors, ids, mask = make_batch(0)
    codebook, restarted = ema.update(
        ema.start(first_codes()), vectors, ids, mask, jax.random.key(0), EmaConfig()
    )
    assert restarted == CODES
    assert all((np.abs(vectors - code).max(1) < 1e-5).any() for code in codebook.codes_vd)


def test_two_devices_give_the_codes_of_one():
    mesh = sharding.make_mesh(fsdp=2, devices=jax.devices()[:2])
    config = EmaConfig(0.9, restart_below=1.5)
    single, restarts = run(6, config)
    with jax.set_mesh(mesh):
        shared, restarts_shared = run(6, config, lambda array: sharding.place_batch(array, mesh))
    assert restarts == restarts_shared and sum(restarts) > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), single, shared)


def test_code_usage_and_perplexity():
    used, perplexity = code_usage(jnp.array([5.0, 5, 5, 5, 0, 0, 0, 0]))
    assert used == 0.5
    np.testing.assert_allclose(perplexity, 4, rtol=1e-6)


@pytest.mark.parametrize("settings", [{"decay": 1.0}, {"restart_below": -1.0}])
def test_invalid_settings_are_rejected(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        EmaConfig(**settings)
