"""The style encoder: pooling over runs of frames, exact batching, and config fields."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spirit_jax import checkpoint
from spirit_jax.models import style
from spirit_jax.models.style import StyleConfig, StyleEncoder
from spirit_jax.models.wav2vec2 import Trunk, TrunkConfig

CONFIG = StyleConfig(
    trunk=TrunkConfig(
        input_norm_eps=1e-7,
        conv_layers=((8, 10, 5), (8, 3, 2)),
        conv_pos=4,
        conv_pos_groups=2,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        ffn_size=12,
    ),
    projection_size=5,
    num_styles=7,
    pool_frames=10,
)


@pytest.fixture(scope="module")
def encoder():
    """(params, jitted function of (wave_bt, lengths_b))."""
    model = StyleEncoder(CONFIG)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 400)), jnp.array([400]))["params"]
    params["projector"]["bias"] += 1.0  # so that pooled padding would change the result
    apply = jax.jit(model.apply)
    return params, lambda wave, lengths: apply({"params": params}, wave, np.int32(lengths))


def random_wave(rows, samples):
    return np.random.default_rng(0).normal(2, 3, (rows, samples)).astype(np.float32)


def test_every_run_of_frames_is_pooled_separately(encoder):
    params, encode = encoder
    wave = random_wave(1, 400)
    logits, (count,) = encode(wave, [400])
    hidden, (frames,) = jax.jit(Trunk(CONFIG.trunk).apply)(
        {"params": params["trunk"]}, wave, jnp.array([400])
    )
    assert (frames, count) == (39, 4)
    projected = hidden[0] @ params["projector"]["kernel"] + params["projector"]["bias"]
    means = np.stack([projected[i : i + 10].mean(0) for i in range(0, 39, 10)])
    expected = means @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(logits[0], expected, atol=1e-5)


def test_a_batch_gives_the_logits_of_each_recording_alone(encoder):
    _, encode = encoder
    wave = random_wave(3, 400)
    wave[1, 251:], wave[2, 3:] = np.nan, 1e6
    logits, counts = encode(wave, [400, 251, 3])
    assert counts.tolist() == [4, 3, 0]
    assert np.all(np.isfinite(logits))
    for row, length in ((0, 400), (1, 251)):
        single, _ = encode(wave[row : row + 1, :length], [length])
        np.testing.assert_allclose(logits[row, : counts[row]], single[0], atol=1e-5)


def test_loudness_and_offset_do_not_matter(encoder):
    _, encode = encoder
    wave = random_wave(1, 400)
    np.testing.assert_allclose(encode(wave, [400])[0], encode(3 * wave + 1, [400])[0], atol=1e-4)


def test_every_numeric_field_changes_the_model(encoder):
    """Except `sample_rate`, which describes the input."""
    wave, lengths = jax.ShapeDtypeStruct((1, 400), jnp.float32), jax.ShapeDtypeStruct((1,), int)
    shapes = {}
    for change in ({}, {"projection_size": 6}, {"num_styles": 8}, {"pool_frames": 9}):
        model = StyleEncoder(dataclasses.replace(CONFIG, **change))
        (logits, _), variables = jax.eval_shape(
            model.init_with_output, jax.random.key(0), wave, lengths
        )
        shapes[str(change)] = str((logits.shape, jax.tree.map(np.shape, variables)))
    assert len(set(shapes.values())) == 4, shapes


def test_a_saved_folder_loads_the_same_model(encoder, tmp_path):
    params, _ = encoder
    checkpoint.save_network(tmp_path / "style", CONFIG, params)
    model, loaded = style.load(tmp_path / "style")
    assert model == StyleEncoder(CONFIG)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
