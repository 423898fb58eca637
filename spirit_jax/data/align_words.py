"""Where the words of an alignment come from: an aligner, or the files of another tool.

A `Job` is an item while it is processed. `read` loads what a source of words needs, in a thread,
and `WordSource.add_words` adds the words to the jobs of a batch.
"""

import dataclasses
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from spirit_jax import checksums, files
from spirit_jax.audio import SAMPLE_RATE, load_audio
from spirit_jax.data import word_times
from spirit_jax.data.align import Aligned
from spirit_jax.data.manifest import PATHS, Item, Row
from spirit_jax.errors import InputError, InputWarning, ResourceError, plural


class WordAligner(Protocol):
    """The interface of aligners, such as `align.Aligner`.

    Attributes:
      name: for messages.
      checksum: identifies the aligner; a run only resumes with the same one.
    """

    name: str
    checksum: str

    def align_batch(self, audios: Sequence[np.ndarray], texts: Sequence[str]) -> list[Aligned]:
        """The word times of each recording, in order."""


@dataclasses.dataclass
class Job:
    """An item while it is processed.

    Attributes:
      row: the item, and its line in the source.
      fields: of the item, to be written.
      loaded: samples to align, or imported words.
      counts: see `align_results.AlignReport`.
      problem: why the item is rejected; "" if it is not.
    """

    row: Row
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    loaded: Any = None
    counts: dict[str, Any] = dataclasses.field(default_factory=dict)
    problem: str = ""

    def to_entry(self) -> dict[str, Any]:
        """The JSON object for OUTPUT.partial: the item and its counts, or the rejected item."""
        if self.problem:
            names = ("id", *PATHS)
            known = {n: self.fields[n] for n in names if isinstance(self.fields.get(n), str)}
            return {"reject": {"line": self.row.number} | known | {"reason": self.problem}}
        counts = {name: count for name, count in self.counts.items() if count}
        return {"item": self.fields, "counts": counts}


class WordSource(Protocol):
    """Adds words to items.

    Attributes:
      settings: what the result depends on, as JSON values by name.
    """

    settings: dict[str, Any]

    def load(self, item: Item) -> Any:
        """What `add_words` needs of an item; raises `InputError` if the item cannot be used."""

    def add_words(self, jobs: Sequence[Job]) -> None:
        """Adds the words to the fields of jobs, and sets their counts and problems."""


class ComputedWords:
    """Words whose times an aligner computes from recording and text."""

    def __init__(self, aligner: WordAligner, min_score: float | None):
        """Items with a score below `min_score` are rejected; see `Aligned.score`."""
        self._aligner, self._min_score = aligner, min_score
        self.settings = {
            "aligner": aligner.name,
            "min_score": min_score,
            "content of the aligner": aligner.checksum,
        }

    def load(self, item: Item) -> np.ndarray:
        """The samples of the recording."""
        if not item.text:
            raise InputError("The line has no 'text' that is a string.")
        return load_audio(item.audio)

    def add_words(self, jobs: Sequence[Job]) -> None:
        """See `WordSource`; also adds the scores."""
        waves, texts = [job.loaded for job in jobs], [job.row.item.text for job in jobs]
        for job, aligned in zip(jobs, self._aligner.align_batch(waves, texts), strict=True):
            job.fields |= {"words": aligned.words, "score": round(aligned.score, 4)}
            job.counts = {"stars": aligned.stars, "letters": dict(aligned.unknown)}
            job.problem = aligned.problem
            if not aligned.problem and self._min_score is not None:
                if aligned.score < self._min_score:
                    job.problem = f"The score is {aligned.score:.3f}, less than {self._min_score}."


class ImportedWords:
    """Words with times from files of another tool, such as ID.TextGrid."""

    def __init__(self, kind: str, folder: str | Path, tier: str):
        """Lists the files.

        Args:
          kind: a key of `word_times.SUFFIXES`.
          folder: with a file for each item.
          tier: name of the TextGrids' tier with the words.
        """
        self._kind, self._folder, self._tier = kind, str(folder), tier
        self._path_by_id = word_times.find_files(folder, word_times.SUFFIXES[kind])
        self.settings = {
            kind: self._folder,
            "tier": tier,
            f"content of {kind}": _checksum_files(self._path_by_id.values()),
        }

    def load(self, item: Item) -> word_times.Imported:
        """The words of the file of an item."""
        path = self._path_by_id.get(item.id)
        if path is None:
            raise InputError(f"There is no file {item.id}{word_times.SUFFIXES[self._kind]}.")
        entries = word_times.READERS[self._kind](path, self._tier)
        seconds = len(load_audio(item.audio)) / SAMPLE_RATE  # decoded, since a header may be wrong
        imported = word_times.finish(entries, str(path), seconds, item.text)
        if not imported.words:
            raise InputError(f"{path}: has no words.")
        return imported

    def add_words(self, jobs: Sequence[Job]) -> None:
        """See `WordSource`; an item without text gets the words as its text."""
        for job in jobs:
            job.fields["words"] = job.loaded.words
            if not job.fields.get("text"):
                job.fields["text"] = " ".join(word for word, _, _ in job.loaded.words)
            job.counts = {"repaired": job.loaded.repaired, "unknown": job.loaded.unknown}

    def watch_unused(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows; warns at their end of files that are about none of them."""
        unused = set(self._path_by_id.values())
        for row in rows:
            unused.discard(self._path_by_id.get(row.item.id))
            yield row
        if unused:
            names = sorted(path.name for path in unused)
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            message = f"{self._folder}: {plural(len(unused), 'file')} with the name of no item: "
            warnings.warn(f"{message}{some}.", InputWarning, stacklevel=2)


def read(words: WordSource, output: Path, row: Row) -> Job:
    """The job of an item, with what its words are made of.

    Args:
      words: loads it.
      output: the manifest to be written; relative audio paths are relative to its folder.
      row: the item.
    """
    job, item = Job(row), row.item
    try:
        job.fields = _write_fields(row, output)
        if item.problem:
            raise InputError(item.problem)
        if item.audio is None:
            raise InputError("The line has no 'audio' that is a string.")
        job.loaded = words.load(item)
    except ResourceError:
        raise
    except InputError as error:
        job.problem = str(error)
    return job


def _write_fields(row: Row, output: Path) -> dict[str, Any]:
    """The fields of an item for a manifest at `output`: relative paths stay relative."""
    path = row.item.audio_path
    fields = dict(row.fields)
    if not fields and path is not None:  # of a folder
        fields = {"audio": str(path)} | ({"text": row.item.text} if row.item.text else {})
    if path is not None:
        name = next(name for name in PATHS if fields.get(name))
        written = os.path.expanduser(fields[name])
        is_absolute = os.path.isabs(written) or files.is_bucket(written)
        is_elsewhere = files.is_bucket(path) != files.is_bucket(output)
        keeps = is_elsewhere or is_absolute and bool(row.fields)
        fields[name] = str(path) if keeps else os.path.relpath(path, output.parent)
    return ({"id": row.item.id} if row.item.id and path is not None else {}) | fields


def _checksum_files(paths: Iterable[Path]) -> str:
    """A checksum of the names, sizes and modification times of files, some of which may be lost."""
    listing = []
    for path in paths:
        try:
            stat = path.stat()
            listing.append((str(path), stat.st_size, stat.st_mtime_ns))
        except OSError:  # such as a broken link; the item is rejected when it is read
            listing.append((str(path), -1, -1))
    return checksums.of_value(sorted(listing))
