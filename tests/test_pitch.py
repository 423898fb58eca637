"""The pitch VQ-VAE: features, exact batching, every field."""

import dataclasses

import jax
import numpy as np
import pytest

from spirit_jax.errors import InputError
from spirit_jax.models import pitch
from spirit_jax.models.pitch import PitchConfig, PitchVqVae, StackConfig
from spirit_jax.random_model import random_params

CONFIG = PitchConfig(
    downs=((2, 4, 1), (3, 7, 2)),
    encoder=StackConfig(width=6, hidden=4, depth=2, growth=3),
    decoder=StackConfig(width=5, hidden=3, depth=2, growth=2, reverse=True),
    num_codes=7,
    code_dim=4,
)
F0 = np.array([100, 110, 120, 130, 140], np.float32)  # interpolated at places 1 and 2
VOICED = np.array([1, 0, 0, 1, 1], np.float32)
MEAN = np.float32((100 + 130 + 140) / 3)


@pytest.fixture(scope="module")
def network():
    model = PitchVqVae(CONFIG)
    params = random_params(pitch.abstract_params(model), np.random.default_rng(0))

    @jax.jit
    def encode(features, lengths):
        codes, counts = model.apply({"params": params}, features, lengths)
        return codes, counts, model.apply({"params": params}, features, lengths, method="latent")[0]

    decode = jax.jit(lambda c, n: model.apply({"params": params}, c, n, method="decode"))
    return encode, decode


@pytest.mark.parametrize(
    ("features", "speaker_norm", "expected"),
    [
        ("f0,vuv", False, F0 * VOICED),
        ("f0_interp,vuv", False, F0),
        ("norm_f0,vuv", False, (F0 - MEAN) * VOICED),
        ("norm_f0_interp,vuv", False, F0 - MEAN),
        ("f0,vuv", True, (F0 - MEAN) * VOICED),
        ("f0_interp,vuv", True, F0 - MEAN),
        ("norm_f0_interp,vuv", True, F0 - MEAN),
    ],
)
def test_features(features, speaker_norm, expected):
    config = dataclasses.replace(CONFIG, features=features, speaker_norm=speaker_norm)
    features_t2 = pitch.normalise_f0(F0, VOICED, config)
    np.testing.assert_allclose(features_t2[:, 0], expected, atol=1e-4)
    np.testing.assert_array_equal(features_t2[:, 1], VOICED)


def test_a_speakers_mean_may_be_given():
    features_t2 = pitch.normalise_f0(F0, VOICED, CONFIG, mean=90.0)
    np.testing.assert_allclose(features_t2[:, 0], F0 - 90)


def test_without_a_voiced_frame_the_mean_is_zero(network):
    np.testing.assert_array_equal(pitch.normalise_f0(F0, 0 * F0, CONFIG)[:, 0], F0)
    features_t2 = pitch.normalise_f0(np.zeros(60), np.zeros(60), CONFIG)
    assert not features_t2.any()
    codes, *_ = network[0](np.stack([features_t2] * 3), np.full(3, 60, np.int32))
    assert ((codes >= 0) & (codes < 7)).all()


def test_a_batch_gives_what_each_row_alone_gives(network):
    encode, decode = network
    features = np.random.default_rng(0).standard_normal((3, 60, 2)).astype(np.float32)
    lengths = np.array([60, 41, 0], np.int32)
    whole = encode(features, np.full(3, 60, np.int32))
    features[1, 41:], features[2] = np.nan, 1e6
    codes, counts, latents = map(np.asarray, encode(features, lengths))
    back, frames = map(np.asarray, decode(codes, counts))
    assert counts.tolist() == [10, 6, 0]
    np.testing.assert_array_equal(codes[0], whole[0][0])  # of a batch without padding
    np.testing.assert_allclose(latents[0], whole[2][0], atol=1e-5)
    np.testing.assert_allclose(back[0], decode(*whole[:2])[0][0], atol=1e-5)
    alone, count, latent = encode(features[1:2, :41], np.array([41], np.int32))
    np.testing.assert_array_equal(codes[1, :6], alone[0])
    np.testing.assert_allclose(latents[1, :6], latent[0], atol=1e-5)
    decoded, size = decode(alone, count)
    assert size[0] == frames[1]
    np.testing.assert_allclose(back[1, : frames[1]], decoded[0], atol=1e-5)


@pytest.mark.slow
def test_every_field_acts():
    """A change of a number changes the program, its shapes, or is an error.

    But `features` and `speaker_norm`, which `normalise_f0` reads (tested above).
    """
    start = dataclasses.replace(CONFIG, downs=((2, 4, 1),))  # one level is quicker to trace
    codes, lengths = jax.ShapeDtypeStruct((1, 4), int), jax.ShapeDtypeStruct((1,), int)
    features = jax.ShapeDtypeStruct((1, 48, 2), np.float32)

    def program(config):
        model = PitchVqVae(config)
        abstract = pitch.abstract_params(model)
        encode = jax.make_jaxpr(lambda p, x, n: model.apply({"params": p}, x, n))
        decode = jax.make_jaxpr(lambda p, c, n: model.apply({"params": p}, c, n, method="decode"))
        return str(encode(abstract, features, lengths)) + str(decode(abstract, codes, lengths))

    stacks = [
        {name: dataclasses.replace(getattr(start, name), **change)}
        for name in ("encoder", "decoder")
        for change in (
            {"width": 8},
            {"hidden": 7},
            {"depth": 3},
            {"growth": 4},
            {"reverse": not getattr(start, name).reverse},
        )
    ]
    changes = [
        *stacks,
        {"downs": ((2, 4, 1), (2, 4, 1))},
        {"downs": ((3, 4, 1),)},
        {"downs": ((2, 6, 1),)},
        {"downs": ((2, 4, 2),)},
        {"num_codes": 8},
        {"code_dim": 5},
        {"precision": "default"},
    ]
    programs = {program(dataclasses.replace(start, **change)) for change in ({}, *changes)}
    assert len(programs) == len(changes) + 1
    with pytest.raises(InputError, match="features is 'x'"):
        dataclasses.replace(CONFIG, features="x")
    with pytest.raises(InputError, match="downs is"):
        dataclasses.replace(CONFIG, downs=((0, 1, 1),))
