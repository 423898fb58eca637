"""Checksums with which readers detect damaged or replaced files.

The algorithm is XXH3 with 128 bits. It is faster than reading from a disk, and detects accidental
damage, not attacks.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from spirit_jax import files
from spirit_jax.errors import InputError

BLOCK = 4 << 20  # bytes read at a time
THREADS = 4  # number of threads that read files in parallel

LIST = "checksums.json"  # the checksums of the files of a folder
REPLACING = "replacing"  # field of the list: new checksum of a file that is being replaced
FIELD = "checksum"  # field of a JSON object with the checksum of all its other fields


def of_bytes(data: Any) -> str:
    """The checksum of bytes or of another object with the buffer protocol: 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(data)


def of_value(value: Any) -> str:
    """The checksum of a JSON value; it does not depend on the order of keys."""
    return of_bytes(json.dumps(value, sort_keys=True).encode())


def of_file(path: str | Path, offset: int = 0, length: int | None = None) -> str:
    """The checksum of a file's content.

    Args:
      path: the file.
      offset: first byte.
      length: number of bytes; None for all up to the end.

    Returns:
      32 hex digits.

    Raises:
      InputError: the file cannot be read.
    """
    digest, remaining = xxhash.xxh3_128(), length
    try:
        with files.open_binary(path) as file:
            file.seek(offset)
            while block := file.read(BLOCK if remaining is None else min(BLOCK, remaining)):
                digest.update(block)
                remaining = None if remaining is None else remaining - len(block)
    except (OSError, ValueError, MemoryError) as error:
        raise files.unreadable(path, error, f"cannot be read ({files.describe(error)}).") from error
    return digest.hexdigest()


def of_files(paths: Iterable[str | Path]) -> list[str]:
    """The checksums of several files, which are read in parallel; see `of_file`."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(of_file, paths))


def write_json(path: str | Path, value: dict[str, Any]) -> None:
    """Writes a JSON object with its checksum, for `read_json`; see `files.write_json`."""
    files.write_json(path, value | {FIELD: of_value(value)})


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object that `write_json` wrote, without its checksum.

    Raises:
      InputError: the file cannot be read, or has changed since it was written.
    """
    value = files.read_json(path)
    if not isinstance(value, dict) or FIELD not in value:
        raise InputError(f"{path}: is damaged or from an earlier version (it has no checksum).")
    checksum = value.pop(FIELD)
    if checksum != of_value(value):
        raise InputError(f"{path}: is damaged or was edited (its checksum differs).")
    return value


def list_files(folder: str | Path, names: Iterable[str]) -> None:
    """Adds the checksums of files to `checksums.json` in a folder, or updates them.

    Args:
      folder: the folder of the list.
      names: paths of files, relative to the folder, with "/" as separator.

    Raises:
      InputError: a file cannot be read, or the list cannot be written.
    """
    path = files.as_path(folder) / LIST
    value = read_json(path) if path.is_file() else {}
    value.pop(REPLACING, None)
    listed = value.get("files", {}) | {
        name: of_file(files.as_path(folder) / name) for name in names
    }
    write_json(path, value | {"files": dict(sorted(listed.items()))})


def list_arrays(path: str | Path, known: Mapping[str, Any]) -> None:
    """Adds the checksums of a file of arrays, by `tensor_file.write`, to its folder's list."""
    path = files.as_path(path)
    value = read_json(path.with_name(LIST)) if path.with_name(LIST).is_file() else {"files": {}}
    arrays = value.get("arrays", {}) | {path.name: known}
    write_json(path.with_name(LIST), value | {"arrays": arrays})


def read_arrays(path: str | Path) -> dict[str, Any]:
    """The checksums that `list_arrays` wrote for a file of arrays; empty if there are none."""
    path = files.as_path(path)
    value = read_json(path.with_name(LIST)) if path.with_name(LIST).is_file() else {}
    return value.get("arrays", {}).get(path.name, {})


def check_file(path: str | Path) -> None:
    """Checks a file that is listed in its folder or in the parent folder; others are not checked.

    Raises:
      InputError: the file differs from its listed checksum.
    """
    entry = _find_entry(files.as_path(path))
    if entry is not None:
        folder, _, known = entry
        if of_file(path) not in known:
            raise InputError(
                f"{path}: is damaged or was edited (its checksum differs); copy it again, or "
                f"remove {folder / LIST} if you changed it yourself."
            )


@contextlib.contextmanager
def replacing(path: str | Path, data: bytes) -> Iterator[None]:
    """Within this context a file is replaced, and if it is listed, so is its checksum.

    Meanwhile the list has both checksums, so a process that is killed leaves a valid folder.

    Args:
      path: the file.
      data: its new content.

    Raises:
      InputError: the list cannot be read or written.
    """
    entry = _find_entry(files.as_path(path))
    if entry is None:
        yield
        return
    folder, name, known = entry
    new = of_bytes(data)
    write_json(folder / LIST, read_json(folder / LIST) | {REPLACING: {name: new}})
    try:
        yield
    finally:
        if of_file(path) in known | {new}:  # else it was damaged before
            list_files(folder, [name])


def _find_entry(path: Path) -> tuple[Path, str, set[str]] | None:
    """(folder whose list has a file, its name in the list, its valid checksums), or None."""
    path = path.absolute()
    for folder in list(path.parents)[:2]:
        if (folder / LIST).is_file():
            name = path.relative_to(folder).as_posix()
            value = read_json(folder / LIST)
            listed, new = value.get("files", {}), value.get(REPLACING, {})
            if name in listed:
                return folder, name, {listed[name]} | ({new[name]} if name in new else set())
    return None
