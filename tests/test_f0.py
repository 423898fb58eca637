"""F0 of an utterance: resizing, interpolation, pyin on tones."""

import numpy as np
import pytest

from spirit_jax import f0

RATE = 16_000


def test_unvoiced_frames_are_interpolated_and_edges_extended():
    frames = np.array([0, 100, 0, 0, 130, 49.9, 0], np.float32)  # 10 ms each
    track, voiced = f0.postprocess(frames, samples=160 * 7 - 80)
    assert len(track) == len(voiced) == 14
    np.testing.assert_allclose(track[::2], [100, 100, 110, 120, 130, 130, 130])
    np.testing.assert_array_equal(voiced, np.repeat([0, 1, 0, 0, 1, 0, 0], 2))


def test_f0_above_the_maximum_is_clipped_and_voiced():
    track, voiced = f0.postprocess(np.array([1500.0, 400.0]), samples=240)
    assert track.tolist() == [1100, 1100, 400, 400] and voiced.all()


def test_frames_are_resampled_to_the_nearest_frame():
    frames = np.arange(100, 110, dtype=np.float32)
    track, _ = f0.postprocess(frames, samples=80 * 6)  # ten frames to seven
    assert track.tolist() == [100, 101, 102, 104, 105, 107, 108]


@pytest.mark.parametrize("frames", [np.zeros(4), np.full(4, 30.0), np.zeros(0)])
def test_a_track_without_voiced_frames_is_zero(frames):
    track, voiced = f0.postprocess(frames, samples=400)
    assert track.tolist() == voiced.tolist() == [0] * 6


@pytest.mark.parametrize("hertz", [110, 220, 440])
def test_pyin_estimates_the_f0_of_tones(hertz):
    time = np.arange(RATE // 2) / RATE
    wave = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in (1, 2, 3))
    track, voiced = f0.pyin_f0((0.2 * wave).astype(np.float32))
    assert len(track) == len(voiced) == 101
    assert voiced[10:-10].mean() > 0.9
    np.testing.assert_allclose(track[10:-10], hertz, rtol=0.01)


def test_pyin_of_silence_is_unvoiced():
    track, voiced = f0.pyin_f0(np.zeros(2000, np.float32))
    assert track.shape == voiced.shape == (26,)
    assert not track.any() and not voiced.any()
