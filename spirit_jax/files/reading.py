"""Reads bytes, text, JSON and JSON lines, with a clear sentence for each fault."""

import codecs
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from spirit_jax.errors import InputError
from spirit_jax.files.paths import open_binary
from spirit_jax.files.resources import LFS_POINTER, describe, lfs_pointer, unreadable

MAX_DIGITS = 19  # of a whole number in JSON; longer ones do not fit 64 bits
MAX_CONFIG_DIGITS = 40  # tokenizer configs of transformers hold int(1e30) for "no limit"


def read_bytes(path: str | Path, most: int = -1) -> bytes:
    """The bytes of a file, at most the first `most`; raises `InputError` if it cannot be read."""
    try:
        with open_binary(path) as file:
            data = file.read(most)
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a NUL byte in the name
        raise unreadable(path, error, f"cannot be read ({describe(error)}).") from error
    if data.startswith(LFS_POINTER):
        raise lfs_pointer(path)
    return data


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte-order mark.

    The byte-order mark is removed; line ends become "\\n".

    Raises:
      InputError: the file cannot be read, or is not such text; names the line and the byte.
    """
    data = read_bytes(path)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: {_not_text(data, error)}") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        reason = f"has a zero byte in line {line}; save it as UTF-8"
        raise InputError(f"{path}: {reason} (is it UTF-16, UTF-32 or a binary file?).")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | Path, finite: bool = True) -> Any:
    """The value of a JSON file.

    Args:
      path: the file.
      finite: see `parse_json`.

    Raises:
      InputError: the file cannot be read, or is not text or not JSON; see `parse_json`.
    """
    try:
        return parse_json(read_text(path), finite=finite)
    except _NotJson as error:
        raise InputError(f"{path}: {error}") from error


def read_json_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of every line of a JSON lines file that is not blank.

    Lines end with "\\n", "\\r\\n" or "\\r" alone, so strings may contain U+2028 and the like. For a
    line that is not UTF-8 or not JSON the value is an `InputError`, which the caller raises or
    counts.

    Raises:
      InputError: the file cannot be read.
    """
    try:
        with open_binary(path) as file:
            for number, line in enumerate(_split_lines(file), 1):
                if number == 1 and line.startswith(LFS_POINTER):
                    raise lfs_pointer(path)
                line = line.removeprefix(codecs.BOM_UTF8)  # also where two files were joined
                if not line.strip():
                    continue
                try:
                    yield number, parse_json(line.decode("utf-8"))
                except UnicodeDecodeError as error:
                    reason = _not_text(line, error, with_line=False)
                    yield number, InputError(f"{path}: line {number} {reason}")
                except _NotJson as error:
                    yield number, InputError(f"{path}: line {number} {error}")
    except (OSError, ValueError, MemoryError) as error:
        raise unreadable(path, error, f"cannot be read ({describe(error)}).") from error


def _split_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file without line ends; JSON strings contain no bare carriage return."""
    for line in file:
        yield from line.removesuffix(b"\n").removesuffix(b"\r").split(b"\r")


def read_json_objects(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a JSON lines file, each of which must be an object; see `read_json_lines`.

    Raises:
      InputError: the file cannot be read, or a line is not a JSON object.
    """
    objects = []
    for number, value in read_json_lines(path):
        if isinstance(value, InputError):
            raise value
        if not isinstance(value, dict):
            raise InputError(f"{path}: line {number} is not a JSON object.")
        objects.append(value)
    return objects


class _NotJson(InputError):
    """Why a text is not JSON; the message follows the name of the file or line."""


def parse_json(text: str, max_digits: int = MAX_DIGITS, finite: bool = True) -> Any:
    """The value of a JSON text.

    Args:
      text: the JSON text.
      max_digits: the most digits of a whole number.
      finite: whether NaN, Infinity and numbers beyond the range of float64 (1e999) are refused.

    Returns:
      The value, in Python's types.

    Raises:
      InputError: the text is not JSON, has a duplicate name in an object, is nested too deeply, has
        a longer whole number, a number that is not finite, or a string with half a surrogate pair.
    """
    try:
        value = json.loads(
            text,
            parse_int=functools.partial(_parse_int, max_digits),
            parse_float=_parse_finite if finite else None,
            parse_constant=_parse_finite if finite else None,
            object_pairs_hook=_make_object,
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeEncodeError as error:
        raise _NotJson("has half a character (a lone surrogate) in a string.") from error
    except RecursionError as error:
        raise _NotJson("is nested too deeply.") from error
    except ValueError as error:
        raise _NotJson(f"is not JSON ({error}).") from error


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; Python's own reader would silently take the last of duplicate names."""
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {duplicate[:80]!r} is there twice in one object")
    return values


def _parse_finite(text: str) -> float:
    """A number; Python's own reader would also take NaN, Infinity and 1e999."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is not finite")
    return value


def _parse_int(max_digits: int, digits: str) -> int:
    if len(digits.lstrip("-")) > max_digits:
        raise ValueError(f"the number {digits[:20]}... has {len(digits)} digits")
    return int(digits)


def _not_text(data: bytes, error: UnicodeDecodeError, with_line: bool = True) -> str:
    line = data.count(b"\n", 0, error.start) + 1
    column = error.start - (data.rfind(b"\n", 0, error.start) + 1)
    place = f"line {line}, byte {column + 1}" if with_line else f"byte {column + 1}"
    return f"is not UTF-8 text (0x{data[error.start]:02x} at {place}); save it as UTF-8."
