"""How fast training opens and reads a large prepared corpus, with its memory and open files.

    python -m benchmarks.corpus write /data/large --utterances 3000000 --shards 5000
    python -m benchmarks.corpus read /data/large

The corpus is synthetic: utterances of about 12 seconds with HuBERT units, words and their times.
3 million of them are 10,000 hours, in 3.4 GB. `read` prints one line of JSON.
"""

import dataclasses
import gc
import json
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.progress import track

from spirit_jax.cli.running import call, make_app
from spirit_jax.data.configs import DataConfig, SourceConfig
from spirit_jax.data.index import Index
from spirit_jax.data.pipeline import Stream
from spirit_jax.data.records import SUFFIX, Utterance, write_shard
from spirit_jax.data.shard_list import Shard, write_list
from spirit_jax.text import learn_text_tokenizer, load_text_tokenizer
from spirit_jax.units import HUBERT_RATE, Units
from spirit_jax.vocab import Vocab

POOL = 1000  # different utterances; they are repeated with other ids
WORD_SECONDS = 0.35  # mean length of a word
LETTERS = "etaoinshrdlu"
PIECES = 500  # of the text tokenizer


def make_pool(seconds: float = 12.0, seed: int = 0) -> list[Utterance]:
    """Random utterances of about this length, with units, words and times."""
    rng = np.random.default_rng(seed)
    pool = []
    for _ in range(POOL):
        count = int(rng.integers(int(seconds * 0.5), int(seconds * 1.5)) / WORD_SECONDS)
        ends = np.cumsum(rng.uniform(0.5, 1.5, count) * WORD_SECONDS).round(2)
        starts = [0.0, *ends[:-1]]
        words = ["".join(rng.choice(list(LETTERS), int(rng.integers(2, 9)))) for _ in range(count)]
        frames = int(ends[-1] * HUBERT_RATE)
        units = np.repeat(rng.integers(0, 501, frames), rng.integers(1, 4, frames))[:frames]
        timed = tuple(zip(words, map(float, starts), map(float, ends), strict=True))
        utterance = Utterance("", Units(units), frames / HUBERT_RATE, " ".join(words), timed)
        pool.append(utterance)
    return pool


def write(folder: Path, utterances: int, shards: int) -> None:
    """Writes a corpus of shards of equal size and content, which are copies of the first."""
    pool, size = make_pool(), utterances // shards
    first = folder / f"part-00001-of-00001-00000{SUFFIX}"
    index = Index.of(
        content := [dataclasses.replace(pool[n % POOL], id=f"u{n}") for n in range(size)]
    )
    listed = [Shard.of(first, write_shard(first, content))]
    for shard in track(range(1, shards), description="shards"):
        path = first.with_name(f"part-00001-of-00001-{shard:05d}{SUFFIX}")
        shutil.copyfile(first, path)
        listed.append(dataclasses.replace(listed[0], name=path.name))
    write_list(folder, listed, {}, index=Index.join([index] * shards))


def read(folder: Path, tokens: int, workers: int) -> dict[str, float]:
    """Opens the corpus as a training does, and reads packed rows of 2,048 tokens."""
    with tempfile.TemporaryDirectory() as model:
        learn_text_tokenizer(model, [utterance.text for utterance in make_pool()], PIECES)
        vocab = Vocab.make("base", PIECES)
        tokenizer = load_text_tokenizer(model, vocab)
    config = DataConfig((SourceConfig(str(folder)),), seq_len=2048, batch_rows=8, workers=workers)
    started = time.monotonic()
    stream = Stream(config, tokenizer, vocab)
    next(stream)
    opened = time.monotonic()
    read_tokens = 0
    while read_tokens < tokens:
        read_tokens += int((next(stream)["segments"] > 0).sum())
    seconds, files = time.monotonic() - opened, len(os.listdir("/dev/fd"))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del stream  # ends the processes
    gc.collect()
    return {
        "seconds_to_first_step": round(opened - started, 2),
        "tokens_per_second": round(read_tokens / seconds),
        "memory_gib": round(memory / 2**20, 2),
        "memory_gib_of_a_worker": round(
            resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 2
        ),
        "open_files": files,
    }


app = make_app(help=__doc__)


@app.command("write")
def write_command(
    folder: Annotated[Path, typer.Argument(help="Folder to write to")],
    utterances: Annotated[int, typer.Option(min=1, help="Number of utterances")] = 60_000,
    shards: Annotated[int, typer.Option(min=1, help="Number of shards")] = 100,
) -> None:
    """Writes the corpus."""
    write(folder, utterances, shards)


@app.command("read")
def read_command(
    folder: Annotated[Path, typer.Argument(help="The corpus")],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to read")] = 3_000_000,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 for none")] = 2,
) -> None:
    """Reads the corpus."""
    print(json.dumps(read(folder, tokens, workers)))


if __name__ == "__main__":
    call(app, "python -m benchmarks.corpus")
