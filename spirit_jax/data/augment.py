"""Augmentation of recordings that does not change the words.

Time stretching, pitch shift, reverberation and additive noise, as in arXiv 2209.15483, section 3.2.
Each function takes float32 samples at 16 kHz, a random generator and the range of its parameter.
"""

import dataclasses

import librosa
import numpy as np
import scipy.signal

from spirit_jax.audio import SAMPLE_RATE
from spirit_jax.data.configs import KINDS, AugmentConfig

FFT = 1024  # samples of a window of the phase vocoder: 64 ms, several periods of a low voice

Range = tuple[float, float]


def augment(samples_t: np.ndarray, rng: np.random.Generator, config: AugmentConfig) -> np.ndarray:
    """Applies randomly chosen changes, in the order in which they occur when speech is recorded.

    These are changes of the voice (speed, pitch), of the room (reverberation), and noise.

    Args:
      samples_t: float32 samples at 16 kHz.
      rng: random generator.
      config: probabilities and ranges of the changes.

    Returns:
      float32 samples. Time stretching changes their number.
    """
    changes = {
        "stretch": (stretch, config.stretch_rates),
        "pitch": (shift_pitch, config.pitch_semitones),
        "reverberation": (reverberate, config.reverberation_seconds),
        "noise": (add_noise, config.noise_db),
    }
    for kind, (change, bounds) in changes.items():
        if rng.random() < getattr(config, kind):
            samples_t = change(samples_t, rng, bounds)
    return samples_t


def only(kind: str, config: AugmentConfig) -> AugmentConfig:
    """A config that always applies one kind of change, and no other."""
    return dataclasses.replace(config, **{name: float(name == kind) for name in KINDS})


def stretch(
    samples_t: np.ndarray, rng: np.random.Generator, rates: Range = (0.8, 1.2)
) -> np.ndarray:
    """Changes the speed but not the pitch, by a phase vocoder; the length changes.

    Args:
      samples_t: float32 samples at 16 kHz.
      rng: random generator.
      rates: smallest and largest speed, relative to the recording's.
    """
    rate = rng.uniform(*rates)
    if len(samples_t) < FFT:
        return samples_t
    return librosa.effects.time_stretch(samples_t, rate=rate, n_fft=FFT).astype(np.float32)


def shift_pitch(
    samples_t: np.ndarray, rng: np.random.Generator, semitones: Range = (-4.0, 4.0)
) -> np.ndarray:
    """Shifts pitch and formants; the length is kept.

    Args:
      samples_t: float32 samples at 16 kHz.
      rng: random generator.
      semitones: smallest and largest shift.
    """
    steps = rng.uniform(*semitones)
    if len(samples_t) < FFT:
        return samples_t
    shifted_t = librosa.effects.pitch_shift(
        samples_t, sr=SAMPLE_RATE, n_steps=steps, n_fft=FFT, res_type="soxr_mq"
    )
    return shifted_t.astype(np.float32)


def reverberate(
    samples_t: np.ndarray, rng: np.random.Generator, seconds: Range = (0.2, 0.8)
) -> np.ndarray:
    """Adds reverberation, by convolution with a synthetic impulse response.

    The response is the direct sound, followed by exponentially decaying noise whose energy is 0 to
    10 dB lower. Length, mean power and the time of the direct sound are kept.

    Args:
      samples_t: float32 samples at 16 kHz.
      rng: random generator.
      seconds: smallest and largest reverberation time (RT60).
    """
    decay = rng.uniform(*seconds)
    echo_t = rng.standard_normal(max(int(decay * SAMPLE_RATE), 1))
    echo_t *= 10 ** (-3 * np.arange(len(echo_t)) / len(echo_t))  # 60 dB
    echo_t *= 10 ** (-rng.uniform(0, 10) / 20) / np.sqrt(np.square(echo_t).sum())
    response_t = np.concatenate([[1.0], echo_t])
    changed_t = scipy.signal.fftconvolve(samples_t, response_t)[: len(samples_t)]
    return (changed_t * _rms(samples_t) / (_rms(changed_t) or 1)).astype(np.float32)


def add_noise(
    samples_t: np.ndarray, rng: np.random.Generator, decibels: Range = (5.0, 15.0)
) -> np.ndarray:
    """Adds noise of a random colour between white and brown (see `coloured_noise`).

    Args:
      samples_t: float32 samples at 16 kHz.
      rng: random generator.
      decibels: smallest and largest signal-to-noise ratio.
    """
    noise_t = coloured_noise(max(len(samples_t), 1), rng.uniform(0, 2), rng)
    return mix(samples_t, noise_t, rng.uniform(*decibels))


def coloured_noise(size: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Noise whose power is proportional to 1 / frequency ** exponent.

    Args:
      size: number of samples, at least 1.
      exponent: 0 for white noise, 1 for pink, 2 for brown.
      rng: random generator.

    Returns:
      float32 (size,).
    """
    spectrum_f = np.fft.rfft(rng.standard_normal(size))
    # Flat below 50 Hz, where speech has no energy but brown noise would have nearly all.
    frequency_f = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 50)
    return np.fft.irfft(spectrum_f * frequency_f ** (-exponent / 2), size).astype(np.float32)


def mix(samples_t: np.ndarray, noise_t: np.ndarray, decibels: float) -> np.ndarray:
    """Adds noise to a recording.

    Args:
      samples_t: float32 samples.
      noise_t: float32 samples, repeated or cut to the same length.
      decibels: signal-to-noise ratio.
    """
    noise_rms = _rms(noise_t)
    if not noise_rms:
        return samples_t
    gain = _rms(samples_t) / noise_rms * 10 ** (-decibels / 20)
    return (samples_t + gain * np.resize(noise_t, len(samples_t))).astype(np.float32)


def _rms(samples_t: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(samples_t)))) if len(samples_t) else 0.0
