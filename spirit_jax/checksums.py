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

FIELD = "checksum"  # of a JSON object, over all its other fields


def of_bytes(data: Any) -> str:
    """The checksum of bytes, or of anything with the buffer protocol, as 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(data)


def of_value(value: Any) -> str:
    """The checksum of a JSON value, whatever the order of its objects' keys."""
    return of_bytes(json.dumps(value, sort_keys=True).encode())


def of_file(path: str | Path) -> str:
    """The checksum of a file's content; raises `InputError` for one that cannot be read."""
    digest = xxhash.xxh3_128()
    try:
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({files.describe(error)}).") from error
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
