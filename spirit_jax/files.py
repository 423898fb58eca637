"""Files: written whole or not at all, and read with a clear sentence for each fault.

Everything that is written and trusted later goes through `whole_file` or `whole_folder`; every text
and JSON file from outside through `read_text`, `read_json` or `read_json_lines`.
"""

import codecs
import contextlib
import errno
import functools
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from spirit_jax.errors import InputError, LackError

UNFINISHED = ".unfinished"  # ends the name of what is being written
MAX_DIGITS = 19  # of a whole number in JSON; longer ones do not fit 64 bits
MAX_CONFIG_DIGITS = 40  # tokenizer configs of transformers hold int(1e30) for "no limit"

# What a system or a library says when the machine lacks something, and the file is innocent.
_LACKS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EMFILE: "too many files are open; raise the limit with ulimit -n",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENOMEM: "memory is used up",
}
_PHRASES = {
    "no space left": _LACKS[errno.ENOSPC],
    "disk quota exceeded": _LACKS[errno.EDQUOT],
    "read-only file system": _LACKS[errno.EROFS],
    "permission denied": _LACKS[errno.EACCES],
    "too many open files": _LACKS[errno.EMFILE],
    "resource_exhausted": _LACKS[errno.ENOMEM],
    "out of memory": _LACKS[errno.ENOMEM],
    "cannot allocate memory": _LACKS[errno.ENOMEM],
    "bad_alloc": _LACKS[errno.ENOMEM],
    "malloc () failed": _LACKS[errno.ENOMEM],  # libsndfile's words
}


def refuse_existing(path: str | Path) -> None:
    """Raises an `InputError` if something exists at a path that is to be written."""
    if os.path.lexists(path):
        raise InputError(f"{path}: exists already; remove it or choose another output.")


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to: it gets the name `path` at the end, or is gone after an error.

    What is at `path` before stays until then, and is replaced at once. The data is on the disk
    before the name is, so a power cut leaves the old file or the new one.

    Raises:
      InputError: the place cannot be written to.
    """
    path = Path(path)
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    except (OSError, MemoryError) as error:
        raise InputError(f"{path}: cannot be written ({describe(error)}).") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text file, whole or not at all; raises `InputError` where it cannot."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="")


def write_json(path: str | Path, value: Any) -> None:
    """Writes a value as indented JSON, whole or not at all; raises `InputError` where it cannot."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_json_lines(path: str | Path, rows: Iterable[Any]) -> None:
    """Writes a JSON value a line, whole or not at all; raises `InputError` where it cannot."""
    with whole_file(path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@contextlib.contextmanager
def whole_folder(output: str | Path) -> Iterator[Path]:
    """A folder to write into that gets the name `output` at the end, or is gone after an error.

    What a killed process left of an earlier try is removed first.

    Raises:
      InputError: something exists at `output` already, or the place cannot be written to.
    """
    output = Path(output).absolute()
    refuse_existing(output)
    unfinished = output.with_name(output.name + UNFINISHED)
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.rename(output)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError):
            raise InputError(f"{output}: cannot be written ({describe(error)}).") from error
        raise


def read_bytes(path: str | Path, most: int = -1) -> bytes:
    """The bytes of a file, or its first `most`; raises `InputError` if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(most)
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a NUL byte in the name
        raise unreadable(path, error, f"cannot be read ({describe(error)}).") from error


def read_text(path: str | Path) -> str:
    """The text of a file: UTF-8, or UTF-16 with a byte-order mark, which is left out.

    Line ends become "\\n".

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
        reason = f"has a zero byte in line {line}, as no text has; save it as UTF-8"
        raise InputError(f"{path}: {reason} (is it UTF-16 or UTF-32, or not a text?).")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | Path) -> Any:
    """The value of a JSON file.

    Raises:
      InputError: the file cannot be read, is no text or no JSON; see `parse_json`.
    """
    try:
        return parse_json(read_text(path))
    except _NotJson as error:
        raise InputError(f"{path}: {error}") from error


def read_json_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of every line of a JSON lines file that is not blank.

    Lines end with "\\n", "\\r\\n" or "\\r" alone, so U+2028 and its kind may stand in strings. A
    line that is no UTF-8 or no JSON comes as an `InputError` in place of its value: it is for the
    caller to raise or to count.

    Raises:
      InputError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(_split_lines(file), 1):
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
    """The lines of a file without their ends; no JSON string has a bare carriage return in it."""
    for line in file:
        yield from line.removesuffix(b"\n").removesuffix(b"\r").split(b"\r")


def read_json_objects(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a JSON lines file, each of which must be an object; see `read_json_lines`.

    Raises:
      InputError: the file cannot be read, or a line is no JSON object.
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
    """Says of a text why it is no JSON; its message goes on from the text's name."""


def parse_json(text: str, max_digits: int = MAX_DIGITS) -> Any:
    """The value of a JSON text.

    Args:
      text: of JSON.
      max_digits: that a whole number may have.

    Raises:
      InputError: no JSON, an object with a name twice, JSON that is nested too deeply, a whole
        number of more digits, or a string with half a surrogate pair, which no text file can hold.
    """
    try:
        parse_int = functools.partial(_parse_int, max_digits)
        value = json.loads(text, parse_int=parse_int, object_pairs_hook=_make_object)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeEncodeError as error:
        raise _NotJson("has half a character (a lone surrogate) in a string.") from error
    except RecursionError as error:
        raise _NotJson("is nested too deeply.") from error
    except ValueError as error:
        raise _NotJson(f"is not JSON ({error}).") from error


def describe(error: BaseException) -> str:
    """What an error says, in a phrase: what the machine lacks, where that is the cause."""
    lacking = find_lack(error)
    if lacking:
        return lacking
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def find_lack(error: BaseException | None) -> str:
    """What the machine lacks, in a phrase, if an error or one of its causes says so; else "".

    A library that cannot open one file more, or has no memory left, raises what it raises for a
    damaged file; a message must not blame the file then.
    """
    seen: set[int] = set()  # an error that threads raise again can be its own cause
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError):
            return _LACKS[errno.ENOMEM]
        if isinstance(error, OSError) and error.errno in _LACKS:
            return _LACKS[error.errno]
        text = str(error).lower()
        for phrase, lacking in _PHRASES.items():
            if phrase in text:
                return lacking
        error = error.__cause__ or error.__context__
    return ""


def unreadable(path: str | Path, error: BaseException, reason: str) -> InputError:
    """The error to raise for a file that a library cannot read.

    Args:
      path: of the file or folder.
      error: what the library raised.
      reason: what is wrong if the machine lacks nothing, such as "is not a whole shard".

    Returns:
      `PATH: cannot be read (the machine's lack)`, a `LackError` unless permission is what lacks;
      or `PATH: reason`.
    """
    lacking = find_lack(error)
    if not lacking:
        return InputError(f"{path}: {reason}")
    kind = InputError if lacking == _LACKS[errno.EACCES] else LackError
    return kind(f"{path}: cannot be read ({lacking}).")


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; Python's reader would keep the last of several values of a name."""
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:80]!r} is there twice in one object")
    return values


def _parse_int(max_digits: int, digits: str) -> int:
    if len(digits.lstrip("-")) > max_digits:
        raise ValueError(f"the number {digits[:20]}... has {len(digits)} digits")
    return int(digits)


def _not_text(data: bytes, error: UnicodeDecodeError, with_line: bool = True) -> str:
    line = data.count(b"\n", 0, error.start) + 1
    column = error.start - (data.rfind(b"\n", 0, error.start) + 1)
    place = f"line {line}, byte {column + 1}" if with_line else f"byte {column + 1}"
    return f"is not UTF-8 text (0x{data[error.start]:02x} at {place}); save it as UTF-8."
