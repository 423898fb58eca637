"""Reads, merges, checks and writes configs: frozen dataclasses kept as JSON or YAML.

Nothing here knows a network; every network's config dataclass lives beside the network.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spirit_jax import files
from spirit_jax.errors import InputError

T = TypeVar("T")


def from_dict(
    cls: type[T], values: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "config"
) -> T:
    """A `cls` from plain values and dotted overrides such as `"optimizer.lr=1e-4"`.

    Raises:
      InputError: an unknown key (with the nearest known one), a value of the wrong type, or a
        field without a default left out; `source` names where it came from.
    """
    try:
        schema = OmegaConf.structured(cls)
        OmegaConf.set_readonly(schema, False)
        merged = OmegaConf.merge(
            schema, OmegaConf.create(dict(values)), OmegaConf.from_dotlist(list(overrides))
        )
        return _freeze(OmegaConf.to_object(merged), source)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        key = getattr(error, "full_key", None)
        raise InputError(f"{source}: {reason}" + (f" (at '{key}')" if key else "")) from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: {error}") from error


def read(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """A `cls` from a JSON or YAML file; raises `InputError` as `from_dict` does."""
    return from_dict(cls, read_mapping(path), overrides, source=str(path))


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping that a JSON or YAML file holds.

    Raises:
      InputError: the file is missing, unreadable or holds something else.
    """
    path = Path(path)
    text = files.read_text(path)
    try:
        if path.suffix == ".json":
            values = files.parse_json(text, files.MAX_CONFIG_DIGITS)
        else:
            values = _parse_yaml(text)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: is not valid {path.suffix[1:].upper()} ({reason}).") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of names to values.")
    return values


def write(config: Any, path: str | Path) -> None:
    """Writes a dataclass (or a mapping) as JSON, whole or not at all."""
    values = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
    files.write_json(path, values)


def _parse_yaml(text: str) -> Any:
    return OmegaConf.to_container(OmegaConf.create(text), resolve=True)


def _freeze(value: Any, source: str, item_cls: type | None = None) -> Any:
    """Lists become tuples at every depth, so that configs are hashable and can be jit-static.

    OmegaConf leaves the items of a tuple of dataclasses as mappings; `item_cls` is what they are.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = typing.get_type_hints(type(value))
        fields = {
            field.name: _freeze(getattr(value, field.name), source, _item_class(hints[field.name]))
            for field in dataclasses.fields(value)
        }
        return type(value)(**fields)
    if isinstance(value, list | tuple):
        return tuple(_freeze(item, source, item_cls) for item in value)
    if item_cls is not None and isinstance(value, Mapping):
        return from_dict(item_cls, value, source=source)
    return value


def _item_class(hint: Any) -> type | None:
    """The dataclass that a tuple's items are, if the hint says one."""
    arguments = typing.get_args(hint) if typing.get_origin(hint) is tuple else ()
    return arguments[0] if arguments and dataclasses.is_dataclass(arguments[0]) else None
