"""Frames of audio: masks of padded batches, short-time spectra and mel bands.

Letters: b batch, s samples, t frames, c channels, w samples in a window, f frequencies of the DFT,
m mel bands.

Everything is differentiable, with bounded gradients where a frequency is silent. The spectrograms
of vocoder training have the settings and the order of operations of HiFi-GAN (arXiv 2010.05646, and
its public code).
"""

import functools

import jax
import jax.numpy as jnp
import librosa
import numpy as np

from spirit_jax.models.configs import MelConfig

POWER_FLOOR = 1e-9


def length_mask(lengths_b: jax.Array, size: int) -> jax.Array:
    """(b, size) booleans: true on the first `lengths_b` places."""
    return jnp.arange(size)[None, :] < lengths_b[:, None]


def masked_standardize(x_btc: jax.Array, mask_bt: jax.Array, eps: float) -> jax.Array:
    """Each channel to mean 0 and (population) variance 1 over its true times."""
    mask_bt1 = mask_bt[..., None]
    count_b11 = jnp.maximum(mask_bt1.sum(axis=1, keepdims=True), 1)

    def mean(y_btc):
        return jnp.where(mask_bt1, y_btc, 0).sum(axis=1, keepdims=True) / count_b11

    centered_btc = x_btc - mean(x_btc)
    return centered_btc * jax.lax.rsqrt(mean(jnp.square(centered_btc)) + eps)


def split_frames(x_bt: jax.Array, kernel: int, stride: int) -> jax.Array:
    """All whole windows of `kernel` samples, one every `stride`: (b, t) -> (b, frames, kernel)."""
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
    """Power of every whole Hann window, float32 (b, t, window // 2 + 1)."""
    spectrum_btf = jnp.fft.rfft(split_frames(wave_bs, window, hop) * hann(window))
    return jnp.square(spectrum_btf.real) + jnp.square(spectrum_btf.imag)


def apply_mel(
    spectrum_btf: jax.Array, bands_mf: np.ndarray, precision: str = "highest"
) -> jax.Array:
    """The mel bands (b, t, m) of spectra."""
    return jnp.einsum("btf,mf->btm", spectrum_btf, bands_mf, precision=precision)


def magnitudes(wave_bs: jax.Array, n_fft: int, hop: int) -> jax.Array:
    """Short-time magnitudes, float32 (b, s // hop, n_fft // 2 + 1).

    The audio is reflected at both ends by (n_fft - hop) / 2 samples, so that `hop` samples make one
    frame; it must be longer than that.
    """
    reflected = (n_fft - hop) // 2
    wave_bs = jnp.pad(wave_bs, ((0, 0), (reflected, reflected)), mode="reflect")
    return jnp.sqrt(power_spectrum(wave_bs, n_fft, hop) + POWER_FLOOR)


def log_mel(wave_bs: jax.Array, config: MelConfig) -> jax.Array:
    """Natural logarithms of mel magnitudes, float32 (b, s // hop, m), of samples in -1..1."""
    magnitude_btf = magnitudes(wave_bs, config.n_fft, config.hop)
    mel_btm = apply_mel(magnitude_btf, _bands(config))
    return jnp.log(jnp.maximum(mel_btm, config.floor))


def stft_distance(
    wave_bs: jax.Array, other_bs: jax.Array, sizes: tuple[int, ...], floor: float = 0.0
) -> jax.Array:
    """The mean L1 distance of log magnitudes at several resolutions.

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
