"""Frames of audio: masks of padded batches, short-time spectra and mel bands.

Letters: b batch, s samples, t frames, c channels, w samples in a window, f frequencies of the DFT,
m mel bands.

All functions are differentiable, with bounded gradients where a frequency has no energy. The
spectrograms of vocoder training follow HiFi-GAN (arXiv 2010.05646, and its public code).
"""

import functools

import jax
import jax.numpy as jnp
import librosa
import numpy as np

from spirit_jax.models.speech_configs import MelConfig

POWER_FLOOR = 1e-9  # added to power, so that magnitudes have gradients


def length_mask(lengths_b: jax.Array, size: int) -> jax.Array:
    """bool (b, size): True at the first `lengths_b` positions of each row."""
    return jnp.arange(size)[None, :] < lengths_b[:, None]


def masked_standardize(x_btc: jax.Array, mask_bt: jax.Array, eps: float) -> jax.Array:
    """Normalises each channel to mean 0 and population variance 1 over unmasked frames.

    Args:
      x_btc: float32.
      mask_bt: bool, False for padding.
      eps: added to the variance.
    """
    mask_bt1 = mask_bt[..., None]
    count_b11 = jnp.maximum(mask_bt1.sum(axis=1, keepdims=True), 1)

    def mean(y_btc):
        return jnp.where(mask_bt1, y_btc, 0).sum(axis=1, keepdims=True) / count_b11

    centered_btc = x_btc - mean(x_btc)
    return centered_btc * jax.lax.rsqrt(mean(jnp.square(centered_btc)) + eps)


def split_frames(x_bt: jax.Array, kernel: int, stride: int) -> jax.Array:
    """All complete windows, (b, t) to (b, frames, kernel).

    Args:
      x_bt: samples (here t counts samples).
      kernel: samples of a window.
      stride: samples from one window to the next.
    """
    frames = (x_bt.shape[1] - kernel) // stride + 1
    hops = -(-kernel // stride)
    size = (frames + hops - 1) * stride
    x_bt = jnp.pad(x_bt, ((0, 0), (0, max(0, size - x_bt.shape[1]))))[:, :size]
    hops_bts = x_bt.reshape(x_bt.shape[0], -1, stride)
    windows = [hops_bts[:, i : i + frames] for i in range(hops)]
    return jnp.concatenate(windows, axis=-1)[..., :kernel]


def hann(size: int) -> np.ndarray:
    """A periodic Hann window, float32 (size,)."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)


def power_spectrum(wave_bs: jax.Array, window: int, hop: int) -> jax.Array:
    """Power spectrum of all complete Hann windows, float32 (b, t, window // 2 + 1).

    Args:
      wave_bs: float32 samples.
      window: samples of a window and size of the DFT.
      hop: samples from one window to the next.
    """
    spectrum_btf = jnp.fft.rfft(split_frames(wave_bs, window, hop) * hann(window))
    return jnp.square(spectrum_btf.real) + jnp.square(spectrum_btf.imag)


def apply_mel(
    spectrum_btf: jax.Array, bands_mf: np.ndarray, precision: str = "highest"
) -> jax.Array:
    """Mel bands, (b, t, m), of spectra.

    Args:
      spectrum_btf: power or magnitudes.
      bands_mf: the filter bank.
      precision: a `jax.lax.Precision` name.
    """
    return jnp.einsum("btf,mf->btm", spectrum_btf, bands_mf, precision=precision)


def magnitudes(wave_bs: jax.Array, n_fft: int, hop: int) -> jax.Array:
    """STFT magnitudes, float32 (b, s // hop, n_fft // 2 + 1).

    Both ends have reflection padding of (n_fft - hop) / 2 samples, so that there is a frame for
    every `hop` samples.

    Args:
      wave_bs: float32 samples, longer than the padding.
      n_fft: samples of a window and size of the DFT.
      hop: samples from one window to the next.
    """
    reflected = (n_fft - hop) // 2
    wave_bs = jnp.pad(wave_bs, ((0, 0), (reflected, reflected)), mode="reflect")
    return jnp.sqrt(power_spectrum(wave_bs, n_fft, hop) + POWER_FLOOR)


@functools.partial(jax.jit, static_argnames="config")
def log_mel(wave_bs: jax.Array, config: MelConfig) -> jax.Array:
    """Log (base e) mel magnitudes, float32 (b, s // hop, m), of samples in -1..1."""
    magnitude_btf = magnitudes(wave_bs, config.n_fft, config.hop)
    mel_btm = apply_mel(magnitude_btf, _bands(config))
    return jnp.log(jnp.maximum(mel_btm, config.floor))


@functools.partial(jax.jit, static_argnames=("sizes", "floor"))
def stft_distance(
    wave_bs: jax.Array, other_bs: jax.Array, sizes: tuple[int, ...], floor: float = 0.0
) -> jax.Array:
    """The log magnitude part of the multi-resolution STFT loss (arXiv 1910.11480).

    Args:
      wave_bs, other_bs: float32 samples.
      sizes: DFT sizes, in samples; the hop is a quarter of the size.
      floor: lower limit of magnitudes, divided by the DFT size.

    Returns:
      The mean L1 distance of log magnitudes over all sizes, a scalar.
    """

    def log_magnitudes(wave_bs: jax.Array, n: int) -> jax.Array:
        return jnp.log(jnp.maximum(magnitudes(wave_bs, n, n // 4), floor * n))

    distances = [jnp.abs(log_magnitudes(wave_bs, n) - log_magnitudes(other_bs, n)) for n in sizes]
    return jnp.mean(jnp.stack([jnp.mean(distance) for distance in distances]))


@functools.cache
def _bands(config: MelConfig) -> np.ndarray:
    return librosa.filters.mel(
        sr=config.sample_rate,
        n_fft=config.n_fft,
        n_mels=config.num_mels,
        fmin=config.f_min,
        fmax=config.f_max,
    )
