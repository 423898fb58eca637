"""Acoustic features of speaking style, from which style units are clustered.

No labels of styles are published, so style units are clusters of these features. They follow the
prosodic part of eGeMAPS (Eyben et al. 2016): level and range of loudness and of F0, voicing,
spectral tilt and speaking rate. Loudness and F0 are relative to the recording or the speaker, since
the network normalises its input.
"""

from collections.abc import Sequence

import librosa
import numpy as np
import scipy.ndimage
import scipy.signal

from spirit_jax import f0
from spirit_jax.audio import SAMPLE_RATE
from spirit_jax.training.f0_tracks import Track

NAMES = ("level", "range", "F0 level", "F0 range", "voiced", "tilt", "pace")
HOP, WINDOW, FFT = 160, 400, 512  # samples
FLOOR = 40.0  # dB below the loudest frame; quieter frames are raised to this level
EDGE = 1000.0  # Hz, between the low and the high part of the spectrum
PEAK = 3.0  # dB, smallest prominence of a syllable's loudness peak


def style_features(
    wave_t: np.ndarray, track: Track, f0_mean: float, unit_samples: int = SAMPLE_RATE
) -> np.ndarray:
    """The features of each style unit of a recording.

    A last unit that is at least half as long as the others counts too.

    Args:
      wave_t: float32 samples at 16 kHz.
      track: its F0.
      f0_mean: reference F0 in Hz (the speaker's mean).
      unit_samples: length of a unit in samples; a multiple of 160.

    Returns:
      float32 (units, 7), with columns `NAMES`: mean loudness relative to the recording and its
      standard deviation (dB), mean F0 relative to `f0_mean` and its standard deviation (semitones),
      fraction of voiced frames, energy above 1 kHz relative to that below (dB), and loudness peaks
      a second.
    """
    units = (len(wave_t) + unit_samples // 2) // unit_samples
    if not units:
        return np.zeros((0, len(NAMES)), np.float32)
    power_ft, decibels_t = loudness(wave_t)
    high_f = librosa.fft_frequencies(sr=SAMPLE_RATE, n_fft=FFT) >= EDGE
    peaks, _ = scipy.signal.find_peaks(_smooth(decibels_t, 7), prominence=PEAK)
    # Peaks in one second are a small whole number; smoothing gives a finer rate.
    frames_second = SAMPLE_RATE // HOP
    pace_t = _smooth(
        np.bincount(peaks, minlength=len(decibels_t)) * frames_second, 2 * frames_second
    )
    voiced_t = track.voiced_t > 0
    semitones_t = 12 * np.log2(np.where(voiced_t, track.f0_t, 1) / max(f0_mean, 1.0))
    rows = []
    for unit in range(units):
        frames = _part(unit, unit_samples // HOP)
        pitches = _part(unit, unit_samples // f0.HOP)
        voiced_semitones = semitones_t[pitches][voiced_t[pitches]]
        low, high = (power_ft[part][:, frames].sum() + 1e-9 for part in (~high_f, high_f))
        rows.append(
            (
                decibels_t[frames].mean() - decibels_t.mean(),
                decibels_t[frames].std(),
                voiced_semitones.mean() if len(voiced_semitones) else 0.0,
                voiced_semitones.std() if len(voiced_semitones) else 0.0,
                voiced_t[pitches].mean(),
                10 * np.log10(high / low),
                pace_t[frames].mean(),
            )
        )
    return np.array(rows, np.float32)


def loudness(wave_t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(power_ft, level in dB (t,)) of samples at 16 kHz, with 100 frames per second."""
    spectrum = librosa.stft(wave_t, n_fft=FFT, hop_length=HOP, win_length=WINDOW)
    power_ft = np.square(np.abs(spectrum))
    decibels_t = 10 * np.log10(power_ft.sum(axis=0) + 1e-9)
    return power_ft, np.maximum(decibels_t, decibels_t.max() - FLOOR)


def standardise(features: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, (7,), over all recordings; 1 for a deviation of 0."""
    all_nd = np.concatenate(features)
    deviation_d = all_nd.std(axis=0)
    return all_nd.mean(axis=0), np.where(deviation_d > 0, deviation_d, 1)


def _part(unit: int, size: int) -> slice:
    return slice(unit * size, (unit + 1) * size)


def _smooth(values_t: np.ndarray, size: int) -> np.ndarray:
    """Moving average with a Hann window, normalised at the ends."""
    window = scipy.signal.windows.hann(size + 2)[1:-1]
    sums_t, weights_t = (
        scipy.ndimage.convolve1d(array, window, mode="constant")
        for array in (np.asarray(values_t, float), np.ones(len(values_t)))
    )
    return sums_t / weights_t
