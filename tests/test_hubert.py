"""Units: quantizers, blanks, and the network of encoder and quantizer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spirit_jax import checkpoint
from spirit_jax.errors import InputError
from spirit_jax.models import hubert
from spirit_jax.models.hubert import HubertConfig, HubertUnits, QuantizerConfig, fill_blanks
from spirit_jax.models.wav2vec2 import TrunkConfig, abstract_params
from spirit_jax.random_model import random_params

TRUNK = TrunkConfig(
    conv_layers=((8, 10, 5), (8, 3, 2)),
    conv_pos=4,
    conv_pos_groups=2,
    hidden_size=8,
    num_layers=1,
    num_heads=2,
    ffn_size=12,
)
MLP = QuantizerConfig("mlp", vocab_size=6, dim=8, hidden_sizes=(7, 5))
KMEANS = QuantizerConfig("kmeans", vocab_size=6, dim=8)


def quantizer_params(cfg):
    features = jnp.zeros((1, 1, cfg.dim))
    init = hubert.make_quantizer(cfg).init
    abstract = jax.eval_shape(init, jax.random.key(0), features)["params"]
    return random_params(abstract, np.random.default_rng(0))


def quantizer_scores(cfg, params, features):
    return np.asarray(jax.jit(hubert.make_quantizer(cfg).apply)({"params": params}, features))


@pytest.fixture(scope="module", params=[MLP, KMEANS], ids=["mlp", "kmeans"])
def units(request):
    """(model, params, jitted function of (wave_bt, lengths_b))."""
    model = HubertUnits(HubertConfig(TRUNK), request.param)
    params = random_params(abstract_params(model), np.random.default_rng(0))
    apply = jax.jit(model.apply)
    return model, params, lambda wave, lengths: apply({"params": params}, wave, np.int32(lengths))


def fill_by_rounds(units, blank, rounds):
    units = np.array(units)
    for _ in range(rounds):
        empty = units == blank
        if not empty.any():
            break
        units[empty] = np.roll(units, 1)[empty]
    return units


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(0, 12))
def test_fill_blanks_equals_the_rounds(values, rounds):
    values = np.array(values, np.int32)
    filled = fill_blanks(values, blank=3, max_rounds=rounds)
    np.testing.assert_array_equal(filled, fill_by_rounds(values, 3, rounds))
    np.testing.assert_array_equal(fill_blanks(values, 3), fill_by_rounds(values, 3, 100))
    assert filled.dtype == values.dtype


def test_fill_blanks_examples():
    assert fill_blanks(np.array([500, 7, 500, 500, 9, 500]), 500).tolist() == [9, 7, 7, 7, 9, 9]
    assert fill_blanks(np.array([500, 500]), 500).tolist() == [500, 500]


def test_units_of_a_batch_are_those_of_each_recording(units):
    _, _, encode = units
    wave = np.random.default_rng(0).normal(size=(2, 400)).astype(np.float32)
    wave[1, 150:] = np.nan
    codes, frames = map(np.asarray, encode(wave, [400, 150]))
    assert codes.dtype == np.int32
    assert frames.tolist() == [39, 14]
    assert np.all((codes[0] >= 0) & (codes[0] <= 6))
    assert np.all(codes[1, 14:] == hubert.NO_UNIT)
    alone = np.asarray(encode(wave[1:, :150], [150])[0])
    np.testing.assert_array_equal(alone[0], codes[1, :14])
    assert len(set(codes[codes != hubert.NO_UNIT])) > 1


def test_kmeans_takes_the_nearest_centroid():
    rng = np.random.default_rng(0)
    features = rng.normal(5, 1, (2, 50, 8)).astype(np.float32)
    centroids = rng.normal(5, 1, (6, 8)).astype(np.float32)
    scores = quantizer_scores(KMEANS, {"centroids": centroids}, features)
    distances = np.square(features[:, :, None] - centroids).sum(-1)
    np.testing.assert_array_equal(scores.argmax(-1), distances.argmin(-1))
    np.testing.assert_allclose(scores, -distances, atol=1e-3)


def test_mlp_is_linear_layers_with_leaky_relu_between():
    params = quantizer_params(MLP)
    params["linear1"]["bias"] += 0.1
    x = features = np.random.default_rng(0).normal(size=(1, 9, 8)).astype(np.float32)
    for i in range(3):
        x = x if i == 0 else np.where(x > 0, x, 0.01 * x)
        x = x @ params[f"linear{i}"]["kernel"] + params[f"linear{i}"]["bias"]
    scores = quantizer_scores(MLP, params, features)
    assert scores.shape == (1, 9, 7)
    np.testing.assert_allclose(scores, x, atol=1e-5)
    assert MLP.blank == 6


def test_every_numeric_field_of_the_quantizers_shapes_it():
    """But `HubertConfig.sample_rate`, which is a fact about the audio to give it."""

    def shapes(cfg):
        features = jax.ShapeDtypeStruct((1, 1, cfg.dim), jnp.float32)
        return str(jax.eval_shape(hubert.make_quantizer(cfg).init, jax.random.key(0), features))

    changes = {"vocab_size": 7, "dim": 9, "hidden_sizes": (7, 6)}
    for name, value in changes.items():
        assert shapes(dataclasses.replace(MLP, **{name: value})) != shapes(MLP), name
        if name != "hidden_sizes":
            assert shapes(dataclasses.replace(KMEANS, **{name: value})) != shapes(KMEANS), name


def test_two_folders_make_a_model(units, tmp_path):
    model, params, encode = units
    checkpoint.save_network(tmp_path / "hubert", model.config, params["hubert"])
    checkpoint.save_network(tmp_path / "quantizer", model.quantizer, params["quantizer"])
    loaded, loaded_params = hubert.load(tmp_path / "hubert", tmp_path / "quantizer")
    assert loaded == model
    assert jax.tree.structure(loaded_params) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, loaded_params, params)


def test_a_quantizer_of_another_width_is_refused(units, tmp_path):
    model, params, _ = units
    wider = dataclasses.replace(model.quantizer, dim=9)
    checkpoint.save_network(tmp_path / "hubert", model.config, params["hubert"])
    checkpoint.save_network(tmp_path / "quantizer", wider, quantizer_params(wider))
    with pytest.raises(InputError, match="9 channels"):
        hubert.load(tmp_path / "hubert", tmp_path / "quantizer")


def test_impossible_quantizers_are_refused():
    with pytest.raises(InputError, match="vq"):
        QuantizerConfig("vq")
    with pytest.raises(InputError, match="hidden_sizes"):
        QuantizerConfig("kmeans", hidden_sizes=(3,))
