"""Utterances on disk."""

import numpy as np
import pytest

from spirit_jax.data.records import Corpus, Utterance, write_shard
from spirit_jax.errors import InputError
from spirit_jax.units import Units

UTTERANCES = [
    Utterance("a", Units([1, 1, 499]), 0.12, "hi", (("hi", 0.0, 0.1),), "ann", "talk"),
    Utterance("b", Units([3], [4], [5]), 0.08),
    Utterance("c", text="text alone, and ünïcode"),
]


def test_records_come_back_as_they_were(tmp_path):
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

    with pytest.raises(OSError):
        write_shard(tmp_path / "x.arrayrecord", failing())
    assert not list(tmp_path.iterdir())


def test_missing_and_truncated_shards_are_named(tmp_path):
    with pytest.raises(InputError, match="holds no prepared corpus"):
        Corpus(tmp_path)
    path = tmp_path / "x.arrayrecord"
    write_shard(path, UTTERANCES * 50)
    path.write_bytes(path.read_bytes()[:-70_000])
    with pytest.raises(InputError, match="x.arrayrecord: is not a whole shard"):
        Corpus(tmp_path)
    with pytest.raises(InputError, match="not an utterance"):
        Utterance.from_bytes(b"\x00junk")


def test_units_are_numpy_again():
    back = Utterance.from_bytes(UTTERANCES[1].to_bytes())
    assert isinstance(back.units.hubert, np.ndarray) and back.units.pitch.tolist() == [4]
