"""What there is to prepare: items of a manifest, of a folder, or of a TensorFlow dataset."""

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
from spirit_jax.errors import InputError, InputWarning

__all__ = ["FIELDS", "Item", "Row", "fingerprint", "read_rows", "read_source", "source_checksum"]

NAMES = ("speaker", "document", "style", "label")
PATHS = ("audio", "audio_filepath")  # the second is NeMo's name
SUFFIXES_OF_MANIFESTS = (".jsonl", ".json", ".ndjson")
FIELDS = ("id", *PATHS, "offset", "duration", "text", "words", *NAMES)
WRITTEN = ("score",)  # what `spirit-jax align` adds for people to read


@dataclasses.dataclass(frozen=True)
class Row:
    """An item with where it is from.

    Attributes:
      number: of its line from 1, or of its place where there are no lines.
      fields: of its line; empty where there are no lines, or where the line is no JSON object.
      item: what they say.
    """

    number: int
    fields: dict[str, Any]
    item: Item


def read_source(source: str) -> Iterator[Item]:
    """The items of a source, in an order that does not change; ids are unique.

    An item that cannot be used comes with its `problem`. What is not understood (fields of a
    manifest, files of a folder) is named in an `InputWarning` at the end.

    Args:
      source: a JSONL manifest (.jsonl, .json or .ndjson), a folder of recordings (each with its
        text beside it in a .txt, if there is one) or of texts, a .txt file, or
        "tfds:NAME[/CONFIG]:SPLIT" (or, for NAME, the folder of a dataset that is on disk).

    Raises:
      InputError: there is no such source, it is a file of another kind, or it has no items.
    """
    return (row.item for row in read_rows(source))


def read_rows(source: str) -> Iterator[Row]:
    """As `read_source`, with the lines of manifests."""
    seen: set[str] = set()
    for row in _read(source):
        item = check_item(row.item)
        if item.id in seen:
            item = dataclasses.replace(item, problem=item.problem or "The id is there twice.")
        seen.add(item.id)
        yield dataclasses.replace(row, item=item)
    if not seen:
        raise InputError(f"{source}: has no items.")


def check_source(source: str) -> None:
    """Raises an `InputError` if there is no such source, or it is a file of an unknown kind."""
    path = Path(source)
    if source.startswith("tfds:") or os.path.isdir(path):
        return
    if not os.path.isfile(path):
        raise InputError(f"{source}: there is no such file or folder.")
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        raise InputError(f"{source}: is a recording; give the folder it is in, or a manifest.")
    if suffix not in (".txt", *SUFFIXES_OF_MANIFESTS):
        raise InputError(
            f"{source}: is no source. Expected a manifest ({', '.join(SUFFIXES_OF_MANIFESTS)}), a "
            "text (.txt), a folder of recordings or texts, or tfds:NAME:SPLIT."
        )


def source_checksum(source: str) -> str:
    """What tells a source from what it was before: a file's content, or the files of a folder.

    Of a folder's recordings and texts the names, sizes and times of change count. That of a
    TensorFlow dataset is "": only its items can be compared.

    Raises:
      InputError: the source cannot be read.
    """
    path = Path(source)
    if os.path.isfile(path):
        return checksums.of_file(path)
    if not os.path.isdir(path):
        return ""
    listing = []
    for one in list_files(path)[0]:
        if one.suffix.lower() in (*SUFFIXES, ".txt") and one.is_file():
            try:
                about = one.stat()
            except OSError as error:
                reason = f"cannot be read ({files.describe(error)})."
                raise files.unreadable(one, error, reason) from error
            name = one.relative_to(path).as_posix()
            listing.append((name, about.st_size, about.st_mtime_ns))
    return checksums.of_value(sorted(listing))


def _read(source: str) -> Iterator[Row]:
    check_source(source)
    path = Path(source)
    if source.startswith("tfds:"):
        items = read_dataset(source)
    elif os.path.isdir(path):
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
        raise InputError(f"{path}: is a JSON array, not a JSON object a line.")
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
        named = ", ".join(f"{name} ({count} items)" for name, count in unknown.most_common())
        known = ", ".join(FIELDS)
        message = f"{path}: does not read the fields {named}; those that are read are {known}."
        warnings.warn(message, InputWarning, stacklevel=1)
    if labels:
        message = f"{path}: left out {labels} words that are labels, such as {{LG}} or <unk>."
        warnings.warn(message, InputWarning, stacklevel=1)


def _parse(fields: Mapping[str, Any], number: int, folder: Path) -> tuple[Item, int]:
    """The item of a line, and how many of its words are labels."""
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
            raise InputError("has an 'audio' and another 'audio_filepath'.")
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
    others = {field: known[field] for field in NAMES if field in known}
    return Item(name, audio, text, words, **others), labels


def find_audio(folder: Path, written: str) -> Path:
    """The path that a manifest in `folder` means.

    Raises:
      InputError: it is an address, or a path of a Windows drive.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", written):
        raise InputError(f"'{written[:200]}' is an address; download it, and give the file's path.")
    path = folder / os.path.expanduser(written)
    if "\\" in written and not os.path.exists(path):
        if re.match(r"[A-Za-z]:", written):
            raise InputError(f"'{written[:200]}' is on a Windows drive, which is not here.")
        path = folder / written.replace("\\", "/")
    return path


def _as_name(field: str, value: Any) -> str:
    """A name, which may be a whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"'{field}' is {_quote(value)}, expected a str.")
    return value


def _read_piece(known: Mapping[str, Any]) -> tuple[float, float | None] | None:
    """(start, seconds) of the piece of the file that is meant; None for all of it."""
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
    """The path without its suffix, and where the piece begins if it is one of several."""
    path = Path(written.replace("\\", "/"))
    if path.is_absolute() and path.is_relative_to(folder.absolute()):
        path = path.relative_to(folder.absolute())
    name = path.with_suffix("").as_posix().lstrip("/") if path.name else written
    return f"{name}@{known['offset']:g}" if "offset" in known else name


def _read_words(words: Any) -> tuple[Words, int]:
    """(word, start, end) of all that are no labels, NaN for unknown times; how many labels."""
    read, labels = [], 0
    if not isinstance(words, list):
        raise InputError("'words' are no list of [word, start, end].")
    for entry in words:
        if isinstance(entry, dict):
            entry = [entry.get(name) for name in ("word", "start", "end")]
        if not isinstance(entry, list) or len(entry) != 3:
            raise InputError("'words' are no list of [word, start, end].")
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
