"""The F0 of a corpus."""

import numpy as np
import pytest
from tones import SPEAKERS, make_tone, write_tones

from spirit_jax import f0
from spirit_jax.data.configs import F0Config
from spirit_jax.data.manifest import Item, read_source
from spirit_jax.errors import InputError
from spirit_jax.training import f0_tracks


def test_the_default_resolution_is_that_of_the_speech_tokenizer():
    tone = make_tone(0, 0.5, 150.0)
    for wave_t in (tone, 0 * tone):
        track = f0_tracks.find_f0(wave_t)
        for values_t, expected_t in zip(
            (track.f0_t, track.voiced_t), f0.pyin_f0(wave_t), strict=True
        ):
            np.testing.assert_array_equal(values_t, expected_t)


def test_tracks_of_tones_have_their_f0_and_are_cached_where_asked(tmp_path):
    items = list(read_source(write_tones(tmp_path, 5)))
    config = F0Config(folder=str(tmp_path / "shared"), resolution=0.5, workers=1)
    first = f0_tracks.read_tracks(items, config, tmp_path / "unused")
    cached = f0_tracks.read_tracks(items, config, tmp_path / "unused")
    assert not (tmp_path / "unused").exists()
    for item, track, again in zip(items, first, cached, strict=True):
        assert abs(track.mean / SPEAKERS[item.speaker] - 1) < 0.1
        assert 0.4 < track.voiced_t.mean() < 1
        np.testing.assert_array_equal(track.f0_t, again.f0_t)
        np.testing.assert_array_equal(track.voiced_t, again.voiced_t)
        assert track.voiced_t.dtype == again.voiced_t.dtype == np.float32


def test_means_of_speakers_are_over_voiced_frames():
    def track(values):
        values_t = np.array(values, np.float32)
        return f0_tracks.Track(values_t, (values_t < 999).astype(np.float32))

    items = [Item("a", speaker="x"), Item("b", speaker="x"), Item("c"), Item("d", speaker="y")]
    tracks = [track([100, 999]), track([200, 300]), track([50]), track([999])]
    assert f0_tracks.speaker_means(items, tracks) == {"x": 200.0}


def test_an_impossible_resolution_is_refused():
    with pytest.raises(InputError, match="resolution"):
        F0Config(resolution=1.0)
