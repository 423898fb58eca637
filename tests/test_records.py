"""Utterances in shards on disk: exact round trips, and damaged corpora are rejected."""

import dataclasses
import os
import resource
import shutil

import numpy as np
import pytest

from spirit_jax import units
from spirit_jax.data import shard_list
from spirit_jax.data.corpus import Corpus
from spirit_jax.data.records import Utterance, write_shard
from spirit_jax.data.shard_list import Shard, write_list
from spirit_jax.errors import InputError
from spirit_jax.units import Units

UTTERANCES = [
    Utterance("a", Units([1, 1, 499]), 0.12, "hi", (("hi", 0.0, 0.1),), "ann", "talk"),
    Utterance("b", Units([3], [4], [5]), 0.08),
    Utterance("c", text="text alone, and ünïcode"),
]


def test_records_read_back_unchanged(tmp_path):
    assert write_shard(tmp_path / "corpus/x-0.arrayrecord", UTTERANCES[:2]) == 2
    assert write_shard(tmp_path / "corpus/x-1.arrayrecord", UTTERANCES[2:]) == 1
    corpus = Corpus(tmp_path / "corpus")
    assert list(corpus) == UTTERANCES
    assert corpus[2] == UTTERANCES[2]
    with pytest.raises(IndexError):
        corpus[3]


def test_a_failed_write_leaves_nothing(tmp_path):
    def failing():
        yield UTTERANCES[0]
        raise OSError("no space left")

    with pytest.raises(InputError, match="the disk is full"):
        write_shard(tmp_path / "x.arrayrecord", failing())
    assert not list(tmp_path.iterdir())


def test_missing_and_truncated_shards_are_rejected(tmp_path):
    with pytest.raises(InputError, match="has no prepared corpus"):
        Corpus(tmp_path)
    path = tmp_path / "x.arrayrecord"
    write_shard(path, UTTERANCES * 50)
    path.write_bytes(path.read_bytes()[:-70_000])
    with pytest.raises(InputError, match="x.arrayrecord: is not a complete shard"):
        Corpus(tmp_path)
    with pytest.raises(InputError, match="not an utterance"):
        Utterance.from_bytes(b"\x00junk")


def test_units_read_back_as_numpy_arrays():
    utterance = Utterance.from_bytes(UTTERANCES[1].to_bytes())
    assert isinstance(utterance.units.hubert, np.ndarray) and utterance.units.pitch.tolist() == [4]


def write_corpus(folder, utterances=UTTERANCES, tokenizer=()):
    """Three shards of equal numbers of records, and their list."""
    shards = []
    for number in range(3):
        path = folder / f"x-{number}.arrayrecord"
        renamed = [dataclasses.replace(u, id=f"{u.id}{number}") for u in utterances]
        shards.append(Shard.of(path, write_shard(path, renamed)))
    write_list(folder, shards, dict(tokenizer))
    return folder


def test_missing_added_and_exchanged_shards_are_detected(tmp_path):
    def swap(folder):
        (folder / "x-0.arrayrecord").rename(folder / "other")
        (folder / "x-1.arrayrecord").rename(folder / "x-0.arrayrecord")
        (folder / "other").rename(folder / "x-1.arrayrecord")

    def flip(folder):
        data = bytearray((folder / "x-1.arrayrecord").read_bytes())
        data[-1] ^= 1  # padding, which riegeli does not check
        (folder / "x-1.arrayrecord").write_bytes(data)

    for number, (damage, message) in enumerate(
        (
            (lambda folder: (folder / "x-2.arrayrecord").unlink(), "x-2.arrayrecord is missing"),
            (
                lambda folder: shutil.copy(folder / "x-0.arrayrecord", folder / "y.arrayrecord"),
                "y.arrayrecord is not in the list of its shards",
            ),
            (
                lambda folder: shutil.copy(folder / "x-0.arrayrecord", folder / "x-1.arrayrecord"),
                "x-1.arrayrecord: its checksum is not the listed one",
            ),
            (swap, "x-0.arrayrecord: its checksum is not the listed one"),
            (flip, "x-1.arrayrecord: its checksum is not the listed one"),
            (
                lambda folder: os.truncate(folder / "x-1.arrayrecord", 1000),
                "has 1000 bytes, but prepare wrote",
            ),
        )
    ):
        folder = write_corpus(tmp_path / str(number))
        assert len(Corpus(folder)) == 9
        damage(folder)
        with pytest.raises(InputError, match=message):
            Corpus(folder)


def test_an_unfinished_part_is_rejected(tmp_path):
    write_shard(tmp_path / "x.arrayrecord", UTTERANCES)
    write_list(tmp_path, [Shard.of(tmp_path / "x.arrayrecord", 3)], {}, part=2, parts=2)
    with pytest.raises(InputError, match="not finished part 1 of 2"):
        Corpus(tmp_path)


def test_a_corpus_without_a_shard_list_opens_with_a_warning(tmp_path, capsys):
    folder = write_corpus(tmp_path)
    listed, fingerprint = list(Corpus(folder)), shard_list.fingerprint(folder)
    assert not capsys.readouterr().err
    (folder / "corpus-00001-of-00001.json").unlink()
    assert list(Corpus(folder)) == listed
    assert "has no list of its shards" in capsys.readouterr().err
    assert shard_list.fingerprint(folder) == fingerprint


def test_the_fingerprint_depends_on_the_content_only(tmp_path):
    first = write_corpus(tmp_path / "a")
    same = write_corpus(tmp_path / "b")
    other = write_corpus(tmp_path / "c", UTTERANCES[:2])
    fingerprints = [shard_list.fingerprint(folder) for folder in (first, same, other)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_units_beyond_16_bits_are_rejected():
    with pytest.raises(InputError, match="40000"):
        Utterance("a", Units([40_000]), 0.04).to_bytes()


def test_units_parsed_from_a_string_cannot_be_stored():
    with pytest.raises(InputError, match="a: units of a string are not timed"):
        Utterance("a", units.from_string("[Hu4]"), 0.04).to_bytes()


def test_a_corpus_may_have_more_shards_than_open_files_are_allowed(tmp_path):
    first = write_shard(tmp_path / "s-0.arrayrecord", UTTERANCES[:1])
    for number in range(1, 300):
        shutil.copy(tmp_path / "s-0.arrayrecord", tmp_path / f"s-{number}.arrayrecord")
    paths = sorted(tmp_path.glob("*.arrayrecord"))
    write_list(tmp_path, [Shard.of(path, first) for path in paths], {})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 160, limits[1]))
    try:
        corpus = Corpus(tmp_path)
        assert [corpus[i].id for i in range(299, -1, -1)] == ["a"] * 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_shard_that_is_a_broken_link_is_named(tmp_path):
    write_corpus(tmp_path)
    shard = next(tmp_path.glob("*.arrayrecord"))
    shard.unlink()
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"{shard.name}: cannot be read"):
        Corpus(tmp_path)
