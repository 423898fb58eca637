"""The record of a run: its settings and fingerprints of its inputs, saved with every checkpoint.

When a run is resumed, its settings are compared with the record. Some settings may change freely.
Some change the training from then on, and are announced. All others are refused, unless the user
allows changes.
"""

import dataclasses
import fnmatch
import json
import os
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from spirit_jax import checksums, files
from spirit_jax.data.manifest import Item
from spirit_jax.errors import InputError

VERSION = 2
SAMPLE_BYTES = 64 << 10  # read at the start, middle and end of a large file for its fingerprint
READERS = 16  # threads that read files for fingerprints
SHOWN = 60  # characters of a value in a message

# Patterns of dotted names. Changes of all other settings are refused.
FREE = (
    "run_dir",
    "steps",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep",
    "eval_every",
    "profile_*",
    "mesh.*",
    "compiler_options",
    "topology",
    "remat",
    "attention",
    "step.loss_chunk",
    "f0.folder",
    "f0.workers",
)
ANNOUNCED = (
    "optimizer.*",
    "epoch_decay",
    "step.*",
    "eval_sources*",
    "eval_batches",
    "eval_recordings",
    "data.held_out*",
    "data.sources?[0-9]*].name",
    "*_weight",
    "content of model/llama",  # the run has trained parameters by now
)
CONTENT = "content of "  # prefix of the names of fingerprints


@dataclasses.dataclass(frozen=True)
class Change:
    """A setting that differs from the record; `old` or `new` is None if it is not set."""

    name: str
    old: Any
    new: Any

    def __str__(self):
        if self.name.startswith(CONTENT):
            return f"the {self.name} has changed"
        return f"{self.name} was {_show(self.old)} and is {_show(self.new)}"


@dataclasses.dataclass(frozen=True)
class Changes:
    """All changes, by how they are handled (see the module)."""

    free: tuple[Change, ...] = ()
    announced: tuple[Change, ...] = ()
    refused: tuple[Change, ...] = ()


def describe(config: Any, contents: Mapping[str, str], sizes: Any = None) -> dict[str, Any]:
    """The record of a run.

    Args:
      config: the run config.
      contents: fingerprints of inputs by the setting that names them, such as "start"; for a part
        of a folder with its path, as in "model/vocab.json".
      sizes: config of the network, if the run config does not have it.

    Returns:
      JSON values.
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
            under = f"{name}.{field.name}" if name else field.name
            yield from flatten(getattr(value, field.name), under)
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

    A path may change if its content is the same. Contents that only one record has are ignored.

    Args:
      old, new: records, from `describe`.
      config_cls: class of the run config. A setting that `old` lacks, because an earlier version
        wrote it, is taken to have its default.

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
        under = f"{name}.{field.name}" if name else field.name
        hint, inside = hints[field.name], typing.get_args(hints[field.name])
        if dataclasses.is_dataclass(hint):
            yield from defaults_of(hint, under)
        elif typing.get_origin(hint) is tuple and dataclasses.is_dataclass(inside[0]):
            yield from defaults_of(inside[0], under + "[]")
        if field.default is not dataclasses.MISSING:
            yield from flatten(field.default, under)
        elif field.default_factory is not dataclasses.MISSING:
            yield from flatten(field.default_factory(), under)


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[Change]:
    """All differences; an added or removed list entry is one change, named by its path."""
    reported = set()  # such entries
    for name in dict.fromkeys((*new, *old)):
        entry = name[: name.find("]") + 1]
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
    """A checksum of recordings and their metadata, independent of paths; see `sample_file`."""
    items = list(items)
    metadata = [
        [item.id, item.text, item.words, item.speaker, item.document, item.style, item.label]
        for item in items
    ]
    return checksums.of_value([metadata, _sample_files([item.audio_name for item in items])])


def sample_file(path: str | os.PathLike) -> str:
    """A checksum of a file's size, start, middle and end, or of the whole file up to 192 KiB.

    It identifies large files quickly; it does not detect damage.

    Args:
      path: of the file; "" for none.

    Raises:
      InputError: the file cannot be read.
    """
    if not str(path):
        return ""
    try:
        with open(path, "rb") as file:
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
