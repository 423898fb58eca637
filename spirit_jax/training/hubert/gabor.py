"""Gabor filters, to initialise the first conv of a trunk.

Letters: k samples of a filter, d filters.

The centre frequencies are spaced on the mel scale, and each band has a cosine and a sine filter, as
in the initialisation of LEAF (arXiv 2101.08596, section 3.1). With little data, a trunk needs a
large part of its training to learn such filters from a random initialisation.
"""

import librosa
import numpy as np

from spirit_jax.audio import SAMPLE_RATE

LOWEST, HIGHEST = 80.0, 7600.0  # Hz, centres of the first and the last band
MIN_WIDTH = 60.0  # Hz


def gabor(samples: int, filters: int) -> np.ndarray:
    """Filters, float32 (samples, filters): cosines, then sines; each has unit energy.

    Raises:
      ValueError: an odd number of filters, or fewer than four.
    """
    if filters < 4 or filters % 2:
        raise ValueError(f"{filters} filters; expected an even number of at least 4.")
    centers_d = librosa.mel_frequencies(filters // 2, fmin=LOWEST, fmax=HIGHEST, htk=True)
    widths_d = np.gradient(centers_d) + MIN_WIDTH
    seconds_k1 = (np.arange(samples)[:, None] - (samples - 1) / 2) / SAMPLE_RATE
    windows_kd = np.exp(-0.5 * np.square(np.pi * widths_d * seconds_k1))
    windows_kd *= np.hanning(samples + 2)[1:-1, None]
    angles_kd = 2 * np.pi * centers_d * seconds_k1
    filters_kd = np.concatenate([windows_kd * np.cos(angles_kd), windows_kd * np.sin(angles_kd)], 1)
    return (filters_kd / np.linalg.norm(filters_kd, axis=0)).astype(np.float32)
