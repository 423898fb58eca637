"""Spectrograms against librosa, and their gradients at silence."""

import dataclasses

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from spirit_jax.errors import InputError
from spirit_jax.models.frames import MelConfig, log_mel, magnitudes, stft_distance


@pytest.fixture(scope="module")
def wave():
    rng = np.random.default_rng(0)
    return (0.2 * rng.standard_normal(8960)).astype(np.float32)


@pytest.mark.parametrize("config", [MelConfig(), MelConfig(16000, 512, 100, 40, 60.0, 7000.0)])
def test_log_mel_equals_librosa(wave, config):
    padding = (config.n_fft - config.hop) // 2
    expected = librosa.feature.melspectrogram(
        y=np.pad(wave, padding, mode="reflect"),
        sr=config.sample_rate,
        n_fft=config.n_fft,
        hop_length=config.hop,
        center=False,
        power=1.0,
        n_mels=config.num_mels,
        fmin=config.f_min,
        fmax=config.f_max,
    )
    mel = log_mel(wave[None], config)[0]
    assert mel.shape == (len(wave) // config.hop, config.num_mels)
    np.testing.assert_allclose(mel, np.log(np.maximum(expected, 1e-5)).T, atol=2e-4)


@pytest.mark.parametrize(
    "field, value",
    [("sample_rate", 20000), ("n_fft", 2048), ("hop", 128), ("num_mels", 40)]
    + [("f_min", 200.0), ("f_max", 4000.0), ("floor", 1.0)],
)
def test_every_field_acts(wave, field, value):
    before = log_mel(wave[None], MelConfig())
    after = log_mel(wave[None], dataclasses.replace(MelConfig(), **{field: value}))
    assert before.shape != after.shape or np.abs(before - after).max() > 1e-3


def test_silence_has_finite_values_and_gradients():
    silence = np.zeros((1, 4000), np.float32)
    assert np.isfinite(log_mel(silence, MelConfig())).all()

    def loss(wave):
        distance = stft_distance(wave, wave + 0.1, (256, 512))
        parts = magnitudes(wave, 512, 128).sum(), log_mel(wave, MelConfig()).sum(), distance
        return jnp.stack(parts)

    assert np.isfinite(jax.jit(jax.jacrev(loss))(silence)).all()


def test_stft_distance_grows_with_noise_and_is_not_moved_by_sign(wave):
    noise = np.random.default_rng(1).standard_normal(8960).astype(np.float32)
    near, far = (
        stft_distance(wave[None], (wave + size * noise)[None], (256, 1024)) for size in (0.01, 0.1)
    )
    assert 0 < near < far
    assert stft_distance(wave[None], -wave[None], (256, 1024)) < 1e-5


def test_settings_that_make_no_spectrogram_are_named():
    for changes in ({"hop": 0}, {"hop": 2000}, {"hop": 255}):
        with pytest.raises(InputError, match="hop"):
            MelConfig(**changes)
    for changes in ({"f_max": 9000.0}, {"f_min": 8000.0}):
        with pytest.raises(InputError, match="f_min and f_max"):
            MelConfig(**changes)


def test_the_distance_ignores_what_is_below_the_floor(wave):
    quiet, other = 1e-4 * wave[None], 1e-4 * wave[None, ::-1]
    assert stft_distance(quiet, other, (256,)) > 0.1
    assert stft_distance(quiet, other, (256,), 1e-4) == 0
    assert stft_distance(wave[None], wave[None, ::-1], (256,), 1e-4) > 0.1
