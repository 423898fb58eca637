"""The F0 cache of a corpus: computed once, in parallel, and written atomically."""

import hashlib
import os

import numpy as np
import pytest
from tones import SPEAKERS, make_tone, write_tones

from spirit_jax import f0
from spirit_jax.audio import write_wav
from spirit_jax.data import f0_cache
from spirit_jax.data.f0_cache import F0Config
from spirit_jax.data.manifest import Item, read_source
from spirit_jax.errors import InputError

COARSE = F0Config(resolution=0.5, workers=1)


@pytest.fixture
def items(tmp_path):
    return list(read_source(write_tones(tmp_path, 5)))


@pytest.fixture
def computed(monkeypatch):
    """A list that gets an item for every F0 computed in this process."""
    calls, find = [], f0_cache.find_f0
    monkeypatch.setattr(f0_cache, "find_f0", lambda *args: calls.append(1) or find(*args))
    monkeypatch.setattr(f0_cache, "CHUNK", 2)
    return calls


def test_the_default_f0_is_that_of_the_speech_tokenizer():
    wave = make_tone(0, 0.5, 150.0)
    for samples in (wave, 0 * wave):
        track = f0_cache.find_f0(samples)
        for actual, expected in zip((track.f0_t, track.voiced_t), f0.pyin_f0(samples), strict=True):
            np.testing.assert_array_equal(actual, expected)


def test_a_coarse_f0_is_close_to_the_true_f0(items, tmp_path):
    for item, track in zip(
        items, f0_cache.read_tracks(items, COARSE, tmp_path / "f0"), strict=True
    ):
        assert abs(track.mean / SPEAKERS[item.speaker] - 1) < 0.1
        assert 0.4 < track.voiced_t.mean() < 1


def test_cached_f0_is_not_computed_again(items, tmp_path, computed):
    first = f0_cache.read_tracks(items, COARSE, tmp_path / "f0")
    assert len(computed) == 5
    again = f0_cache.read_tracks(items, COARSE, tmp_path / "f0")
    assert len(computed) == 5
    for track, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(track.f0_t, other.f0_t)
        np.testing.assert_array_equal(track.voiced_t, other.voiced_t)


def test_changed_and_missing_items_are_computed(items, tmp_path, computed):
    f0_cache.read_tracks(items[:2], COARSE, tmp_path / "f0")
    assert len(computed) == 2
    f0_cache.read_tracks(items, COARSE, tmp_path / "f0")  # resumes an interrupted run
    assert len(computed) == 5
    write_wav(items[4].audio, make_tone(7, 1.5, 110.0))
    changed = f0_cache.read_tracks(items, COARSE, tmp_path / "f0")
    assert len(computed) == 6 and len(changed[4].f0_t) == 301
    f0_cache.read_tracks(items, F0Config(resolution=0.4, workers=1), tmp_path / "f0")
    assert len(computed) == 11


def test_file_names_are_hashes_of_the_input(items, tmp_path):
    samples = np.linspace(-0.1, 0.1, 400, dtype=np.float32)
    path, stat = items[0].audio_name, os.stat(items[0].audio)
    hashed = f"pyin 0.5{items[0].id}{path} {stat.st_size} {stat.st_mtime_ns}b".encode()
    f0_cache.read_tracks([items[0], Item("b", samples)], COARSE, tmp_path / "f0")
    name = hashlib.sha256(hashed + samples.tobytes()).hexdigest()[:32]
    assert os.listdir(tmp_path / "f0") == [f"{name}.npz"]


def test_damaged_files_are_computed_again(items, tmp_path, computed, capsys):
    first = f0_cache.read_tracks(items, COARSE, tmp_path / "f0")
    (path, *_) = sorted((tmp_path / "f0").iterdir())
    data = path.read_bytes()
    for damage in (data[:100], data[:200] + bytes([data[200] ^ 1]) + data[201:], b""):
        path.write_bytes(damage)
        again = f0_cache.read_tracks(items, COARSE, tmp_path / "f0")
        assert "computed again" in capsys.readouterr().err
        for track, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(track.f0_t, other.f0_t)


def test_a_failed_write_leaves_no_file(items, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f0_cache.np, "savez", fail)
    with pytest.raises(KeyboardInterrupt):
        f0_cache.read_tracks(items, COARSE, tmp_path / "f0")
    assert os.listdir(tmp_path / "f0") == []


@pytest.mark.slow
def test_worker_processes_give_the_same_tracks(items, tmp_path, monkeypatch):
    monkeypatch.setattr(f0_cache, "CHUNK", 3)
    two = F0Config(folder=str(tmp_path / "two"), resolution=0.5, workers=2)
    tracks = f0_cache.read_tracks(items, two, tmp_path / "not-used")
    assert not (tmp_path / "not-used").exists()
    expected = f0_cache.read_tracks(items, COARSE, tmp_path / "one")
    for track, other in zip(tracks, expected, strict=True):
        np.testing.assert_array_equal(track.f0_t, other.f0_t)


def test_speaker_means_are_over_voiced_frames():
    def track(values):
        values = np.array(values, np.float32)
        return f0_cache.Track(values, (values < 999).astype(np.float32))

    items = [Item("a", speaker="x"), Item("b", speaker="x"), Item("c"), Item("d", speaker="y")]
    tracks = [track([100, 999]), track([200, 300]), track([50]), track([999])]
    assert f0_cache.speaker_means(items, tracks) == {"x": 200.0}


def test_missing_audio_and_invalid_settings_are_rejected(tmp_path):
    with pytest.raises(InputError, match="missing.wav"):
        f0_cache.read_tracks([Item("a", tmp_path / "missing.wav")], COARSE, tmp_path / "f0")
    with pytest.raises(InputError, match="resolution"):
        F0Config(resolution=1.0)
