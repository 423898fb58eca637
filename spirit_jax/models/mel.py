"""Spectrograms that a vocoder is trained by.

Letters: b batch, s samples, t frames, w samples in a window, f frequencies of the DFT, m mel bands.

The settings and the order of operations are those of HiFi-GAN (arXiv 2010.05646, and its public
code). Everything is differentiable, with bounded gradients where a frequency is silent.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import librosa
import numpy as np

from spirit_jax import limits
from spirit_jax.errors import InputError
from spirit_jax.models.wav2vec2 import split_frames

POWER_FLOOR = 1e-9


@dataclasses.dataclass(frozen=True)
class MelConfig:
    """A log-mel spectrogram.

    Attributes:
      sample_rate: in Hz.
      n_fft: samples of a window (hann).
      hop: samples from a window to the next.
      num_mels: bands, of librosa's (Slaney's) scale and norm.
      f_min, f_max: the lowest and highest frequency of the bands, in Hz.
      floor: magnitudes of a band below it count as this much.
    """

    sample_rate: int = 16_000
    n_fft: int = 1024
    hop: int = 256
    num_mels: int = 80
    f_min: float = 0.0
    f_max: float = 8_000.0
    floor: float = 1e-5

    def __post_init__(self):
        limits.check_numbers(
            self,
            sample_rate=limits.SAMPLE_RATE,
            n_fft=(2, 1 << 20),
            hop=(1, 1 << 20),
            num_mels=limits.KERNEL,
            f_min=(0.0, 1e6),
            f_max=(0.0, 1e6),
            floor=(0.0, 1e6),
        )
        if not 0 < self.hop <= self.n_fft or (self.n_fft - self.hop) % 2:
            raise InputError(
                f"A hop of {self.hop} does not go with an n_fft of {self.n_fft}: it must be at "
                "most as long, and differ by an even number."
            )
        if not 0 <= self.f_min < self.f_max <= self.sample_rate / 2:
            raise InputError(
                f"f_min and f_max are {self.f_min} and {self.f_max}; expected 0 to "
                f"{self.sample_rate / 2}, rising."
            )
        if self.floor <= 0:
            raise InputError(f"The floor of mel magnitudes is {self.floor}, expected above 0.")


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
