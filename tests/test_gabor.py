"""Gabor filters: each pair responds most to a tone at its own centre frequency."""

import numpy as np
import pytest

from spirit_jax.audio import SAMPLE_RATE
from spirit_jax.training.hubert import gabor as filters


def test_each_filter_pair_responds_most_to_its_centre_frequency_at_any_phase():
    bank_kd = filters.gabor(400, 96)
    np.testing.assert_allclose(np.linalg.norm(bank_kd, axis=0), 1, rtol=1e-5)
    spectrum_fd = np.abs(np.fft.rfft(bank_kd, SAMPLE_RATE, axis=0))  # 1 Hz a bin
    centers_d = spectrum_fd.argmax(axis=0)
    cosines, sines = centers_d[:48], centers_d[48:]
    assert np.all(np.diff(cosines) > 0)
    assert cosines[0] < 150 and cosines[-1] > 7000
    np.testing.assert_allclose(cosines, sines, atol=60)
    for phase in (0.0, 1.0, 2.0):
        for band, center in enumerate(cosines):
            tone_k = np.cos(2 * np.pi * center * np.arange(400) / SAMPLE_RATE + phase)
            power_d = np.square(tone_k @ bank_kd)
            assert (power_d[:48] + power_d[48:]).argmax() == band


@pytest.mark.parametrize("count", [2, 7])
def test_invalid_filter_counts_are_rejected(count):
    with pytest.raises(ValueError, match="even number"):
        filters.gabor(80, count)
