"""Damaged prepared corpora: read exactly, or rejected."""

import functools
import os
import random
import shutil

import pytest

from fuzz.mutate import attempt, mutate_bytes, seeds
from spirit_jax.data.corpus import Corpus
from spirit_jax.data.records import write_shard
from spirit_jax.data.shard_list import Shard, write_list
from spirit_jax.data.toy import make_utterances


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two parts of two shards each, all of the same number of records."""
    folder = tmp_path_factory.mktemp("fuzz")
    for part in (1, 2):
        shards = []
        for number in range(2):
            path = folder / f"part-{part}-{number}.arrayrecord"
            count = write_shard(path, make_utterances(6, seed=10 * part + number))
            shards.append(Shard.of(path, count))
        write_list(folder, shards, {"hubert": "0" * 64}, part, parts=2)
    return folder


def read(folder):
    corpus = Corpus(folder)
    return [utterance.to_bytes() for utterance in corpus], corpus.tokenizer


@seeds
def test_damaged_files(seeds, folder):
    expected, files = read(folder), sorted(folder.iterdir())
    for seed in seeds:
        path = random.Random(seed).choice(files)
        original = path.read_bytes()
        path.write_bytes(mutate_bytes(original, seed))
        result = attempt(lambda: read(folder), seed)
        path.write_bytes(original)
        assert result is None or result == expected, (seed, path)


@seeds
def test_missing_copied_and_exchanged_files(seeds, folder, tmp_path):
    expected, files = read(folder), sorted(path.name for path in folder.iterdir())
    for seed in seeds:
        rng, copy = random.Random(seed), tmp_path / str(seed)
        shutil.copytree(folder, copy)
        first, second = (copy / name for name in rng.sample(files, 2))
        change = rng.choice(("remove", "copy", "exchange", "add"))
        if change == "remove":
            first.unlink()
        elif change == "copy":
            shutil.copy(first, second)
        elif change == "add":
            shutil.copy(first, first.with_name(f"copy-{first.name}"))
        else:
            first.rename(copy / "other")
            second.rename(first)
            os.rename(copy / "other", second)
        result = attempt(functools.partial(read, copy), seed)
        assert result is None or result == expected, (seed, change, first, second)
        shutil.rmtree(copy)
