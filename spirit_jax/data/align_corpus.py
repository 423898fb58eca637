"""Adds word times to the items of a corpus: computed here, or read from other tools' files.

The source is a manifest or a folder; see `manifest.read_source`. Results are appended to
OUTPUT.partial, a line for every item in order, so that an interrupted run resumes. At the end it is
split into OUTPUT and, for items that failed, OUTPUT.rejects.jsonl.
"""

import collections
import dataclasses
import functools
import itertools
import json
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from spirit_jax import checksums, files, lock
from spirit_jax.audio import SAMPLE_RATE, load_audio
from spirit_jax.data import word_times
from spirit_jax.data.align import Aligned
from spirit_jax.data.configs import check_alignment
from spirit_jax.data.manifest import PATHS, Item, Row, read_rows, source_checksum
from spirit_jax.errors import InputError, InputWarning, LackError, plural

DECODERS = 4  # threads that read files in advance
LETTERS = 10  # largest number of characters that a report lists


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
class AlignReport:
    """Statistics of an alignment.

    Attributes:
      aligned: number of items with word times.
      rejected: number of items that could not be used.
      repaired: number of words with missing or impossible times in a file; see `timing.fit_words`.
      unknown: number of labels of unknown words in files; they are not among the words.
      stars: number of words that the aligner does not know or cannot spell.
      letters: the unknown characters or words, with the number of words.
    """

    aligned: int = 0
    rejected: int = 0
    repaired: int = 0
    unknown: int = 0
    stars: int = 0
    letters: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def notes(self) -> list[str]:
        """Warnings about the words, one sentence each."""
        notes = []
        if self.repaired:
            notes.append(
                f"{plural(self.repaired, 'word')} with no times, or impossible ones, got the time "
                "between the neighbours."
            )
        if self.unknown:
            notes.append(
                f"{plural(self.unknown, 'spoken word')} left out: the files have only a "
                "label there, such as <unk> or spn."
            )
        if self.stars:
            letters = ", ".join(f"{c} ({n})" for c, n in self.letters.most_common(LETTERS))
            letters += ", ..." if len(self.letters) > LETTERS else ""
            notes.append(
                f"The times of {plural(self.stars, 'word')} are less exact, since the aligner "
                f"does not know the word or its characters: {letters}."
            )
        return notes


@dataclasses.dataclass
class _Job:
    """An item while it is processed."""

    row: Row
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)  # to be written
    loaded: Any = None  # samples to align, or imported words
    counts: dict[str, Any] = dataclasses.field(default_factory=dict)  # see `AlignReport`
    problem: str = ""  # why it is rejected


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
    progress: Callable[[int], None] = lambda done: None,
) -> AlignReport:
    """Writes the manifest `output`: the items of `source` with `words` and, if computed, `score`.

    Items that cannot be used are listed with reasons in OUTPUT.rejects.jsonl instead. Existing
    words are replaced. An item without `text` gets the imported words as its text.

    Args:
      source: a manifest, or a folder of recordings with .txt files of the same names.
      output: the manifest to write; relative audio paths stay relative.
      aligner: computes the times from `text`. Give exactly one of `aligner`, `textgrid` and
        `whisperx`.
      textgrid: a folder of ID.TextGrid files.
      whisperx: a folder of ID.json files.
      tier: name of the TextGrids' tier with the words.
      min_score: items with a lower score are rejected; see `Aligned.score`.
      batch_size: recordings in a batch; as many more are read in advance.
      progress: called after each batch with the number of items done so far.

    Returns:
      Statistics of all items.

    Raises:
      InputError: `output` exists, another process writes it, the source cannot be read, no item
        can be used, or OUTPUT.partial belongs to another source, aligner or other settings.
    """
    source, output = Path(source), Path(output)
    _check_arguments(output, (aligner, textgrid, whisperx))
    check_alignment(batch_size, min_score)
    rows = read_rows(str(source))
    rows = itertools.chain([next(rows)], rows)  # raises for an empty source before it writes
    if aligner is not None:
        settings, load, align = _computing(aligner, min_score)
    else:
        kind = "whisperx" if textgrid is None else "textgrid"
        by_id = word_times.find_files(textgrid or whisperx, word_times.SUFFIXES[kind])
        settings, load, align = _importing(by_id, kind, str(textgrid or whisperx), tier)
        rows = _watch_unused(rows, by_id, str(textgrid or whisperx))
    prepare = functools.partial(_prepare, output, load)
    with lock.hold(output.parent, output.name + ".lock", output, "output") as output_lock:
        files.refuse_existing(output)  # another process may have written it meanwhile
        partial = output.with_name(output.name + ".partial")
        try:
            done = _resume(partial, source, settings)
            rows = islice(rows, done, None)
            with partial.open("a", encoding="utf-8") as file:
                for batch in _align_batches(rows, prepare, align, batch_size):
                    output_lock.check()
                    file.writelines(_to_line(job) for job in batch)
                    file.flush()
                    done += len(batch)
                    progress(done)
            return _split(partial, source, output)
        except OSError as error:
            raise files.unwritable(output, error) from error


def _align_batches(
    rows: Iterable[Row],
    prepare: Callable[[Row], _Job],
    align: Callable[[Sequence[_Job]], None],
    batch_size: int,
) -> Iterator[list[_Job]]:
    """Batches of finished jobs, in order; the next batch is read in the background."""
    with ThreadPoolExecutor(DECODERS) as pool:
        jobs = _read_ahead((pool.submit(prepare, row) for row in rows), batch_size)
        while batch := list(islice(jobs, batch_size)):
            align([job for job in batch if not job.problem])
            yield batch


def _check_arguments(output: Path, ways: Sequence[Any]) -> None:
    if sum(way is not None for way in ways) != 1:
        raise InputError("Word times come from one of an aligner, TextGrids and WhisperX's JSON.")
    files.refuse_existing(output)


def _computing(aligner: WordAligner, min_score: float | None) -> tuple[dict, Callable, Callable]:
    """(settings that the result depends on, function that loads an item, that aligns a batch)."""
    settings = {"aligner": aligner.name, "min_score": min_score}
    settings["content of the aligner"] = aligner.checksum
    return settings, _load_wave, functools.partial(_align, aligner, min_score)


def _importing(
    by_id: Mapping[str, Path], kind: str, folder: str, tier: str
) -> tuple[dict, Callable, Callable]:
    """As `_computing`, for the files of another tool."""
    settings = {kind: folder, "tier": tier}
    settings[f"content of {kind}"] = _checksum_files(by_id.values())
    return settings, functools.partial(_import_words, by_id, kind, tier), _take_imported


def _watch_unused(rows: Iterable[Row], by_id: Mapping[str, Path], folder: str) -> Iterator[Row]:
    """The rows; warns at their end of files that are about none of them."""
    unused = set(by_id.values())
    for row in rows:
        unused.discard(by_id.get(row.item.id))
        yield row
    if unused:
        names = sorted(path.name for path in unused)
        some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        message = f"{folder}: {plural(len(unused), 'file')} with the name of no item: {some}."
        warnings.warn(message, InputWarning, stacklevel=2)


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


def _read_ahead(futures: Iterable[Future], ahead: int) -> Iterator[Any]:
    """The results of futures in order, `ahead` of them started in advance."""
    started: deque[Future] = deque()
    for future in futures:
        started.append(future)
        if len(started) > ahead:
            yield started.popleft().result()
    while started:
        yield started.popleft().result()


def _prepare(output: Path, load: Callable[[Item], Any], row: Row) -> _Job:
    """The job of an item, with the result of `load`."""
    job, item = _Job(row), row.item
    try:
        job.fields = _write_fields(row, output)
        if item.problem:
            raise InputError(item.problem)
        if item.audio is None:
            raise InputError("The line has no 'audio' that is a string.")
        job.loaded = load(item)
    except LackError:
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
        is_absolute = os.path.isabs(written) and bool(row.fields)
        fields[name] = str(path) if is_absolute else os.path.relpath(path, output.parent)
    return ({"id": row.item.id} if row.item.id and path is not None else {}) | fields


def _load_wave(item: Item) -> np.ndarray:
    if not item.text:
        raise InputError("The line has no 'text' that is a string.")
    return load_audio(item.audio)


def _import_words(by_id: Mapping[str, Path], kind: str, tier: str, item: Item) -> Any:
    path = by_id.get(item.id)
    if path is None:
        raise InputError(f"There is no file {item.id}{word_times.SUFFIXES[kind]}.")
    entries = word_times.READERS[kind](path, tier)
    seconds = len(load_audio(item.audio)) / SAMPLE_RATE  # decoded, since a header may be wrong
    imported = word_times.finish(entries, str(path), seconds, item.text)
    if not imported.words:
        raise InputError(f"{path}: has no words.")
    return imported


def _take_imported(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        job.fields["words"] = job.loaded.words
        if not job.fields.get("text"):
            job.fields["text"] = " ".join(word for word, _, _ in job.loaded.words)
        job.counts = {"repaired": job.loaded.repaired, "unknown": job.loaded.unknown}


def _align(aligner: WordAligner, min_score: float | None, jobs: Sequence[_Job]) -> None:
    waves, texts = [job.loaded for job in jobs], [job.row.item.text for job in jobs]
    for job, aligned in zip(jobs, aligner.align_batch(waves, texts), strict=True):
        job.fields |= {"words": aligned.words, "score": round(aligned.score, 4)}
        job.counts = {"stars": aligned.stars, "letters": dict(aligned.unknown)}
        job.problem = aligned.problem
        if not aligned.problem and min_score is not None and aligned.score < min_score:
            job.problem = f"The score is {aligned.score:.3f}, less than {min_score}."


def _to_line(job: _Job) -> str:
    """The line of OUTPUT.partial for an item."""
    if job.problem:
        names = ("id", *PATHS)
        known = {name: job.fields[name] for name in names if isinstance(job.fields.get(name), str)}
        reject = {"line": job.row.number} | known | {"reason": job.problem}
        return json.dumps({"reject": reject}) + "\n"
    counts = {name: count for name, count in job.counts.items() if count}
    return json.dumps({"item": job.fields, "counts": counts}) + "\n"


def _resume(partial: Path, source: Path, settings: Mapping[str, Any]) -> int:
    """The number of items in OUTPUT.partial, which is created if it does not exist.

    Its first line has the source and settings. A truncated last line is removed.
    """
    inputs = {"source": str(source), "content of the source": source_checksum(str(source))}
    if not inputs["content of the source"]:
        raise InputError(f"{source}: cannot be read (there is no such file or folder).")
    inputs |= settings
    if not partial.is_file():
        files.write_text(partial, json.dumps(inputs) + "\n")
        return 0
    with partial.open("r+b") as file:
        stored = _parse_header(file.readline(), partial)
        changed = [name for name in inputs if stored.get(name) != inputs[name]]
        if changed:
            differences = ", ".join(
                name
                if name.startswith("content")
                else f"{name} {stored.get(name)!r}, now {value!r}"
                for name, value in inputs.items()
                if name in changed
            )
            raise InputError(
                f"{partial}: was started with another source or other settings ({differences}); "
                "remove it to start again."
            )
        count, end = 0, file.tell()
        while file.readline().endswith(b"\n"):
            count, end = count + 1, file.tell()
        file.truncate(end)
    return count


def _parse_header(line: bytes, partial: Path) -> dict[str, Any]:
    try:
        header = files.parse_json(line.decode("utf-8"))
        if isinstance(header, dict):
            return header
    except ValueError:
        pass
    raise InputError(f"{partial}: its first line is damaged; remove it to start again.")


def _split(partial: Path, source: Path, output: Path) -> AlignReport:
    """Writes OUTPUT and the rejects from a complete OUTPUT.partial, and removes it."""
    rejects = output.with_name(output.name + ".rejects.jsonl")
    report, reason = AlignReport(), ""
    for entry in _read_partial(partial):
        report.rejected += "reject" in entry
        report.aligned += "item" in entry
        reason = reason or entry.get("reject", {}).get("reason", "")
        for name, count in entry.get("counts", {}).items():
            if name == "letters":
                report.letters.update(count)
            else:
                setattr(report, name, getattr(report, name) + count)
    if report.rejected:
        _write_entries(partial, "reject", rejects)
    else:
        rejects.unlink(missing_ok=True)  # of an earlier run
    if report.aligned:  # OUTPUT last: when it exists, the run is complete
        _write_entries(partial, "item", output)
    partial.unlink()
    if not report.aligned:
        raise InputError(
            f"{source}: none of its {report.rejected} items can be used, see {rejects}; "
            f"the first: {reason}"
        )
    return report


def _write_entries(partial: Path, kind: str, path: Path) -> None:
    entries = (entry[kind] for entry in _read_partial(partial) if kind in entry)
    files.write_json_lines(path, entries)


def _read_partial(partial: Path) -> Iterator[dict[str, Any]]:
    """The lines of OUTPUT.partial without the first."""
    for number, entry in files.read_json_lines(partial):
        if number == 1:
            continue
        if not isinstance(entry, dict) or len(entry.keys() & {"item", "reject"}) != 1:
            raise InputError(f"{partial}: line {number} is damaged; remove it to start again.")
        yield entry
