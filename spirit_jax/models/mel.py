"""Spectrograms that a vocoder is trained by.

Letters: b batch, s samples, t frames, w samples in a window, f frequencies of the DFT, m mel bands.

The settings and the order of operations are those of HiFi-GAN (arXiv 2010.05646, and its public
code). Everything is differentiable, with bounded gradients where a frequency is silent.
"""

import functools

import jax
import jax.numpy as jnp
import librosa
import numpy as np

from spirit_jax.models.configs import MelConfig
from spirit_jax.models.wav2vec2 import split_frames

POWER_FLOOR = 1e-9


def magnitudes(wave_bs: jax.Array, n_fft: int, hop: int) -> jax.Array:
    """Short-time magnitudes, float32 (b, s // hop, n_fft // 2 + 1).

    The audio is reflected at both ends by (n_fft - hop) / 2 samples, so that `hop` samples make one
    frame; it must be longer than that.
    """
    reflected = (n_fft - hop) // 2
    wave_bs = jnp.pad(wave_bs, ((0, 0), (reflected, reflected)), mode="reflect")
    hann_w = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    spectrum_btf = jnp.fft.rfft(split_frames(wave_bs, n_fft, hop) * hann_w.astype(np.float32))
    power_btf = jnp.square(spectrum_btf.real) + jnp.square(spectrum_btf.imag)
    return jnp.sqrt(power_btf + POWER_FLOOR)


def log_mel(wave_bs: jax.Array, config: MelConfig) -> jax.Array:
    """Natural logarithms of mel magnitudes, float32 (b, s // hop, m), of samples in -1..1."""
    magnitude_btf = magnitudes(wave_bs, config.n_fft, config.hop)
    mel_btm = jnp.einsum("btf,mf->btm", magnitude_btf, _bands(config), precision="highest")
    return jnp.log(jnp.maximum(mel_btm, config.floor))


def stft_distance(
    wave_bs: jax.Array, other_bs: jax.Array, sizes: tuple[int, ...], floor: float = 0.0
) -> jax.Array:
    """How far two waves are apart at several resolutions: the mean L1 of log magnitudes.

    The log part of the multi-resolution STFT loss of arXiv 1910.11480; `sizes` are DFT sizes, with
    hops of a quarter. Magnitudes per sample of a window below `floor` count as that much.
    """

    def log_magnitudes(wave_bs: jax.Array, n: int) -> jax.Array:
        return jnp.log(jnp.maximum(magnitudes(wave_bs, n, n // 4), floor * n))

    apart = [jnp.abs(log_magnitudes(wave_bs, n) - log_magnitudes(other_bs, n)) for n in sizes]
    return jnp.mean(jnp.stack([jnp.mean(distance) for distance in apart]))


@functools.cache
def _bands(config: MelConfig) -> np.ndarray:
    return librosa.filters.mel(
        sr=config.sample_rate,
        n_fft=config.n_fft,
        n_mels=config.num_mels,
        fmin=config.f_min,
        fmax=config.f_max,
    )
