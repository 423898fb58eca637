"""Adds word times to the items of a corpus: computed here, or read from other tools' files.

The source is a manifest or a folder; see `manifest.read_source`. `align_words` adds the words to
batches of items, and `align_results` has the files that are written.
"""

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from spirit_jax import files
from spirit_jax.data import align_words
from spirit_jax.data.align_results import AlignReport, resume, split
from spirit_jax.data.align_words import ComputedWords, ImportedWords, Job, WordAligner, WordSource
from spirit_jax.data.configs import check_alignment
from spirit_jax.data.manifest import Row, read_rows
from spirit_jax.data.read_ahead import read_ahead
from spirit_jax.errors import InputError
from spirit_jax.files import lock

DECODERS = 4  # threads that read files in advance


def align_corpus(
    source: str | Path,
    output: str | Path,
    aligner: WordAligner | None = None,
    *,
    textgrid: str | Path | None = None,
    whisperx: str | Path | None = None,
    tier: str = "words",
    min_score: float | None = None,
    batch_size: int = 16,
    part: int = 1,
    parts: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> AlignReport:
    """Writes the manifest `output`: the items of `source` with `words` and, if computed, `score`.

    Items that cannot be used are listed with reasons in OUTPUT.rejects.jsonl instead. Existing
    words are replaced. An item without `text` gets the imported words as its text.

    Args:
      source: a manifest, or a folder of recordings with .txt files of the same names.
      output: the manifest to write; relative audio paths stay relative.
      aligner: computes the times from `text`; give it or one of the next two.
      textgrid, whisperx: a folder of ID.TextGrid files, or of ID.json files.
      tier: name of the TextGrids' tier with the words.
      min_score: items with a lower score are rejected; see `Aligned.score`.
      batch_size: recordings in a batch; as many more are read in advance.
      part, parts: aligns part 1 to `parts` of the items. The outputs of all parts, one after
        another, are the output without parts.
      progress: called after each batch with the number of items done so far.

    Returns:
      Statistics of all items.

    Raises:
      InputError: `output` exists or is being written, the source cannot be read, no item can be
        used, or OUTPUT.partial belongs to another source, aligner or other settings.
    """
    source, output = files.as_path(source), files.as_path(output)
    _check_arguments(output, (aligner, textgrid, whisperx), batch_size, min_score)
    rows = _read_part(str(source), part, parts)
    words = _word_source(aligner, min_score, textgrid, whisperx, tier)
    if isinstance(words, ImportedWords) and parts == 1:
        rows = words.watch_unused(rows)
    settings = words.settings | ({"part": f"{part}/{parts}"} if parts > 1 else {})
    with lock.hold(output.parent, output.name + ".lock", output, "output") as output_lock:
        files.refuse_existing(output)  # another process may have written it meanwhile
        partial = output.with_name(output.name + ".partial")
        try:
            done = resume(partial, source, settings)
            with files.GrowingFile(partial) as file:
                for batch in _align(islice(rows, done, None), words, output, batch_size):
                    output_lock.check()
                    lines = "".join(json.dumps(job.to_entry()) + "\n" for job in batch)
                    file.write(lines.encode())
                    done += len(batch)
                    progress(done)
            return split(partial, source, output)
        except OSError as error:
            raise files.unwritable(output, error) from error


def _word_source(aligner, min_score, textgrid, whisperx, tier) -> WordSource:
    """Computes or loads words; see `align_corpus` for the arguments."""
    if aligner is not None:
        return ComputedWords(aligner, min_score)
    kind, folder = ("whisperx", whisperx) if textgrid is None else ("textgrid", textgrid)
    return ImportedWords(kind, folder, tier)


def _read_part(source: str, part: int, parts: int) -> Iterator[Row]:
    """The rows of a part, one after another, so that those of a document stay together.

    Raises:
      InputError: the source cannot be read, is empty, or has fewer items than parts.
    """
    rows = read_rows(source)
    if parts > 1:
        count = sum(1 for _ in rows)
        if count < parts:
            raise InputError(f"{source}: has fewer items than {parts} parts; give a smaller N.")
        rows = islice(read_rows(source), count * (part - 1) // parts, count * part // parts)
    return itertools.chain([next(rows)], rows)  # raises for an empty source before it writes


def _align(
    rows: Iterable[Row], words: WordSource, output: Path, batch_size: int
) -> Iterator[list[Job]]:
    """Batches of finished jobs, in order; the next batch is read in the background."""
    read = functools.partial(align_words.read, words, output)
    with ThreadPoolExecutor(DECODERS) as pool:
        jobs = read_ahead(pool, read, rows, batch_size)
        while batch := list(islice(jobs, batch_size)):
            words.add_words([job for job in batch if not job.problem])
            yield batch


def _check_arguments(
    output: Path, ways: Sequence[Any], batch_size: int, min_score: float | None
) -> None:
    if sum(way is not None for way in ways) != 1:
        raise InputError("Word times come from one of an aligner, TextGrids and WhisperX's JSON.")
    files.refuse_existing(output)
    check_alignment(batch_size, min_score)
