"""Checksums that a reader compares, so that a damaged or exchanged file is noticed.

They are XXH3 of 128 bits: faster than a disk, and enough against damage (not against an attacker).
"""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from spirit_jax import files
from spirit_jax.errors import InputError

BLOCK = 4 << 20  # bytes read at a time
THREADS = 4  # that read files side by side

LIST = "checksums.json"  # lists the files of a folder
FIELD = "checksum"  # of a JSON object, over all its other fields


def of_bytes(data: Any) -> str:
    """The checksum of bytes, or of anything with the buffer protocol, as 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(data)


def of_value(value: Any) -> str:
    """The checksum of a JSON value, whatever the order of its objects' keys."""
    return of_bytes(json.dumps(value, sort_keys=True).encode())


def of_file(path: str | Path, offset: int = 0, length: int | None = None) -> str:
    """The checksum of a file's content, or of `length` bytes of it.

    Raises:
      InputError: it cannot be read.
    """
    digest, left = xxhash.xxh3_128(), length
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            while block := file.read(BLOCK if left is None else min(BLOCK, left)):
                digest.update(block)
                left = None if left is None else left - len(block)
    except (OSError, ValueError, MemoryError) as error:
        raise files.unreadable(path, error, f"cannot be read ({files.describe(error)}).") from error
    return digest.hexdigest()


def of_files(paths: Iterable[str | Path]) -> list[str]:
    """The checksums of several files, which are read side by side; see `of_file`."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(of_file, paths))


def write_json(path: str | Path, value: dict[str, Any]) -> None:
    """Writes a JSON object with its checksum, whole or not at all; see `read_json`."""
    files.write_json(path, value | {FIELD: of_value(value)})


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object that `write_json` wrote, without its checksum.

    Raises:
      InputError: it cannot be read, or is not as it was written.
    """
    value = files.read_json(path)
    if not isinstance(value, dict) or FIELD not in value:
        raise InputError(f"{path}: is damaged or from an earlier version (it has no checksum).")
    known = value.pop(FIELD)
    if known != of_value(value):
        raise InputError(f"{path}: is damaged or was edited (its checksum differs).")
    return value


def list_files(folder: str | Path, names: Iterable[str]) -> None:
    """Writes the checksums of files to `checksums.json` in a folder, beside those listed before.

    Args:
      folder: that has the files.
      names: of files, from the folder, with "/" between.

    Raises:
      InputError: one cannot be read, or the list cannot be written.
    """
    path = Path(folder) / LIST
    listed = read_json(path)["files"] if path.is_file() else {}
    listed |= {name: of_file(Path(folder) / name) for name in names}
    write_json(path, {"files": dict(sorted(listed.items()))})


def check_file(path: str | Path) -> None:
    """Compares a file with the list in its folder or in the one above, if one of them has it.

    Raises:
      InputError: the file is not as it was listed.
    """
    entry = _find_entry(Path(path))
    if entry is not None:
        folder, name, checksum = entry
        if of_file(path) != checksum:
            raise InputError(
                f"{path}: is damaged or was edited (its checksum differs); copy it again, or "
                f"remove {folder / LIST} if you changed it yourself."
            )


def update_file(path: str | Path) -> None:
    """Lists a file as it is now, if it is listed; for those who write it again."""
    entry = _find_entry(Path(path))
    if entry is not None:
        list_files(entry[0], [entry[1]])


def _find_entry(path: Path) -> tuple[Path, str, str] | None:
    """The folder whose list has a file, the file's name there, and its checksum."""
    path = path.absolute()
    for folder in list(path.parents)[:2]:
        if (folder / LIST).is_file():
            name = path.relative_to(folder).as_posix()
            listed = read_json(folder / LIST).get("files", {})
            if name in listed:
                return folder, name, listed[name]
    return None
