"""Reads, merges, checks and writes configs: frozen dataclasses stored as JSON or YAML.

This module is independent of the networks, whose config dataclasses are in their own modules.
"""

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from spirit_jax import checksums, files
from spirit_jax.errors import InputError

T = TypeVar("T")

_NAME = r"[A-Za-z_]\w*"
_KEY = re.compile(rf"{_NAME}(\.{_NAME}|\[\d{{1,9}}\])*", re.ASCII)  # such as data.sources[0].path
_BITS = 63  # of a whole number; larger ones do not fit in int64


def from_dict(
    cls: type[T], values: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "config"
) -> T:
    """A config object from plain values and overrides.

    Args:
      cls: the config dataclass.
      values: plain values by field name.
      overrides: such as `"optimizer.learning_rate=1e-4"`; see `override`.
      source: where the values come from, for messages.

    Returns:
      A `cls`, with tuples in place of lists.

    Raises:
      InputError: an unknown key (the message suggests the nearest known one), a value of the wrong
        type, or a missing field without a default.
    """
    if overrides:
        values = override(values, overrides)
    _check_plain(values, source)
    try:
        schema = OmegaConf.structured(cls)
        OmegaConf.set_readonly(schema, False)
        merged = OmegaConf.merge(schema, OmegaConf.create(dict(values)))
        return _freeze(OmegaConf.to_object(merged), source)
    except ConfigKeyError as error:
        raise InputError(f"{source}: {_describe_unknown(error)}") from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        key = getattr(error, "full_key", None)
        raise InputError(f"{source}: {reason}" + (f" (at '{key}')" if key else "")) from error
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(f"{source}: ") else f"{source}: {text}") from error
    except Exception as error:
        # OmegaConf merges some values of a wrong type without an error, and fails on them later.
        reason = f"a value has the wrong type ({files.describe(error)})."
        raise files.unreadable(source, error, reason) from error


def _describe_unknown(error: ConfigKeyError) -> str:
    """A message about an unknown key, with the nearest known key or all known keys."""
    cls = error.object_type
    known = (
        [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
    )
    near = difflib.get_close_matches(str(error.key), known, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known) or 'none'}."
    place = f" (at '{error.full_key}')" if error.full_key not in (None, error.key) else ""
    return f"there is no field '{error.key}'{place}; {hint}"


def override(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Plain values with overrides applied.

    Args:
      values: plain values, as returned by `read_mapping`.
      overrides: KEY=VALUE strings. A key is dotted, with [N] for an item of a list, such as
        `data.sources[0].share=2`. A value is YAML.

    Raises:
      InputError: an override is not KEY=VALUE, its value is not YAML, it is given twice, or the
        values have no such key.
    """
    changed = OmegaConf.create(dict(values))
    keys: set[str] = set()
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator or not _KEY.fullmatch(key):
            raise InputError(
                f"'{item[:80]}' is not an override; write KEY=VALUE, such as steps=200."
            )
        if key in keys:
            raise InputError(f"'{key}' is given twice; give each key once.")
        keys.add(key)
        try:
            (value,) = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"])).values()
        except Exception as error:  # of PyYAML or OmegaConf, or because of too deep nesting
            raise files.unreadable(
                f"'{item[:80]}'", error, "the value is not valid YAML."
            ) from error
        try:
            OmegaConf.update(changed, key, value, force_add=True)
        except Exception as error:
            reason = f"the config has no key '{key}'."
            raise files.unreadable(f"'{item[:80]}'", error, reason) from error
    return OmegaConf.to_container(changed)


def read(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """A `cls` from a JSON or YAML file; see `from_dict` and `read_mapping`."""
    return from_dict(cls, read_mapping(path), overrides, source=str(path))


def find_file(path: str | Path) -> Path:
    """The path; that of the package's `configs/NAME` if only the package has such a file."""
    path = files.as_path(path)
    packaged = Path(__file__).parent / path
    is_packaged = path.parts[:1] == ("configs",) and not path.exists() and packaged.is_file()
    return packaged if is_packaged else path


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping in a JSON or YAML file; see `find_file`.

    Raises:
      InputError: the file is missing, unreadable, or contains something other than a mapping.
    """
    path = find_file(path)
    checksums.check_file(path)
    text = files.read_text(path)
    kind = "JSON" if path.suffix == ".json" else "YAML"
    try:
        if kind == "JSON":
            values = files.parse_json(text, files.MAX_CONFIG_DIGITS)
        else:
            values = _parse_yaml(text)
    except Exception as error:
        message = files.describe(error).rstrip(".")
        reason = f"{message}." if kind == "JSON" else f"is not valid {kind} ({message})."
        raise files.unreadable(path, error, reason) from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of names to values.")
    return values


def write(config: Any, path: str | Path) -> None:
    """Writes a dataclass or a mapping as JSON, whole or not at all, and its listed checksum."""
    values = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
    text = files.format_json(values)
    with checksums.replacing(path, text.encode()):
        files.write_text(path, text)


def _parse_yaml(text: str) -> Any:
    return OmegaConf.to_container(OmegaConf.create(text))


def _check_plain(value: Any, source: str, place: str = "") -> None:
    """Raises an `InputError` for values that no config may contain, at any depth.

    Forbidden are references such as "${oc.env:HOME}", which would read the environment; numbers
    that are not finite, which pass range checks; and whole numbers that do not fit in int64.
    """
    at = f"{source}: {place or 'the config'}"
    if isinstance(value, str):
        if not value.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise InputError(f"{at} contains half a character (a lone surrogate).")
        if "${" in value:
            raise InputError(f"{at} contains '${{', a reference; write the value itself.")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{at} is {value}; a finite number was expected.")
    elif isinstance(value, int):
        if value.bit_length() > _BITS:
            raise InputError(f"{at} is {str(value)[:20]}..., a number too large for 64 bits.")
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise InputError(f"{at} has the key {name!r}; a name was expected.")
            _check_plain(item, source, f"{place}.{name}" if place else name)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check_plain(item, source, f"{place}[{number}]")


def _freeze(value: Any, source: str, item_cls: type | None = None) -> Any:
    """The value with tuples in place of lists, so that configs are hashable and can be jit-static.

    OmegaConf leaves the items of a tuple of dataclasses as mappings; `item_cls` is their class.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = typing.get_type_hints(type(value))
        fields = {
            field.name: _freeze(getattr(value, field.name), source, _item_class(hints[field.name]))
            for field in dataclasses.fields(value)
        }
        for name, item in fields.items():
            _check_values(name, item, hints[name])
        return type(value)(**fields)
    if isinstance(value, list | tuple):
        return tuple(_freeze(item, source, item_cls) for item in value)
    if item_cls is not None and isinstance(value, Mapping):
        return from_dict(item_cls, value, source=source)
    return value


def _check_values(name: str, value: Any, hint: Any) -> None:
    """Checks what OmegaConf does not: "NaN" for a number, and the values of a `dict[str, T]`."""
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise InputError(f"{name} is {number}; a finite number was expected.")
    if typing.get_origin(hint) is dict:
        wanted = typing.get_args(hint)[1]
        for key, item in value.items():
            if isinstance(wanted, type) and not isinstance(item, wanted):
                raise InputError(f"{name}.{key} is {str(item)[:40]}; expected {wanted.__name__}.")


def _item_class(hint: Any) -> type | None:
    """The dataclass of a tuple's items, if the type hint has one."""
    arguments = typing.get_args(hint) if typing.get_origin(hint) is tuple else ()
    return arguments[0] if arguments and dataclasses.is_dataclass(arguments[0]) else None
