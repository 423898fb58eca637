"""The cache of arrays computed from recordings: whole or absent, and never of other inputs."""

import dataclasses
import os

import numpy as np
import pytest

from spirit_jax.audio import write_wav
from spirit_jax.data.manifest import Item, fingerprint
from spirit_jax.errors import InputError
from spirit_jax.training import recording_cache

COUNT = 100


@pytest.fixture
def items(tmp_path):
    """Recordings in memory, whose samples all have the value of their number."""
    return [Item(f"item {n}", np.full(n % 7, n / 1000, np.float32)) for n in range(COUNT)]


@pytest.fixture
def read(tmp_path):
    """Reads the cache, and lists the ids of the recordings that were computed."""

    def read(items, settings="settings", computed=None, **options):
        computed = [] if computed is None else computed

        def compute(chunk):
            computed.extend(item.id for item in chunk)
            return [double(item) for item in chunk]

        rows = recording_cache.read(tmp_path / "f", settings, items, compute, "items", **options)
        return rows, computed

    return read


def double(item):
    samples_t = np.asarray(item.audio)
    return {"twice": 2 * samples_t, "id": np.frombuffer(item.id.encode(), np.uint8)}


def double_all(items):  # can be pickled
    return list(map(double, items))


def assert_rows(rows, items):
    for row, item in zip(rows, items, strict=True):
        np.testing.assert_array_equal(row["twice"], 2 * np.asarray(item.audio))
        assert row["id"].tobytes().decode() == item.id


def test_arrays_are_computed_once_and_read_in_order(items, read):
    rows, computed = read(items)
    assert_rows(rows, items)
    assert computed == [item.id for item in items]
    rows, computed = read(items)
    assert_rows(rows, items)
    assert computed == []


def test_equal_recordings_are_computed_once(items, read):
    rows, computed = read([items[3], items[5], items[3]])
    assert_rows(rows, [items[3], items[5], items[3]])
    assert computed == ["item 3", "item 5"]


def test_other_settings_or_keys_are_computed_separately(items, read):
    read(items)
    assert len(read(items, "other settings")[1]) == COUNT
    assert len(read(items, key=lambda item: fingerprint(item) + b"!")[1]) == COUNT
    assert read(items)[1] == []


def test_an_added_or_changed_recording_changes_few_chunks(items, read):
    read(items)
    changed = [*items[:10], Item("new", np.ones(3, np.float32)), *items[10:]]
    changed[60] = dataclasses.replace(changed[60], audio=np.ones(2, np.float32))
    rows, computed = read(changed)
    assert_rows(rows, changed)
    assert {"new", changed[60].id} <= set(computed)
    assert len(computed) < COUNT


def test_a_changed_file_is_computed_again(tmp_path, read):
    path = tmp_path / "a.wav"
    lengths = []
    for samples in (100, 200):
        write_wav(path, np.zeros(samples))
        item = Item("a", path)
        compute = lambda items: [{"bytes": np.zeros(os.stat(items[0].audio).st_size)}]  # noqa: E731
        (row,) = recording_cache.read(tmp_path / "f", "", [item], compute, "files")
        lengths.append(len(row["bytes"]))
    assert lengths[1] - lengths[0] == 200  # 16-bit samples


def test_a_stopped_computation_resumes(items, tmp_path, read):
    computed = []

    def fail(item):
        if len(computed) > COUNT // 2:
            raise KeyboardInterrupt
        return fingerprint(item)

    def compute(chunk):
        computed.extend(item.id for item in chunk)
        return [fail(item) and double(item) for item in chunk]

    with pytest.raises(KeyboardInterrupt):
        recording_cache.read(tmp_path / "f", "settings", items, compute, "items")
    assert all(name.endswith(".npz") for name in os.listdir(tmp_path / "f"))
    rows, resumed = read(items)
    assert_rows(rows, items)
    assert 0 < len(resumed) < COUNT


def test_a_damaged_file_is_reported_and_computed_again(items, tmp_path, read, capsys):
    read(items)
    (path, *_) = sorted((tmp_path / "f").iterdir())
    data = path.read_bytes()
    for damage in (data[:100], data[:200] + bytes([data[200] ^ 1]) + data[201:], b""):
        path.write_bytes(damage)
        rows, computed = read(items)
        assert_rows(rows, items)
        assert 0 < len(computed) < COUNT
        assert f"{path} is damaged and computed again" in capsys.readouterr().err


def test_two_processes_compute_the_same(tmp_path, items):
    folders = tmp_path / "sequential", tmp_path / "parallel"
    for folder, workers in zip(folders, (1, 2), strict=True):
        rows = recording_cache.read(folder, "", items, double_all, "items", workers=workers)
        assert_rows(rows, items)
    assert sorted(os.listdir(folders[0])) == sorted(os.listdir(folders[1]))


def test_a_value_of_all_recordings_is_computed_once(items, tmp_path):
    calls = []
    for chosen in (items[:3], items[:3], items[:4]):

        def compute(chosen=chosen):
            calls.append(len(chosen))
            return np.arange(len(chosen))

        value_n = recording_cache.read_value(tmp_path / "f", "centroids", chosen, compute)
        np.testing.assert_array_equal(value_n, np.arange(len(chosen)))
    assert calls == [3, 4]


def test_missing_recordings_and_unwritable_folders_are_named(tmp_path, items, read):
    with pytest.raises(InputError, match="gone.wav"):
        read([Item("a", tmp_path / "gone.wav")])
    (tmp_path / "f").write_text("a file")
    with pytest.raises(InputError, match=str(tmp_path / "f")):
        read(items)
