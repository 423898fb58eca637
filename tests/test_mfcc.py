"""MFCC and their deltas equal librosa's at a trunk's frames, alone and in a batch."""

import dataclasses

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from spirit_jax.errors import InputError
from spirit_jax.models.wav2vec2 import TrunkConfig, frame_lengths
from spirit_jax.training.hubert import mfcc as features

RELEASE = ((4, 10, 5), *((4, 3, 2),) * 4, *((4, 2, 2),) * 3)  # 25 frames a second, of 720 samples
TRUNK = TrunkConfig(conv_layers=RELEASE, hidden_size=16, num_heads=2)
mfcc = jax.jit(features.mfcc, static_argnums=2)  # one program in place of many small ones


def make_wave(samples, seed=0):
    rng = np.random.default_rng(seed)
    wave = np.sin(np.cumsum(rng.uniform(0, 0.5, samples))) + 0.1 * rng.normal(size=samples)
    return (wave * rng.uniform(0, 1, samples // 2000 + 1).repeat(2000)[:samples]).astype(np.float32)


def librosa_features(wave, trunk):
    """The same features, computed by librosa."""
    windows_per_frame = trunk.stride // 160
    frames = int(frame_lengths(len(wave), trunk.conv_layers))
    first = (
        trunk.receptive_field / 2 - windows_per_frame / 2 * 160 + 80 - 200
    )  # of the first window
    padded = np.pad(wave, (1000, 1000))[1000 + int(first) :]
    padded = padded[: (frames * windows_per_frame - 1) * 160 + 400]
    settings = {"n_fft": 400, "hop_length": 160, "center": False, "n_mels": 40}
    cepstra = librosa.feature.mfcc(y=padded, sr=16000, n_mfcc=13, **settings)
    deltas = [librosa.feature.delta(cepstra, order=n, mode="nearest") for n in (1, 2)]
    values = (
        np.concatenate([cepstra, *deltas]).T.reshape(frames, windows_per_frame, 39).mean(axis=1)
    )
    return (values - values.mean(axis=0)) / np.sqrt(values.var(axis=0) + 1e-5)


@pytest.mark.parametrize("stride", [640, 320])
def test_features_match_librosa(stride):
    layers = RELEASE if stride == 640 else RELEASE[:-1]
    trunk = dataclasses.replace(TRUNK, conv_layers=layers)
    wave = make_wave(20_000)
    actual, frames = mfcc(wave[None], jnp.array([len(wave)]), trunk)
    expected = librosa_features(wave, trunk)
    assert frames.tolist() == [len(expected)]
    np.testing.assert_allclose(actual[0], expected, atol=2e-3)


def test_a_batch_gives_the_features_of_each_recording_alone():
    wave = np.stack([make_wave(20_000), make_wave(20_000, 1)])
    wave[1, 9_000:] = np.nan
    actual, frames = mfcc(wave, jnp.array([20_000, 9_000]), TRUNK)
    alone, _ = mfcc(wave[1:, :9_000], jnp.array([9_000]), TRUNK)
    assert frames.tolist() == [31, 13]
    np.testing.assert_allclose(actual[1, :13], alone[0], atol=1e-3)
    assert np.all(actual[1, 13:] == 0)


def test_a_click_falls_in_the_frame_centred_on_it():
    wave = 1e-3 * np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    middle = 10 * 640 + 360
    wave[middle - 20 : middle + 20] += 1
    actual, _ = mfcc(wave[None], jnp.array([len(wave)]), TRUNK)
    assert np.argmax(actual[0, :, 0]) == 10  # the first coefficient is loudness


def test_frames_that_are_not_a_multiple_of_10_ms_are_rejected():
    trunk = dataclasses.replace(TRUNK, conv_layers=((4, 10, 7),))
    with pytest.raises(InputError, match="10 ms"):
        features.mfcc(np.zeros((1, 4000), np.float32), jnp.array([4000]), trunk)
