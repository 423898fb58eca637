"""What a run was made of: its settings and the content of its inputs, kept with every checkpoint.

A run that is resumed is compared with its record, setting by setting. Some may change freely, some
change what is learnt from then on and are announced, and all others would make it another run: they
are refused by name unless the caller allows changes.
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

# Patterns of dotted names. What neither list has is refused.
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
    "content of model/llama",  # the run has parameters of its own by now
)
CONTENT = "content of "  # begins the names of fingerprints


@dataclasses.dataclass(frozen=True)
class Change:
    """A setting that differs from the record; `old` or `new` is None where it is not set."""

    name: str
    old: Any
    new: Any

    def __str__(self):
        if self.name.startswith(CONTENT):
            return f"the {self.name} is not what it was"
        return f"{self.name} was {_show(self.old)} and is {_show(self.new)}"


@dataclasses.dataclass(frozen=True)
class Changes:
    """All changes, by what is to be done about them."""

    free: tuple[Change, ...] = ()
    announced: tuple[Change, ...] = ()
    refused: tuple[Change, ...] = ()


def describe(config: Any, contents: Mapping[str, str], sizes: Any = None) -> dict[str, Any]:
    """The record of a run, as JSON holds it.

    Args:
      config: the run config.
      contents: fingerprints of inputs by the setting that names them, such as "start"; parts of a
        folder are told apart by a slash, as in "model/vocab.json".
      sizes: of the network, where the config leaves them to a folder.
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

    A path may change where the content behind it is the same. A content that is in one record only
    is not compared.

    Args:
      old, new: records, of `describe`.
      config_cls: of the run's config. A setting that `old` lacks, since it is of an earlier
        version, had its default.
    """
    changes: dict[str, list[Change]] = {"free": [], "announced": [], "refused": []}
    contents = old["contents"], new["contents"]
    common = [name for name in contents[1] if name in contents[0]]
    for name in common:
        if contents[0][name] != contents[1][name]:
            change = Change(CONTENT + name, contents[0][name], contents[1][name])
            changes[_class_of(name, CONTENT + name)].append(change)
    judged = {name.partition("/")[0] for name in common}
    for change in _differences(old["settings"], new["settings"], dict(defaults_of(config_cls))):
        kind = "free" if change.name in judged else _class_of(change.name)
        if change.name == "steps":
            falls = new["settings"].get("optimizer.schedule", "constant") != "constant"
            kind = "announced" if falls else "free"  # the learning rate follows from it
        changes[kind].append(change)
    return Changes(**{kind: tuple(found) for kind, found in changes.items()})


def defaults_of(cls: type, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, JSON value) of every default; "[]" stands for any place in a list."""
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
    """What differs; an entry that a list has more or less is one change, told by its path."""
    passed = set()  # such entries
    for name in dict.fromkeys((*new, *old)):
        entry = name[: name.find("]") + 1]
        was = old.get(name, defaults.get(re.sub(r"\[\d+\]", "[]", name)))
        now = new.get(name)
        if entry in passed or was == now:
            continue
        if entry and not any(f"{entry}.path" in settings for settings in (old, new)):
            entry = ""
        if entry and (f"{entry}.path" in old) != (f"{entry}.path" in new):
            passed.add(entry)
            yield Change(entry, old.get(f"{entry}.path"), new.get(f"{entry}.path"))
        else:
            yield Change(name, was, now)


def fingerprint_items(items: Iterable[Item]) -> str:
    """A checksum of recordings and what is known of them, wherever they lie; see `sample_file`."""
    items = list(items)
    known = [
        [item.id, item.text, item.words, item.speaker, item.document, item.style, item.label]
        for item in items
    ]
    return checksums.of_value([known, _sample_files([item.audio_name for item in items])])


def sample_file(path: str | os.PathLike) -> str:
    """A checksum of a file's size, start, middle and end; of all of a file up to 192 KiB.

    It tells one file from another, at once also for a large one; it does not find damage.

    Args:
      path: of the file; "" for none.
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
