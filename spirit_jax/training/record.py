"""The record of a run: its settings and fingerprints of its inputs, saved with every checkpoint.

When a run is resumed, its settings are compared with the record. Some settings may change freely.
Others change the training from then on, and are printed as a notice. All remaining changes are
refused, unless the user allows them.
"""

import dataclasses
import fnmatch
import json
import os
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from spirit_jax import checksums, files
from spirit_jax.audio import AudioPiece, load_audio
from spirit_jax.data.manifest import Item
from spirit_jax.errors import InputError

VERSION = 2
SAMPLE_BYTES = 64 << 10  # read at each of the start, middle and end of a large file
READERS = 16  # threads that read files for fingerprints
SHOWN = 60  # longer values are shortened to this many characters in messages

# Patterns of dotted names (for fnmatch, in which "?" matches the "[" before an index). Changes of
# settings that match none of them are refused.
FREE = (
    "run_dir",
    "steps",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep",
    "eval_every",
    "samples*",
    "profile_*",
    "stall_minutes",
    "mesh.*",
    "topology",
    "remat",
    "attention",
    "step.loss_chunk",
    "f0.folder",
    "f0.workers",
    "data.workers",
)
ANNOUNCED = (
    "optimizer.*",
    "compiler_options",  # options may trade accuracy for speed
    "epoch_decay",
    "step.*",
    "eval_sources*",
    "eval_batches",
    "eval_recordings",
    "data.held_out*",
    "data.sources?[0-9]*].name",
    "*_weight",
    "content of model/llama",  # a checkpoint has its own parameters
)
CONTENT = "content of "  # prefix of the name of a change of content


@dataclasses.dataclass(frozen=True)
class Change:
    """A setting or an input's content that differs; `old` or `new` is None if it is not set."""

    name: str
    old: Any
    new: Any

    def __str__(self):
        if self.name.startswith(CONTENT):
            return f"the {self.name} has changed"
        return f"{self.name} was {_show(self.old)} and is {_show(self.new)}"


@dataclasses.dataclass(frozen=True)
class Changes:
    """All changes, by how they are handled (see the module's docstring)."""

    free: tuple[Change, ...] = ()
    announced: tuple[Change, ...] = ()
    refused: tuple[Change, ...] = ()


def describe(config: Any, contents: Mapping[str, str], sizes: Any = None) -> dict[str, Any]:
    """The record of a run.

    Args:
      config: the run config.
      contents: fingerprints of inputs. Each key is the setting that gives the input's path, such as
        "start", followed by a path inside of that folder if needed, as in "model/vocab.json".
      sizes: config of the network; it replaces the field `sizes` of the run config.

    Returns:
      A JSON object with "version", "settings" and "contents".
    """
    settings = dict(flatten(config))
    if sizes is not None:
        settings = {n: v for n, v in settings.items() if n.partition(".")[0] != "sizes"}
        settings |= dict(flatten(sizes, "sizes"))
    return {"version": VERSION, "settings": settings, "contents": dict(contents)}


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, JSON value) of every setting, such as ("data.sources[0].share", 1.0)."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            dotted = f"{name}.{field.name}" if name else field.name
            yield from flatten(getattr(value, field.name), dotted)
    elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        for number, item in enumerate(value):
            yield from flatten(item, f"{name}[{number}]")
    else:
        yield name, json.loads(json.dumps(value))


def is_record(value: Any) -> bool:
    """Whether a JSON value has the form of a record."""
    return (
        isinstance(value, dict)
        and value.get("version") == VERSION
        and all(isinstance(value.get(name), dict) for name in ("settings", "contents"))
        and all(isinstance(item, str) for item in value["contents"].values())
    )


def compare(old: Mapping[str, Any], new: Mapping[str, Any], config_cls: type) -> Changes:
    """The changes from the record `old` to the record `new`.

    A path may change if both records have a fingerprint of its content; then the contents are
    compared instead. Fingerprints that only one record has are ignored.

    Args:
      old, new: records, from `describe`.
      config_cls: class of the run config. A setting that `old` lacks, since an earlier version did
        not have it, has its default.

    Returns:
      The changes, by how they are handled.
    """
    changes: dict[str, list[Change]] = {"free": [], "announced": [], "refused": []}
    contents = old["contents"], new["contents"]
    common = [name for name in contents[1] if name in contents[0]]
    for name in common:
        if contents[0][name] != contents[1][name]:
            change = Change(CONTENT + name, contents[0][name], contents[1][name])
            changes[_class_of(name, CONTENT + name)].append(change)
    compared_by_content = {name.partition("/")[0] for name in common}
    for change in _differences(old["settings"], new["settings"], dict(defaults_of(config_cls))):
        kind = "free" if change.name in compared_by_content else _class_of(change.name)
        if change.name == "steps":
            decays = new["settings"].get("optimizer.schedule", "constant") != "constant"
            kind = "announced" if decays else "free"  # the learning rate depends on it
        changes[kind].append(change)
    return Changes(**{kind: tuple(items) for kind, items in changes.items()})


def defaults_of(cls: type, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, JSON value) of every default; "[]" matches any index of a list."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        dotted = f"{name}.{field.name}" if name else field.name
        hint, type_args = hints[field.name], typing.get_args(hints[field.name])
        if dataclasses.is_dataclass(hint):
            yield from defaults_of(hint, dotted)
        elif typing.get_origin(hint) is tuple and dataclasses.is_dataclass(type_args[0]):
            yield from defaults_of(type_args[0], dotted + "[]")
        if field.default is not dataclasses.MISSING:
            yield from flatten(field.default, dotted)
        elif field.default_factory is not dataclasses.MISSING:
            yield from flatten(field.default_factory(), dotted)


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[Change]:
    """The settings that differ.

    An entry of a list of sources that was added or removed is one change, whose values are paths.
    """
    reported = set()  # added or removed entries
    for name in dict.fromkeys((*new, *old)):
        entry = name[: name.find("]") + 1]  # such as "data.sources[0]"; "" outside of lists
        was = old.get(name, defaults.get(re.sub(r"\[\d+\]", "[]", name)))
        now = new.get(name)
        if entry in reported or was == now:
            continue
        if entry and not any(f"{entry}.path" in settings for settings in (old, new)):
            entry = ""
        if entry and (f"{entry}.path" in old) != (f"{entry}.path" in new):
            reported.add(entry)
            yield Change(entry, old.get(f"{entry}.path"), new.get(f"{entry}.path"))
        else:
            yield Change(name, was, now)


def fingerprint_items(items: Iterable[Item]) -> str:
    """A checksum of recordings and their metadata, but not of their paths.

    Recordings are known by their files (see `sample_file`) and the bounds of segments in these, or
    by their samples if there is no file.
    """
    items = list(items)
    metadata = [
        [item.id, item.text, item.words, item.speaker, item.document, item.style, item.label]
        for item in items
    ]
    paths = sorted({item.audio_path for item in items} - {None})
    content = dict(zip(paths, _sample_files(paths), strict=True))
    return checksums.of_value([metadata, [_audio_content(item, content) for item in items]])


def _audio_content(item: Item, files_content: Mapping[Path, str]) -> list[Any]:
    if isinstance(item.audio, AudioPiece):
        return [files_content[item.audio_path], item.audio.start, item.audio.seconds]
    if item.audio_path is not None:
        return [files_content[item.audio_path]]
    return [] if item.audio is None else [checksums.of_bytes(load_audio(item.audio).tobytes())]


def sample_file(path: str | os.PathLike) -> str:
    """A checksum of a file's size, start, middle and end; files up to 192 KiB are read completely.

    It identifies large files quickly, but does not detect all damage.

    Args:
      path: the file.

    Returns:
      The checksum.

    Raises:
      InputError: the file cannot be read.
    """
    try:
        with files.open_binary(path) as file:
            size = file.seek(0, 2)
            parts = [str(size).encode()]
            for start in (0, (size - SAMPLE_BYTES) // 2, size - SAMPLE_BYTES):
                file.seek(max(start, 0))
                parts.append(file.read(SAMPLE_BYTES if size > 3 * SAMPLE_BYTES else size))
                if size <= 3 * SAMPLE_BYTES:
                    break
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({files.describe(error)}).") from error
    return checksums.of_bytes(b"".join(parts))


def _sample_files(paths: Sequence[str | os.PathLike]) -> list[str]:
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(sample_file, paths))


def _class_of(*names: str) -> str:
    for kind, patterns in (("free", FREE), ("announced", ANNOUNCED)):
        if any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns):
            return kind
    return "refused"


def _show(value: Any) -> str:
    if value is None:
        return "not set"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
