"""What there is to prepare: items of a manifest, of a folder, or of a TensorFlow dataset."""

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from spirit_jax.audio import Audio, load_audio
from spirit_jax.data.word_times import Words
from spirit_jax.errors import InputError

SUFFIXES = tuple(f".{name.lower()}" for name in soundfile.available_formats()) + (".aif", ".opus")
NAMES = ("speaker", "document", "style", "label")
FIELDS = {"id": str, "audio": str, "text": str, "words": list} | dict.fromkeys(NAMES, str)


@dataclasses.dataclass(frozen=True)
class Item:
    """A recording, a text, or both.

    Attributes:
      id: unique in its source.
      audio: a path, or (samples, rate); None for text alone.
      text: what is said; "" if that is not known.
      words: (word, start, end) in seconds; empty if that is not known.
      speaker, document: see `records.Utterance`.
      style: the manner of speaking, a name; "" if that is not known.
      label: what a task wants to be told of it, such as an intent; "" if that is not known.
      problem: why the item cannot be used; "" if nothing is known against it.
    """

    id: str
    audio: Audio | None = None
    text: str = ""
    words: Words = ()
    speaker: str = ""
    document: str = ""
    style: str = ""
    label: str = ""
    problem: str = ""

    @property
    def audio_name(self) -> str:
        """The path, or "" where there is none."""
        return str(self.audio) if isinstance(self.audio, str | Path) else ""


def fingerprint(item: Item) -> bytes:
    """What tells a recording from others, and from one that had its name before.

    It is the id, and the path with size and time of change, or the samples where there is no path.

    Raises:
      InputError: the recording cannot be read.
    """
    if not item.audio_name:
        return item.id.encode() + load_audio(item.audio).tobytes()
    try:
        about = os.stat(item.audio_name)
    except OSError as error:
        raise InputError(f"{item.audio_name}: cannot be read ({error.strerror}).") from error
    return f"{item.id}{item.audio_name} {about.st_size} {about.st_mtime_ns}".encode()


def read_source(source: str) -> Iterator[Item]:
    """The items of a source, in an order that does not change; ids are unique.

    An item that cannot be used comes with its `problem`.

    Args:
      source: a JSONL manifest, a folder of recordings (each with its text beside it in a .txt, if
        there is one) or of texts, a .txt file, or "tfds:NAME[/CONFIG]:SPLIT" (or, for
        NAME, the folder of a dataset that is on disk).

    Raises:
      InputError: there is no such source, or it has no items.
    """
    path = Path(source)
    if source.startswith("tfds:"):
        items = _read_tfds(source)
    elif path.is_dir():
        items = _read_folder(path)
    elif path.suffix == ".txt" and path.is_file():
        items = iter([_read_text(path, path.stem)])
    elif path.is_file():
        items = _read_manifest(path)
    else:
        raise InputError(f"{source}: there is no such manifest or folder.")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            item = dataclasses.replace(item, problem=item.problem or "The id is there twice.")
        seen.add(item.id)
        yield item
    if not seen:
        raise InputError(f"{source}: has nothing to prepare.")


def _read_manifest(path: Path) -> Iterator[Item]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parse(line, number, path.parent)


def _parse(line: str, number: int, folder: Path) -> Item:
    """The item of a manifest's line."""

    def bad(reason: str, name: str = f"line {number}") -> Item:
        return Item(name, problem=f"Line {number}: {reason}")

    try:
        fields = json.loads(line)
    except ValueError as error:
        return bad(f"is not JSON ({error}).")
    if not isinstance(fields, dict):
        return bad("is not a JSON object.")
    known = {name: fields[name] for name in FIELDS if fields.get(name) is not None}
    name = str(known.get("id", f"line {number}"))
    for field, value in known.items():
        if not isinstance(value, FIELDS[field]):
            kind = FIELDS[field].__name__
            return bad(f"'{field}' is {value!r}, expected a {kind}.", name)
    if not known.get("id"):
        return bad("has no id.")
    if not known.get("audio") and not known.get("text"):
        return bad("has neither audio nor text.", name)
    try:
        words = tuple(
            (str(w), float(start), float(end)) for w, start, end in known.get("words", ())
        )
    except (TypeError, ValueError):
        return bad("'words' are no list of [word, start, end].", name)
    audio = known.get("audio")
    text = known.get("text") or " ".join(word for word, _, _ in words)
    others = {field: known[field] for field in NAMES if field in known}
    return Item(name, folder / audio if audio else None, text, words, **others)


def _read_folder(folder: Path) -> Iterator[Item]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    recordings = [path for path in files if path.suffix.lower() in SUFFIXES]
    for path in recordings:
        name = path.relative_to(folder).with_suffix("").as_posix()
        beside = path.with_suffix(".txt")
        text = _read_text(beside, name) if beside.is_file() else Item(name)
        yield dataclasses.replace(text, audio=path, document="")
    if not recordings:
        for path in files:
            if path.suffix == ".txt":
                yield _read_text(path, path.relative_to(folder).with_suffix("").as_posix())


def _read_text(path: Path, name: str) -> Item:
    try:
        text = " ".join(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        return Item(name, problem=f"{path}: cannot be read as text ({error}).")
    return Item(name, text=text, problem="" if text else f"{path}: is empty.")


def _read_tfds(source: str) -> Iterator[Item]:
    match = re.fullmatch(r"tfds:([^:]+):([^:]+)", source)
    if not match:
        raise InputError(f"'{source}': expected tfds:NAME[/CONFIG]:SPLIT.")
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(
            f"{source}: needs tensorflow-datasets; pip install 'spirit-jax[tfds]'."
        ) from error
    name, split = match.groups()
    try:
        make = tfds.builder_from_directory if Path(name).is_dir() else tfds.builder
        builder = make(name)
        records = builder.as_data_source(split=split)
        feature = next(
            (key, f)
            for key, f in builder.info.features.items()
            if isinstance(f, tfds.features.Audio)
        )
    except StopIteration as error:
        raise InputError(f"{source}: has no audio.") from error
    except Exception as error:  # whatever the library raises for a corpus that is not there
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{source}: cannot be read ({reason}).") from error
    key, audio = feature
    for number, record in enumerate(records):
        samples = np.asarray(record[key])
        if np.issubdtype(samples.dtype, np.integer):
            samples = samples.astype(np.int16)  # the datasets keep 16 bits in wider integers
        texts = {field: _as_text(record.get(field)) for field in ("id", "text", "speaker_id")}
        yield Item(
            texts["id"] or f"{split}-{number}",
            (samples, audio.sample_rate or 16_000),
            texts["text"],
            speaker=texts["speaker_id"],
        )


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
