"""Reads the items of a manifest, a folder or a TensorFlow dataset."""

import collections
import dataclasses
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spirit_jax import checksums, files
from spirit_jax.audio import SUFFIXES, AudioPiece
from spirit_jax.data.datasets import read_dataset
from spirit_jax.data.folder import list_files, read_folder, read_text_item
from spirit_jax.data.items import Item, check_item, fingerprint
from spirit_jax.data.labels import read_label
from spirit_jax.data.timing import Words, as_seconds
from spirit_jax.errors import InputError, InputWarning, plural

__all__ = ["FIELDS", "Item", "Row", "fingerprint", "read_rows", "read_source", "source_checksum"]

NAMES = ("speaker", "document", "style", "label")
PATHS = ("audio", "audio_filepath")  # the second is NeMo's name
SUFFIXES_OF_MANIFESTS = (".jsonl", ".json", ".ndjson")
FIELDS = ("id", *PATHS, "offset", "duration", "text", "words", *NAMES)
WRITTEN = ("score",)  # added by `spirit-jax align` for information; not read


@dataclasses.dataclass(frozen=True)
class Row:
    """An item and its place in the source.

    Attributes:
      number: line number from 1; in a source without lines, the index of the item from 1.
      fields: the JSON object of the line; empty if there is none.
      item: the parsed item.
    """

    number: int
    fields: dict[str, Any]
    item: Item


def read_source(source: str) -> Iterator[Item]:
    """The items of a source, in a fixed order and with unique ids.

    The `problem` of an item says why it cannot be used. Unknown fields of a manifest and skipped
    files of a folder are reported in an `InputWarning` at the end.

    Args:
      source: a JSONL manifest (.jsonl, .json or .ndjson); a folder of recordings, each optionally
        with a .txt file of the same name, or of texts; a .txt file; or
        "tfds:NAME[/CONFIG]:SPLIT", where NAME may also be the folder of a dataset.

    Raises:
      InputError: the source does not exist, is of an unknown kind, or has no items.
    """
    return (row.item for row in read_rows(source))


def read_rows(source: str) -> Iterator[Row]:
    """As `read_source`, with the lines of manifests."""
    seen: set[str] = set()
    for row in _read(source):
        item = check_item(row.item)
        if item.id in seen:
            item = dataclasses.replace(item, problem=item.problem or "The id is not unique.")
        seen.add(item.id)
        yield dataclasses.replace(row, item=item)
    if not seen:
        raise InputError(f"{source}: has no items.")


def check_source(source: str) -> None:
    """Raises an `InputError` if there is no such source, or it is a file of an unknown kind."""
    if not source:
        raise InputError("The path of a source is empty; give that of a file or folder.")
    path = files.as_path(source)
    if source.startswith("tfds:") or files.is_folder(path):
        return
    if not files.is_file(path):
        raise InputError(f"{source}: there is no such file or folder.")
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        raise InputError(f"{source}: is a recording; give the folder it is in, or a manifest.")
    if suffix not in (".txt", *SUFFIXES_OF_MANIFESTS):
        raise InputError(
            f"{source}: is not a source. Expected a manifest ({', '.join(SUFFIXES_OF_MANIFESTS)}), "
            "a text (.txt), a folder of recordings or texts, or tfds:NAME:SPLIT."
        )


def source_checksum(source: str) -> str:
    """A checksum that changes when a source changes.

    For a file it is that of its content; for a folder that of the names, sizes and modification
    times of its recordings and texts. For a TensorFlow dataset it is "": only its items can be
    compared.

    Raises:
      InputError: the source cannot be read.
    """
    path = files.as_path(source)
    if files.is_file(path):
        return checksums.of_file(path)
    if not files.is_folder(path):
        return ""
    listing = []
    for file in list_files(path)[0]:
        if file.suffix.lower() in (*SUFFIXES, ".txt") and file.is_file():
            try:
                stat = file.stat()
            except OSError as error:
                reason = f"cannot be read ({files.describe(error)})."
                raise files.unreadable(file, error, reason) from error
            name = file.relative_to(path).as_posix()
            listing.append((name, stat.st_size, stat.st_mtime_ns))
    return checksums.of_value(sorted(listing))


def _read(source: str) -> Iterator[Row]:
    check_source(source)
    path = files.as_path(source)
    if source.startswith("tfds:"):
        items = read_dataset(source)
    elif files.is_folder(path):
        items = read_folder(path)
    elif path.suffix.lower() == ".txt":
        items = iter([read_text_item(path, path.stem)])
    else:
        yield from _read_manifest(path)
        return
    yield from (Row(number, {}, item) for number, item in enumerate(items, 1))


def _read_manifest(path: Path) -> Iterator[Row]:
    unknown: collections.Counter = collections.Counter()
    labels = 0
    if files.read_bytes(path, 4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        raise InputError(f"{path}: is a JSON array; expected a JSON object on each line.")
    for number, value in files.read_json_lines(path):
        if isinstance(value, dict):
            unknown.update(name for name in value if name not in FIELDS + WRITTEN)
            item, count = _parse(value, number, path.parent)
            labels += count
            yield Row(number, value, item)
        else:
            reason = "is not a JSON object."
            if isinstance(value, InputError):
                reason = str(value).removeprefix(f"{path}: line {number} ")
            yield Row(number, {}, Item(f"line {number}", problem=f"Line {number}: {reason}"))
    if unknown:
        named = ", ".join(
            f"{name} ({plural(count, 'item')})" for name, count in unknown.most_common()
        )
        known = ", ".join(FIELDS)
        message = f"{path}: the fields {named} are ignored; known are {known}."
        warnings.warn(message, InputWarning, stacklevel=1)
    if labels:
        reason = f"left out {plural(labels, 'label')} in place of words, such as {{LG}} or <unk>."
        warnings.warn(f"{path}: {reason}", InputWarning, stacklevel=1)


def _parse(fields: Mapping[str, Any], number: int, folder: Path) -> tuple[Item, int]:
    """(item of a line, number of its words that are labels)."""
    known = {name: fields[name] for name in FIELDS if fields.get(name) is not None}
    name = f"line {number}"
    try:
        if known.get("id") not in (None, ""):
            name = known["id"] = _as_name("id", known["id"])
        for field in NAMES:
            if field in known:
                known[field] = _as_name(field, known[field])
        for field in (*PATHS, "text"):
            if not isinstance(known.get(field, ""), str):
                raise InputError(f"'{field}' is {_quote(known[field])}, expected a str.")
        written = known.get("audio") or known.get("audio_filepath")
        if written != (known.get("audio_filepath") or written):
            raise InputError("has both 'audio' and 'audio_filepath', which differ.")
        piece = _read_piece(known)
        if not known.get("id") and known.get("audio_filepath"):  # NeMo's manifests have no ids
            name = _derive_id(known, written, folder)
        elif not known.get("id"):
            raise InputError("has no id.")
        if not written and not known.get("text"):
            raise InputError("has neither audio nor text.")
        audio = find_audio(folder, written) if written else None
        if audio is not None and piece is not None:
            audio = AudioPiece(audio, *piece)
        words, labels = _read_words(known.get("words", []))
    except InputError as error:
        return Item(name, problem=f"Line {number}: {error}"), 0
    text = known.get("text") or " ".join(word for word, _, _ in words)
    names = {field: known[field] for field in NAMES if field in known}
    return Item(name, audio, text, words, **names), labels


def find_audio(folder: Path, written: str) -> Path:
    """The path of a recording in a manifest.

    Args:
      folder: the folder of the manifest.
      written: the path in the manifest: absolute, or relative to `folder`; "~" and Windows
        separators are understood.

    Raises:
      InputError: a URL, or a path on a Windows drive.
    """
    if files.is_bucket(written):
        return files.as_path(written)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", written):
        raise InputError(f"'{written[:200]}' is a URL; download it, and give the file's path.")
    path = files.join(folder, os.path.expanduser(written))
    if "\\" in written and not (files.is_file(path) or files.is_folder(path)):
        if re.match(r"[A-Za-z]:", written):
            raise InputError(f"'{written[:200]}' is on a Windows drive, which does not exist here.")
        path = files.join(folder, written.replace("\\", "/"))
    return path


def _as_name(field: str, value: Any) -> str:
    """A name as a string; whole numbers are accepted."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"'{field}' is {_quote(value)}, expected a str.")
    return value


def _read_piece(known: Mapping[str, Any]) -> tuple[float, float | None] | None:
    """(start, length) in seconds of the segment of the file; None for the whole file."""
    if "offset" not in known and "duration" not in known:
        return None
    for field in ("offset", "duration"):
        value = known.get(field, 1.0)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value < 0:
            raise InputError(f"'{field}' is {_quote(value)}, expected seconds.")
    if known.get("duration") == 0:
        raise InputError("'duration' is 0; there is nothing to read.")
    return float(known.get("offset", 0.0)), known.get("duration")


def _derive_id(known: Mapping[str, Any], written: str, folder: Path) -> str:
    """An id for a NeMo item: the path without suffix, and the offset if there is one."""
    if files.is_bucket(written):
        written = written.partition("://")[2]
    path = Path(written.replace("\\", "/"))
    if path.is_absolute() and path.is_relative_to(folder.absolute()):
        path = path.relative_to(folder.absolute())
    name = path.with_suffix("").as_posix().lstrip("/") if path.name else written
    return f"{name}@{known['offset']:.15g}" if "offset" in known else name


def _read_words(words: Any) -> tuple[Words, int]:
    """((word, start, end) of all words that are not labels, number of labels).

    Unknown times are NaN.
    """
    read, labels = [], 0
    if not isinstance(words, list):
        raise InputError("'words' is not a list of [word, start, end].")
    for entry in words:
        if isinstance(entry, dict):
            entry = [entry.get(name) for name in ("word", "start", "end")]
        if not isinstance(entry, list) or len(entry) != 3:
            raise InputError("'words' is not a list of [word, start, end].")
        word, *times = entry
        if isinstance(word, int | float) and not isinstance(word, bool):
            word = str(word)
        if not isinstance(word, str) or any(isinstance(t, str | list | dict) for t in times):
            raise InputError(f"'words' has {_quote(entry)}, expected [word, start, end].")
        if not word.strip() or read_label(word) is not None:
            labels += bool(word.strip())
            continue
        start, end = (math.nan if (t := as_seconds(time)) is None else t for time in times)
        read.append((word, start, end))
    return tuple(read), labels


def _quote(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
