"""A synthetic prepared corpus, for tests and trial runs: short sentences with units.

Nothing has to be downloaded, and a model can learn from it, since the units of a word are
a function of its letters.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from spirit_jax import files, limits
from spirit_jax.data.index import Builder
from spirit_jax.data.records import SUFFIX, Utterance, write_shard
from spirit_jax.data.shard_list import Shard, write_list
from spirit_jax.units import HUBERT_RATE, PITCH_RATE, STYLE_RATE, Units
from spirit_jax.vocab import HUBERT_UNITS, PITCH_UNITS, STYLE_UNITS

WHO = ("the cat", "a dog", "my friend", "the old king", "a small bird")
DOES = ("sees", "follows", "finds", "likes", "waits for")
WHERE = ("in the garden", "by the river", "at night", "every morning", "near the house")
MAX_FRAMES = 2  # longest duration of a unit


def make_utterances(count: int, seed: int = 0) -> Iterator[Utterance]:
    """Random utterances with all three unit streams and word times.

    Args:
      count: number of utterances.
      seed: random seed.
    """
    limits.check_seed(seed)
    rng = np.random.default_rng(seed)
    for number in range(count):
        parts = (rng.choice(WHO), rng.choice(DOES), rng.choice(WHO), rng.choice(WHERE))
        yield _synthesise(f"toy-{number}", " ".join(parts), rng)


def write_toy_corpus(folder: str | Path, count: int = 200, seed: int = 0) -> None:
    """Writes a prepared corpus of one shard, unless the folder exists.

    Args:
      folder: to write.
      count: number of utterances.
      seed: random seed.
    """
    if not files.as_path(folder).is_dir():
        with files.whole_folder(folder) as unfinished:
            path, index = unfinished / f"toy{SUFFIX}", Builder()
            records = write_shard(path, index.watch(make_utterances(count, seed)))
            write_list(unfinished, [Shard.of(path, records)], {}, index=index.build())


def _synthesise(name: str, text: str, rng: np.random.Generator) -> Utterance:
    hubert: list[int] = []
    words = []
    for word in text.split():
        start = len(hubert)
        for index, letter in enumerate(word):
            unit = (ord(letter) * 7 + index * 3) % (HUBERT_UNITS - 1)
            hubert += [unit] * int(rng.integers(1, MAX_FRAMES + 1))
        words.append((word, start / HUBERT_RATE, len(hubert) / HUBERT_RATE))
    seconds = len(hubert) / HUBERT_RATE
    pitch = rng.integers(0, PITCH_UNITS, max(1, round(seconds * PITCH_RATE)))
    style = rng.integers(0, STYLE_UNITS, max(1, round(seconds * STYLE_RATE)))
    streams = (np.array(stream, np.int32) for stream in (hubert, pitch, style))
    return Utterance(name, Units(*streams), seconds, text, tuple(words))
