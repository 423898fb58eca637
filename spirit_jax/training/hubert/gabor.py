"""Band-pass filters for a first conv to begin from: it then hears a spectrum from the first step.

Letters: k samples of a filter, d filters.

Gabor filters whose centres are spread as ears spread them (mel), in pairs a quarter of a period
apart, as LEAF begins (arXiv 2101.08596, section 3.1). A small trunk on an hour or two of speech
takes a good part of its training to find such filters from random ones.
"""

import librosa
import numpy as np

from spirit_jax.audio import SAMPLE_RATE

LOWEST, HIGHEST = 80.0, 7600.0  # Hz, centres of the first and the last band
NARROWEST = 60.0  # Hz


def gabor(samples: int, filters: int) -> np.ndarray:
    """Filters float32 (samples, filters): cosines, then sines; each has unit energy.

    Raises:
      ValueError: an odd number of filters, or fewer than four.
    """
    if filters < 4 or filters % 2:
        raise ValueError(f"{filters} filters do not make two pairs or more.")
    centers_d = librosa.mel_frequencies(filters // 2, fmin=LOWEST, fmax=HIGHEST, htk=True)
    widths_d = np.gradient(centers_d) + NARROWEST
    seconds_k1 = (np.arange(samples)[:, None] - (samples - 1) / 2) / SAMPLE_RATE
    bells_kd = np.exp(-0.5 * np.square(np.pi * widths_d * seconds_k1))
    bells_kd *= np.hanning(samples + 2)[1:-1, None]
    angles_kd = 2 * np.pi * centers_d * seconds_k1
    filters_kd = np.concatenate([bells_kd * np.cos(angles_kd), bells_kd * np.sin(angles_kd)], 1)
    return (filters_kd / np.linalg.norm(filters_kd, axis=0)).astype(np.float32)
