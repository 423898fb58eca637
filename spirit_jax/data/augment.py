"""Changes of a recording that leave what is said as it is.

Each is a function of (float32 samples at 16 kHz, rng, and ranges) that gives new float32 samples.
They are those of arXiv 2209.15483 (section 3.2): time stretch, pitch, reverberation and noise.
"""

import dataclasses

import librosa
import numpy as np
import scipy.signal

from spirit_jax.audio import SAMPLE_RATE
from spirit_jax.data.configs import KINDS, AugmentConfig

FFT = 1024  # of stretching: 64 ms, two periods of the deepest voice

Range = tuple[float, float]


def augment(samples_t: np.ndarray, rng: np.random.Generator, config: AugmentConfig) -> np.ndarray:
    """The changes that are drawn, in the order a recording meets them: voice, room, microphone."""
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
    """The same with one kind of change, which always happens."""
    return dataclasses.replace(config, **{name: float(name == kind) for name in KINDS})


def stretch(
    samples_t: np.ndarray, rng: np.random.Generator, rates: Range = (0.8, 1.2)
) -> np.ndarray:
    """Faster or slower at the same pitch, by a phase vocoder; the length changes."""
    rate = rng.uniform(*rates)
    if len(samples_t) < FFT:
        return samples_t
    return librosa.effects.time_stretch(samples_t, rate=rate, n_fft=FFT).astype(np.float32)


def shift_pitch(
    samples_t: np.ndarray, rng: np.random.Generator, semitones: Range = (-4.0, 4.0)
) -> np.ndarray:
    """Higher or lower, formants included; the length stays."""
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
    """A room's echo: decaying noise after the direct sound, 0 to 10 dB weaker than it.

    Length and loudness stay, and so does the time of the direct sound.
    """
    decay = rng.uniform(*seconds)
    echo_t = rng.standard_normal(max(int(decay * SAMPLE_RATE), 1))
    echo_t *= 10 ** (-3 * np.arange(len(echo_t)) / len(echo_t))  # 60 dB
    echo_t *= 10 ** (-rng.uniform(0, 10) / 20) / np.sqrt(np.square(echo_t).sum())
    response_t = np.concatenate([[1.0], echo_t])
    changed_t = scipy.signal.fftconvolve(samples_t, response_t)[: len(samples_t)]
    return (changed_t * _loudness(samples_t) / (_loudness(changed_t) or 1)).astype(np.float32)


def add_noise(
    samples_t: np.ndarray, rng: np.random.Generator, decibels: Range = (5.0, 15.0)
) -> np.ndarray:
    """Noise of a colour drawn from white (as for electronics) to brown (as for wind)."""
    noise_t = coloured_noise(max(len(samples_t), 1), rng.uniform(0, 2), rng)
    return mix(samples_t, noise_t, rng.uniform(*decibels))


def coloured_noise(size: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Noise whose power falls as 1 / frequency ** exponent: 0 is white, 1 pink, 2 brown.

    `size` is at least 1.
    """
    spectrum_f = np.fft.rfft(rng.standard_normal(size))
    # Under 50 Hz it is flat: no speech is there, and all of brown noise would be.
    frequency_f = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 50)
    return np.fft.irfft(spectrum_f * frequency_f ** (-exponent / 2), size).astype(np.float32)


def mix(samples_t: np.ndarray, noise_t: np.ndarray, decibels: float) -> np.ndarray:
    """A recording with another sound, `decibels` less loud, repeated or cut to its length."""
    loudness = _loudness(noise_t)
    if not loudness:
        return samples_t
    gain = _loudness(samples_t) / loudness * 10 ** (-decibels / 20)
    return (samples_t + gain * np.resize(noise_t, len(samples_t))).astype(np.float32)


def _loudness(samples_t: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(samples_t)))) if len(samples_t) else 0.0
