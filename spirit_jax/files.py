"""Files: written whole or not at all, and read with a clear sentence for each fault.

Everything that is written and trusted later goes through `whole_file` or `whole_folder`; every text
and JSON file from outside through `read_text`, `read_json` or `read_json_lines`.
"""

import codecs
import contextlib
import errno
import fcntl
import functools
import itertools
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from spirit_jax.errors import ExistsError, InputError, LackError

UNFINISHED = ".unfinished"  # suffix of a temporary name; ".unfinished-1" while another is in use
MAX_DIGITS = 19  # of a whole number in JSON; longer ones do not fit 64 bits
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # the first bytes of such a file
MAX_CONFIG_DIGITS = 40  # tokenizer configs of transformers hold int(1e30) for "no limit"

# Errors that are due to the machine and not to the file.
_LACKS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EFBIG: "the file is larger than this process may write; raise the limit with ulimit -f",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EMFILE: "too many files are open; raise the limit with ulimit -n",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENOMEM: "memory is used up",
}
_NO_WRITING = {_LACKS[number] for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)}
_PHRASES = {
    "no space left": _LACKS[errno.ENOSPC],
    "disk quota exceeded": _LACKS[errno.EDQUOT],
    "read-only file system": _LACKS[errno.EROFS],
    "file too large": _LACKS[errno.EFBIG],
    "permission denied": _LACKS[errno.EACCES],
    "too many open files": _LACKS[errno.EMFILE],
    "resource_exhausted": _LACKS[errno.ENOMEM],
    "out of memory": _LACKS[errno.ENOMEM],
    "cannot allocate memory": _LACKS[errno.ENOMEM],
    "bad_alloc": _LACKS[errno.ENOMEM],
    "malloc () failed": _LACKS[errno.ENOMEM],  # libsndfile's words
}


def require_folder(path: str | Path) -> None:
    """Raises `InputError` unless a path is that of a folder."""
    if not Path(path).is_dir():
        what = "is a file; expected a folder" if Path(path).exists() else "there is no such folder"
        raise InputError(f"{path}: {what}.")


def refuse_existing(path: str | Path) -> None:
    """Raises an `ExistsError` if something exists at a path that is to be written."""
    if os.path.lexists(path):
        raise ExistsError(f"{path}: exists already; remove it or choose another output.")


@contextlib.contextmanager
def whole_file(path: str | Path, overwrite: bool = True) -> Iterator[Path]:
    """Yields a temporary path to write to, which is renamed to `path` at the end.

    After an error the temporary file is removed. An existing file at `path` stays until the rename,
    which replaces it atomically. The data is flushed to the disk before the rename, so a power cut
    leaves the old file or the new one. Processes that write the same `path` at the same time have
    separate temporary files, and the last one to finish wins.

    Args:
      path: the file to write.
      overwrite: whether a file at `path` is replaced. If not, the first process to finish wins.

    Raises:
      ExistsError: something exists at `path`, and `overwrite` is not set.
      InputError: the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path, is_folder=False) as unfinished:
            yield unfinished
            with open(unfinished, "rb+") as file:
                os.fsync(file.fileno())
            if overwrite:
                unfinished.replace(path)
            else:
                _link_new(unfinished, path)
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or _is_of_writing(error):
            raise unwritable(path, error) from error
        raise


def _link_new(source: Path, path: Path) -> None:
    """Gives a file a second name, which must be new; unlike a rename it never replaces a file."""
    refuse_existing(path)
    try:
        os.link(source, path)
    except OSError:
        refuse_existing(path)  # another process wrote it just now
        source.replace(path)  # a file system without links


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text file with `whole_file`; raises `InputError` if it cannot be written."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="")


def write_json(path: str | Path, value: Any) -> None:
    """Writes indented JSON with `whole_file`; raises `InputError` if it cannot be written."""
    write_text(path, format_json(value))


def format_json(value: Any) -> str:
    """The content of a JSON file, as `write_json` writes it."""
    return json.dumps(value, indent=2) + "\n"


def write_json_lines(path: str | Path, rows: Iterable[Any]) -> None:
    """Writes JSON lines with `whole_file`; raises `InputError` if the file cannot be written."""
    with whole_file(path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@contextlib.contextmanager
def whole_folder(output: str | Path) -> Iterator[Path]:
    """Yields a temporary folder to write into, which is renamed to `output` at the end.

    After an error the temporary folder is removed, and so are the remains of a killed process.
    Processes that write the same `output` at the same time have separate temporary folders; the
    first one to finish wins, and the others raise.

    Raises:
      ExistsError: `output` exists already.
      InputError: `output` cannot be written.
    """
    output = Path(output).absolute()
    refuse_existing(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(output, is_folder=True) as unfinished:
            try:
                yield unfinished
            except InputError as error:  # users know only the final name
                message = str(error).replace(str(unfinished), str(output))
                raise type(error)(message) from error
            refuse_existing(output)
            try:
                unfinished.rename(output)
            except OSError:
                refuse_existing(output)  # another process wrote it just now
                raise
    except InputError:
        raise
    except Exception as error:
        if _is_of_writing(error):
            raise unwritable(output, error) from error
        raise


def _is_of_writing(error: Exception) -> bool:
    """Whether an error is that of an output; libraries have their own types for a full disk."""
    return isinstance(error, OSError) or find_lack(error) in _NO_WRITING


@contextlib.contextmanager
def _temporary(path: Path, is_folder: bool) -> Iterator[Path]:
    """Yields a new file or empty folder beside `path`, and removes it unless it was renamed.

    It is locked (flock), so that another process with the same `path` takes the next free name.
    The remains of a killed process are not locked any more: they are emptied and used again.
    """
    descriptor = -1
    for number in itertools.count():
        suffix = f"{UNFINISHED}-{number}" if number else UNFINISHED
        temporary = path.with_name(path.name + suffix)
        descriptor, can_lock = _lock(temporary, is_folder)
        if not can_lock:  # a file system without flock: a name that no other process draws
            temporary = path.with_name(f"{path.name}{UNFINISHED}-{uuid.uuid4().hex}")
        if descriptor >= 0 or not can_lock:
            break
    try:
        if is_folder:
            temporary.mkdir(exist_ok=True)
            for remains in temporary.iterdir():
                _remove(remains)
        else:
            temporary.write_bytes(b"")
        yield temporary
    finally:
        # After the rename another process may have taken the temporary name.
        if descriptor < 0 or _is_open(temporary, descriptor):
            _remove(temporary)
        if descriptor >= 0:
            os.close(descriptor)


def _lock(path: Path, is_folder: bool) -> tuple[int, bool]:
    """(descriptor of the locked file or folder, or -1 if another process has it; can it be locked).

    The file or folder is created if it does not exist.
    """
    while True:
        if is_folder:
            path.mkdir(exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # renamed or removed by its process just now
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            is_taken = isinstance(error, BlockingIOError)
            if not is_taken:
                _remove(path)
            return -1, is_taken
        if _is_open(path, descriptor):
            return descriptor, True
        os.close(descriptor)  # renamed or removed after it was opened


def _is_open(path: Path, descriptor: int) -> bool:
    """Whether a descriptor is that of the file or folder which has the name `path` now."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    """Removes a file or folder; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def read_bytes(path: str | Path, most: int = -1) -> bytes:
    """The bytes of a file, at most the first `most`; raises `InputError` if it cannot be read."""
    try:
        with open(path, "rb") as file:
            data = file.read(most)
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a NUL byte in the name
        raise unreadable(path, error, f"cannot be read ({describe(error)}).") from error
    if data.startswith(LFS_POINTER):
        raise _lfs_pointer(path)
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
        with open(path, "rb") as file:
            for number, line in enumerate(_split_lines(file), 1):
                if number == 1 and line.startswith(LFS_POINTER):
                    raise _lfs_pointer(path)
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


def describe(error: BaseException) -> str:
    """A short phrase for an error: `find_lack` if the machine is the cause, else its message."""
    lacking = find_lack(error)
    if lacking:
        return lacking
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def find_lack(error: BaseException | None) -> str:
    """A phrase for what the machine lacks (disk, memory, ...) if that caused an error; else "".

    A library that cannot open another file, or is out of memory, often raises the same error as for
    a damaged file. The message must not blame the file then.
    """
    seen: set[int] = set()  # an error that is raised again by another thread can be its own cause
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
      path: the file or folder.
      error: what the library raised.
      reason: what is wrong unless the machine lacks something, such as "is not a whole shard".

    Returns:
      An `InputError` with `PATH: reason`; or, if the machine lacks something, a `LackError` with
      `PATH: cannot be read (...)`, which is a plain `InputError` for a lack of permission. A Git
      LFS pointer in place of the file is named as such.
    """
    lacking = find_lack(error)
    if not lacking:
        return _lfs_pointer(path) if _is_lfs_pointer(path) else InputError(f"{path}: {reason}")
    kind = InputError if lacking == _LACKS[errno.EACCES] else LackError
    return kind(f"{path}: cannot be read ({lacking}).")


def unwritable(output: str | Path, error: BaseException) -> InputError:
    """The error to raise for an output that could not be written.

    Args:
      output: the file or folder.
      error: what was raised meanwhile. If it names a file elsewhere, then an input is the cause.

    Returns:
      An `InputError` with `OUTPUT: cannot be written (...)`, or that the input cannot be read.
    """
    name = getattr(error, "filename", None)
    if isinstance(name, str | bytes | os.PathLike):
        path, target = (Path(os.path.abspath(os.fsdecode(each))) for each in (name, output))
        is_temporary = str(path).startswith(str(target) + UNFINISHED)
        related = is_temporary or path.is_relative_to(target) or target.is_relative_to(path)
        if not related:
            return InputError(f"{os.fsdecode(name)}: cannot be read ({describe(error)}).")
    return InputError(f"{output}: cannot be written ({describe(error)}).")


def _is_lfs_pointer(path: str | Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except (OSError, ValueError):
        return False


def _lfs_pointer(path: str | Path) -> InputError:
    return InputError(
        f"{path}: is a Git LFS pointer and not the file itself; download it with 'git lfs pull'."
    )


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
