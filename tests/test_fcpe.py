"""FCPE: exact batching, short audio, and every config field."""

import dataclasses

import jax
import numpy as np
import pytest

from spirit_jax.models import fcpe
from spirit_jax.models.fcpe import Fcpe, FcpeConfig
from spirit_jax.models.wav2vec2 import abstract_params
from spirit_jax.random_model import random_params

CONFIG = FcpeConfig(
    sample_rate=1000,
    window=64,
    hop=10,
    num_mels=12,
    fmax=500.0,
    hidden_size=8,
    num_layers=2,
    num_bins=40,
    kernel=5,
    norm_groups=2,
    threshold=0.5,
)


@pytest.fixture(scope="module")
def estimate():
    model = Fcpe(CONFIG)
    params = random_params(abstract_params(model), np.random.default_rng(0))
    params["cents"] = np.linspace(2000, 9000, 40, dtype=np.float32)
    return jax.jit(lambda wave, lengths: model.apply({"params": params}, wave, lengths))


def random_wave(rows, samples):
    return np.random.default_rng(1).standard_normal((rows, samples)).astype(np.float32)


def test_a_batch_gives_the_f0_of_each_recording_alone(estimate):
    wave = random_wave(4, 300)
    lengths = [300, 217, 40, 0]  # 40 is too short for reflection padding
    wave[1, 217:], wave[2, 40:], wave[3] = np.nan, 1e6, np.nan
    f0, frames = estimate(wave, np.array(lengths, np.int32))
    assert frames.tolist() == [31, 22, 5, 0]
    assert len(set(np.asarray(f0)[0].tolist())) > 10
    for row, length in enumerate(lengths[:3]):
        single, _ = estimate(wave[row : row + 1, :length], np.array([length], np.int32))
        np.testing.assert_allclose(f0[row, : frames[row]], single[0], rtol=1e-4)


def test_frames_below_the_threshold_are_unvoiced():
    model = Fcpe(CONFIG)
    params = {"cents": np.linspace(2000, 9000, 40, dtype=np.float32)}
    scores = np.zeros((1, 3, 40), np.float32)
    scores[0, 0, 20], scores[0, 1, 20], scores[0, 2, 0] = 0.51, 0.5, 0.9
    f0 = model.apply({"params": params}, scores, method="pick")
    expected = 10 * 2 ** (params["cents"][[20, 0]] / 1200)
    np.testing.assert_allclose(f0[0], [expected[0], 0, expected[1]], rtol=1e-5)


@pytest.mark.slow
def test_every_config_field_changes_the_model():
    wave, lengths = jax.ShapeDtypeStruct((1, 300), np.float32), jax.ShapeDtypeStruct((1,), int)
    short = random_wave(1, 300)

    def result(change):
        cfg = dataclasses.replace(CONFIG, **change)
        model = Fcpe(cfg)
        program = jax.make_jaxpr(lambda p, w, n: model.apply({"params": p}, w, n))
        mel, _ = fcpe.log_mel(short, np.array([300]), cfg)  # the mel bands are constants
        return str(program(abstract_params(model), wave, lengths)) + str(np.asarray(mel).sum())

    changes = [
        {"sample_rate": 900},
        {"window": 60},
        {"hop": 11},
        {"num_mels": 10},
        {"fmin": 20.0},
        {"fmax": 400.0},
        {"hidden_size": 6},
        {"num_layers": 1},
        {"num_bins": 41},
        {"kernel": 7},
        {"expansion": 3},
        {"norm_groups": 4},
        {"threshold": 0.6},
        {"precision": "default"},
    ]
    assert {next(iter(c)) for c in changes} == {f.name for f in dataclasses.fields(FcpeConfig)}
    assert len({result(change) for change in ({}, *changes)}) == len(changes) + 1
