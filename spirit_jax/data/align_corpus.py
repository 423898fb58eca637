"""Adds word times to the manifest of a corpus: computed here, or found by other tools.

A manifest has a JSON object a line, with `id`, `audio` (relative to the manifest) and `text` among
its fields. What is done goes to OUTPUT.partial, a line for every item in order, so that a run that
was stopped goes on; at the end it becomes OUTPUT and, for items that failed, OUTPUT.rejects.jsonl.
"""

import dataclasses
import functools
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from spirit_jax import files
from spirit_jax.audio import load_audio
from spirit_jax.data import word_times
from spirit_jax.data.align import Aligner
from spirit_jax.errors import InputError

DECODERS = 4  # threads that read files ahead


@dataclasses.dataclass(frozen=True)
class AlignReport:
    """How many items of a corpus have words now, and how many were rejected."""

    aligned: int
    rejected: int


@dataclasses.dataclass
class _Item:
    """A line of the manifest on its way."""

    number: int
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    loaded: Any = None  # samples to align, or imported words
    problem: str = ""  # why it is rejected


def align_corpus(
    source: str | Path,
    output: str | Path,
    aligner: Aligner | None = None,
    *,
    textgrid: str | Path | None = None,
    whisperx: str | Path | None = None,
    tier: str = "words",
    min_score: float | None = None,
    batch_size: int = 16,
    progress: Callable[[int], None] = lambda done: None,
) -> AlignReport:
    """Writes the manifest `output`: the items of `source` with `words` and, if computed, `score`.

    Items that cannot be used are left out and listed with reasons in OUTPUT.rejects.jsonl. Words
    that an item had are replaced; a `text` that is not there is made of imported words.

    Args:
      source: the manifest to read.
      output: the manifest to write; its audio paths stay relative where they were.
      aligner: computes the times from `text`.
      textgrid, whisperx: instead, a folder of ID.TextGrid or ID.json files.
      tier: of the TextGrids.
      min_score: items that score less are rejected; see `Aligned.score`.
      batch_size: recordings that are aligned at a time; as many more are read ahead.
      progress: is told the number of items that are done, a batch at a time.

    Raises:
      InputError: `output` exists, the source cannot be read, no item could be used, or
        OUTPUT.partial is of another source or other settings.
    """
    source, output = Path(source), Path(output)
    if sum(way is not None for way in (aligner, textgrid, whisperx)) != 1:
        raise InputError("Word times come from one of an aligner, TextGrids and WhisperX's JSON.")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; expected 1 or more.")
    files.refuse_existing(output)
    if aligner is not None:
        settings = {"aligner": aligner.name, "min_score": min_score}
        load = _load_wave
        find = functools.partial(_align, aligner, min_score)
    else:
        kind = "whisperx" if textgrid is None else "textgrid"
        folder = textgrid or whisperx
        settings = {kind: str(folder), "tier": tier}
        by_id = word_times.find_files(folder, word_times.SUFFIXES[kind])
        load = functools.partial(_import_words, by_id, kind, tier)
        find = _take_imported
    prepare = functools.partial(_prepare, source, output, load)
    partial = output.with_name(output.name + ".partial")
    try:
        done = _resume(partial, source, settings)
        with ThreadPoolExecutor(DECODERS) as pool, partial.open("a", encoding="utf-8") as file:
            lines = islice(_read_lines(source), done, None)
            items = _keep_ahead((pool.submit(prepare, *line) for line in lines), batch_size)
            while batch := list(islice(items, batch_size)):
                find([item for item in batch if not item.problem])
                file.writelines(_to_line(item) for item in batch)
                file.flush()
                done += len(batch)
                progress(done)
        return _split(partial, source, output)
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror or error}).") from error


def _read_lines(source: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of every line that is not blank."""
    try:
        with source.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: cannot be read as text ({error}).") from error


def _keep_ahead(jobs: Iterable[Future], ahead: int) -> Iterator[Any]:
    """The results of jobs in order, `ahead` of them started before they are asked for."""
    started: deque[Future] = deque()
    for job in jobs:
        started.append(job)
        if len(started) > ahead:
            yield started.popleft().result()
    while started:
        yield started.popleft().result()


def _prepare(source: Path, output: Path, load, number: int, line: str) -> _Item:
    """The item of a line with what `load` makes of it."""
    item = _Item(number)
    try:
        item.fields = _parse(line)
        audio = source.parent / item.fields["audio"]
        item.loaded = load(item.fields, audio)
        if not os.path.isabs(item.fields["audio"]):
            item.fields["audio"] = os.path.relpath(audio, output.parent)
    except InputError as error:
        item.problem = str(error)
    return item


def _parse(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise InputError(f"The line is not JSON ({error}).") from error
    if not isinstance(fields, dict):
        raise InputError("The line is not a JSON object.")
    for name in ("id", "audio"):
        if not isinstance(fields.get(name), str) or not fields[name]:
            raise InputError(f"The line has no '{name}' that is a string.")
    return fields


def _load_wave(fields: Mapping[str, Any], audio: Path) -> np.ndarray:
    if not isinstance(fields.get("text"), str):
        raise InputError("The line has no 'text' that is a string.")
    return load_audio(audio)


def _import_words(
    by_id: Mapping[str, Path], kind: str, tier: str, fields: Mapping[str, Any], audio: Path
) -> word_times.Words:
    path = by_id.get(fields["id"])
    if path is None:
        raise InputError(f"There is no file {fields['id']}{word_times.SUFFIXES[kind]}.")
    if kind == "textgrid":
        words = word_times.read_textgrid(path, tier)
    else:
        words = word_times.read_whisperx(path)
    if not words:
        raise InputError(f"{path}: has no words.")
    try:
        seconds = soundfile.info(audio).duration
    except (soundfile.LibsndfileError, OSError) as error:
        raise InputError(f"{audio}: is not audio that can be read.") from error
    return word_times.check_words(words, str(path), seconds)


def _take_imported(items: Sequence[_Item]) -> None:
    for item in items:
        item.fields["words"] = item.loaded
        item.fields.setdefault("text", " ".join(word for word, _, _ in item.loaded))


def _align(aligner: Aligner, min_score: float | None, items: Sequence[_Item]) -> None:
    waves, texts = [item.loaded for item in items], [item.fields["text"] for item in items]
    for item, aligned in zip(items, aligner.align_batch(waves, texts), strict=True):
        item.fields |= {"words": aligned.words, "score": round(aligned.score, 4)}
        item.problem = aligned.problem
        if not aligned.problem and min_score is not None and aligned.score < min_score:
            item.problem = f"The score is {aligned.score:.3f}, less than {min_score}."


def _to_line(item: _Item) -> str:
    """The line of OUTPUT.partial that stands for an item."""
    if item.problem:
        known = {name: item.fields[name] for name in ("id", "audio") if name in item.fields}
        entry = {"reject": {"line": item.number} | known | {"reason": item.problem}}
    else:
        entry = {"item": item.fields}
    return json.dumps(entry) + "\n"


def _resume(partial: Path, source: Path, settings: Mapping[str, Any]) -> int:
    """How many items OUTPUT.partial has; it is begun if it is not there.

    Its first line says what it is made of. A last line that was cut short is taken off.
    """
    try:
        about = source.stat()
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror or error}).") from error
    made_of = {"source": str(source), "bytes": about.st_size, "modified": about.st_mtime_ns}
    header = json.dumps(made_of | {"settings": dict(settings)}).encode() + b"\n"
    if not partial.is_file():
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(header)
        return 0
    with partial.open("r+b") as file:
        if file.readline() != header:
            raise InputError(
                f"{partial}: was begun with another source or other settings; remove it to start "
                "again."
            )
        count, end = 0, file.tell()
        while file.readline().endswith(b"\n"):
            count, end = count + 1, file.tell()
        file.truncate(end)
    return count


def _split(partial: Path, source: Path, output: Path) -> AlignReport:
    """Makes OUTPUT and the rejects of a whole OUTPUT.partial, and removes it."""
    finals = {"item": output, "reject": output.with_name(output.name + ".rejects.jsonl")}
    unfinished = {kind: path.with_name(path.name + ".tmp") for kind, path in finals.items()}
    counts, reason = {"item": 0, "reject": 0}, ""
    try:
        with (
            partial.open(encoding="utf-8") as lines,
            unfinished["item"].open("w", encoding="utf-8") as items,
            unfinished["reject"].open("w", encoding="utf-8") as rejects,
        ):
            next(lines)
            for line in lines:
                ((kind, fields),) = json.loads(line).items()
                counts[kind] += 1
                reason = reason or (fields["reason"] if kind == "reject" else "")
                file = items if kind == "item" else rejects
                file.write(json.dumps(fields) + "\n")
        for kind in ("reject", "item"):  # OUTPUT last: where it is, all is done
            if counts[kind]:
                unfinished[kind].replace(finals[kind])
    finally:
        for path in unfinished.values():
            path.unlink(missing_ok=True)
    partial.unlink()
    if not any(counts.values()):
        raise InputError(f"{source}: has no items.")
    if not counts["item"]:
        raise InputError(
            f"{source}: none of its {counts['reject']} items can be used, see {finals['reject']}; "
            f"the first: {reason}"
        )
    if not counts["reject"]:
        finals["reject"].unlink(missing_ok=True)  # of an earlier run
    return AlignReport(counts["item"], counts["reject"])
