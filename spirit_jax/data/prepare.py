"""Prepares a corpus for training: units with their timing, text and word times.

An item is a recording, a text or both. A source is divided into parts, which different machines can
prepare, and each part into portions of items. Each portion becomes one shard. Beside a shard there
is a JSON file, called its note, with a checksum of the portion's items and with statistics. It is
written last, so a portion with a note is done, and an interrupted run resumes with the others. At
the end of a part the list of its shards is written; without it the part is incomplete.
"""

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spirit_jax import checksums, files
from spirit_jax.data import report
from spirit_jax.data.configs import PrepareConfig
from spirit_jax.data.encode_items import encode_items
from spirit_jax.data.index import Builder, Index
from spirit_jax.data.manifest import Item, fingerprint, read_source, source_checksum
from spirit_jax.data.records import SUFFIX, read_shard, write_shard
from spirit_jax.data.shard_list import PREPARED, Shard, write_list
from spirit_jax.errors import InputError, ResourceError
from spirit_jax.files import lock
from spirit_jax.model_folder import unit_hashes
from spirit_jax.speech_tokenizer import SpeechTokenizer


@dataclasses.dataclass(frozen=True)
class Portion:
    """The items of one shard.

    Attributes:
      name: name of the shard's file, without suffix.
      items: in order.
    """

    name: str
    items: tuple[Item, ...]


def prepare(
    source: str,
    output: str | Path,
    tokenizer: SpeechTokenizer | None,
    config: PrepareConfig = PrepareConfig(),
    part: int = 1,
    parts: int = 1,
    progress: Callable[[int], None] = lambda items: None,
) -> dict[str, Any]:
    """Prepares one of `parts` parts of a source.

    Args:
      source: see `manifest.read_source`.
      output: the folder to write to, shared by all parts of a corpus.
      tokenizer: computes the units; None if the source is text only.
      config: shard size, longest recording and threads.
      part: number of the part, from 1.
      parts: number of parts.
      progress: called with the number of items of each portion that is done.

    Returns:
      The report of the part; see `report.summarise`.

    Raises:
      InputError: the source cannot be read, none of its items can be used, the folder was written
        from another source or with another tokenizer, another process is preparing this part, or
        the disk is full.
    """
    output = files.as_path(output)
    try:
        remaining = portions(source, config, part, parts)
        first = list(itertools.islice(remaining, 1))  # raises before the folder is created
        with hold_part(output, part) as part_lock:
            inputs = write_inputs(output, source, tokenizer, config, parts)
            for portion in itertools.chain(first, remaining):
                part_lock.check()
                make_shard(portion, output, tokenizer, config)
                progress(len(portion.items))
            return finish(output, source, inputs, part)
    except OSError as error:
        raise files.unwritable(output, error) from error


def hold_part(output: Path, part: int) -> contextlib.AbstractContextManager[lock.Lock]:
    """The lock on one part of a corpus; other processes may prepare other parts meanwhile."""
    name = f"prepare-{part:05d}.lock"
    return lock.hold(output, name, f"part {part} of {output}", "folder")


def write_inputs(
    output: Path,
    source: str,
    tokenizer: SpeechTokenizer | None,
    config: PrepareConfig,
    parts: int,
) -> dict[str, Any]:
    """Writes the source and settings of a corpus to `prepare.json`.

    If that file exists, they are compared with it instead.

    Args:
      output: the folder of the corpus.
      source: see `manifest.read_source`.
      tokenizer: computes the units; None if the source is text only.
      config: its `shard_items` and `max_seconds` are written.
      parts: number of parts.

    Returns:
      The content of `prepare.json`.

    Raises:
      InputError: `prepare.json` exists and differs.
    """
    encoder = None if tokenizer is None else tokenizer.config
    inputs = {
        "source": source,
        "source content": source_checksum(source),
        "parts": parts,
        "shard_items": config.shard_items,
        "max_seconds": config.max_seconds,
        "tokenizer": unit_hashes(encoder) if encoder else {},
        "f0_method": encoder.f0_method if encoder else "",
        "chunk_seconds": encoder.chunk_seconds if encoder else 0.0,
    }
    path = output / PREPARED
    if not path.is_file():
        checksums.write_json(path, inputs)
    stored = checksums.read_json(path)
    for name, value in inputs.items():
        if stored.get(name) != value:
            difference = _difference(name, stored.get(name), value)
            raise InputError(f"{output}: {difference}; choose another folder, or remove this one.")
    return inputs


def _difference(name: str, old: Any, new: Any) -> str:
    """The end of an error message: how an input differs from that of an earlier run."""
    if name == "tokenizer" and not old:
        return "was prepared without a model (--model)"
    if name == "tokenizer" and not new:
        return "was prepared with a model (--model), and now there is none"
    if name == "tokenizer":
        return "was prepared with another speech tokenizer (--model)"
    if name == "source content":
        return "was prepared from other content: a file of the source has changed since"
    return f"was prepared with {name} {old!r}, and now it is {new!r}"


def finish(output: Path, source: str, inputs: dict[str, Any], part: int) -> dict[str, Any]:
    """Writes the report of a part and the list of its shards.

    Args:
      output: the folder of the corpus.
      source: see `manifest.read_source`.
      inputs: what `write_inputs` returned.
      part: number of the part, from 1.

    Returns:
      The report of the part.

    Raises:
      InputError: no item of the part could be used, or the source has changed since the start.
    """
    if source_checksum(source) != inputs["source content"]:
        raise InputError(
            f"{source}: changed while it was prepared; remove {output}, and prepare it again."
        )
    parts = inputs["parts"]
    shards: list[Shard] = []
    indexes: list[Index] = []

    def counts() -> Iterator[dict[str, Any]]:
        for note in report.read_notes(output, part, parts):
            if note["shard"]:
                shards.append(Shard(**note["shard"]))
                indexes.append(_read_index(note, output))
            yield note["counts"]

    def complete() -> None:
        write_list(output, shards, inputs["tokenizer"], part, parts, Index.join(indexes))

    try:
        summary = report.write(output, counts(), part, parts)
    except report.NothingUsed:
        if parts == 1:
            _remove_corpus(output)
        else:  # the other parts may have items that can be used
            complete()
        raise
    complete()
    return summary


def _read_index(note: dict[str, Any], output: Path) -> Index:
    """The index of a shard; an earlier version's notes have none, so the shard is read."""
    if "index" in note:
        return Index.from_dict(note["index"])
    return Index.of(read_shard(output / note["shard"]["name"]))


def _remove_corpus(output: Path) -> None:
    """Removes the files of a corpus of one part, but not its lock."""
    for pattern in (PREPARED, "part-*", "corpus-*", "report-*", "rejects-*"):
        for path in output.glob(pattern):
            path.unlink()


def portions(source: str, config: PrepareConfig, part: int, parts: int) -> Iterator[Portion]:
    """The portions of a part. The parts get the documents in turn, and no document is split.

    Args:
      source: see `manifest.read_source`.
      config: a portion ends with the document with which it has `shard_items` items or more.
      part: number of the part, from 1.
      parts: number of parts.

    Raises:
      InputError: there is no such part, or the source cannot be read.
    """
    if not 1 <= part <= parts:
        raise InputError(f"There is no part {part} of {parts}; parts are counted from 1.")
    documents = itertools.islice(_documents(read_source(source)), part - 1, None, parts)
    number, items = 0, []
    for document in documents:
        items += document
        if len(items) >= config.shard_items:
            yield Portion(_shard_name(part, parts, number), tuple(items))
            number, items = number + 1, []
    if items:
        yield Portion(_shard_name(part, parts, number), tuple(items))


def make_shard(
    portion: Portion, output: Path, tokenizer: SpeechTokenizer | None, config: PrepareConfig
) -> None:
    """Prepares a portion, unless it has a note and its shard is intact.

    Args:
      portion: the items of the shard.
      output: the folder of the corpus.
      tokenizer: computes the units; None if the source is text only.
      config: longest recording, threads, and the number of items encoded together (`window`).

    Raises:
      InputError: the portion was prepared before from other items, or its note is damaged.
    """
    note, path = output / f"{portion.name}.json", output / f"{portion.name}{SUFFIX}"
    items_checksum = _checksum(portion.items)
    if note.is_file():
        stored = report.read_note(note)
        if stored["items"] != items_checksum:
            raise InputError(
                f"{path}: was prepared from other items (a text, word times, or the size or "
                "modification time of a recording has changed); choose another folder, or remove "
                "this one."
            )
        if _is_intact(path, stored["shard"]):
            return
        print(f"notice: {path} is missing or damaged, so it is prepared again.", file=sys.stderr)
    counts, index, records = report.Counts(), Builder(), 0
    utterances = index.watch(encode_items(portion.items, tokenizer, config, counts))
    first = next(utterances, None)
    if first is not None:  # a shard has at least one record
        records = write_shard(path, itertools.chain([first], utterances))
    values = {
        "items": items_checksum,
        "shard": vars(Shard.of(path, records)) if records else None,
        "index": index.build().to_dict(),
        "counts": counts.to_dict(),
    }
    checksums.write_json(note, values)


def _is_intact(path: Path, listed: Mapping[str, Any] | None) -> bool:
    """Whether a shard is as described in its note.

    Args:
      path: the file of the shard.
      listed: the description; None if no item of the portion could be used, so there is no shard.
    """
    if listed is None:
        return True
    try:
        return vars(Shard.of(path, listed["records"])) == listed
    except ResourceError:
        raise
    except (InputError, OSError) as error:
        if files.find_resource_error(error):
            raise files.unreadable(path, error, "") from error
        return False


def _checksum(items: Sequence[Item]) -> str:
    """A checksum of the fields of items and of their recordings' fingerprints."""
    digests = []
    for item in items:
        about = vars(item) | {"audio": item.audio_name}
        try:
            recording = checksums.of_bytes(fingerprint(item)) if item.audio is not None else ""
        except ResourceError:
            raise
        except InputError as error:
            recording = str(error)
        digests.append(checksums.of_value([about, recording]))
    return checksums.of_value(digests)


def _documents(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Groups consecutive items of the same document; an item without one is a group by itself."""
    numbered = enumerate(items)
    for _, group in itertools.groupby(numbered, lambda pair: pair[1].document or pair[0]):
        yield [item for _, item in group]


def _shard_name(part: int, parts: int, number: int) -> str:
    return f"part-{part:05d}-of-{parts:05d}-{number:05d}"
