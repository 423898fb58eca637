"""Files and folders that are written whole or not at all."""

import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from spirit_jax.errors import ExistsError, InputError
from spirit_jax.files import lock
from spirit_jax.files.paths import BucketPath, as_path, is_bucket
from spirit_jax.files.resources import UNFINISHED, is_of_writing, unwritable

UPLOADS = 8  # files that are uploaded at the same time


def require_folder(path: str | Path) -> None:
    """Raises `InputError` unless a path is that of a folder, and of a finished one."""
    path = as_path(path)
    if not path.is_dir():
        refuse_unfinished(path)
        what = "is a file; expected a folder" if path.exists() else "there is no such folder"
        raise InputError(f"{path}: {what}.")


def refuse_unfinished(path: str | Path) -> None:
    """Raises an `InputError` for a folder of a bucket that `whole_folder` has not finished."""
    path = as_path(path)
    if is_bucket(path) and path.is_object and path.marker.exists():
        raise InputError(
            f"{path}: is unfinished: the command that writes it is still running or was killed; "
            f"run it again. A folder that you copied there yourself is finished once you remove "
            f"{path.marker}."
        )


def refuse_existing(path: str | Path) -> None:
    """Raises an `ExistsError` if something exists at a path that is to be written."""
    path = as_path(path)
    if is_bucket(path):  # what a killed process left is replaced
        exists = path.exists() and not path.marker.exists()
    else:
        exists = os.path.lexists(path)
    if exists:
        raise ExistsError(f"{path}: exists already; remove it or choose another output.")


@contextlib.contextmanager
def whole_file(path: str | Path, overwrite: bool = True) -> Iterator[Path]:
    """Yields a temporary path to write to, which is renamed to `path` at the end.

    After an error the temporary file is removed. An existing file at `path` stays until the rename,
    which replaces it atomically. The data is flushed to the disk before the rename, so a power cut
    leaves the old file or the new one. Processes that write the same `path` at the same time have
    separate temporary files, and the last one to finish wins.

    The temporary file of a bucket is local; it is uploaded at the end, and the object appears
    whole.

    Args:
      path: the file to write.
      overwrite: whether a file at `path` is replaced. If not, the first process to finish wins.

    Raises:
      ExistsError: something exists at `path`, and `overwrite` is not set.
      InputError: the file cannot be written.
    """
    path = as_path(path)
    if is_bucket(path):
        with _whole_object(path, overwrite) as unfinished:
            yield unfinished
        return
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
        if isinstance(error, MemoryError) or is_of_writing(error):
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


@contextlib.contextmanager
def _whole_object(path: BucketPath, overwrite: bool) -> Iterator[Path]:
    """`whole_file` for a bucket."""
    with _scratch(path) as folder:
        local = folder / (path.name + UNFINISHED)
        local.write_bytes(b"")
        yield local
        try:
            path.put(local, overwrite)
        except FileExistsError as error:
            raise ExistsError(
                f"{path}: exists already; remove it or choose another output."
            ) from error


@contextlib.contextmanager
def _whole_prefix(output: BucketPath) -> Iterator[Path]:
    """`whole_folder` for a bucket."""
    with _scratch(output) as folder:
        local = folder / output.name
        local.mkdir()
        yield local
        with lock.hold(output.parent, output.marker.name, output, "output") as held:
            if output.exists() and not held.was_stale:
                raise ExistsError(f"{output}: exists already; remove it or choose another output.")
            try:
                output.rmtree()  # of a killed process
                upload_folder(local, output)
                held.check()
            except BaseException:
                held.keep()  # the lock marks the folder as unfinished
                output.rmtree()
                held.keep(False)
                raise


def upload_folder(local: Path, output: BucketPath) -> None:
    """Uploads the files of a folder one by one."""
    names = [file.relative_to(local) for file in sorted(local.rglob("*")) if file.is_file()]
    with ThreadPoolExecutor(UPLOADS) as pool:
        for _ in pool.map(lambda name: (output / name.as_posix()).put(local / name), names):
            pass


@contextlib.contextmanager
def _scratch(output: BucketPath) -> Iterator[Path]:
    """Yields a local temporary folder; errors that name it become errors of the output."""
    folder = ""
    try:
        with tempfile.TemporaryDirectory(prefix="spirit-jax-") as folder:
            yield Path(folder)
    except InputError as error:
        message = re.sub(rf"{re.escape(folder)}/{re.escape(output.name)}({UNFINISHED})?",
                         lambda _: str(output), str(error))  # fmt: skip
        raise type(error)(message) from error
    except Exception as error:
        if isinstance(error, MemoryError) or is_of_writing(error):
            raise unwritable(output, error, folder or tempfile.gettempdir()) from error
        raise


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

    The temporary folder of a bucket is local; at the end it is uploaded. A bucket cannot rename a
    folder in one step, so an object OUTPUT.unfinished is written first and removed last. It is also
    the lock of the upload. Readers treat a folder with it as absent, and the next writer removes
    what a killed one left.

    Raises:
      ExistsError: `output` exists already.
      InputError: `output` cannot be written.
    """
    output = as_path(output).absolute()
    refuse_existing(output)
    if is_bucket(output):
        with _whole_prefix(output) as unfinished:
            yield unfinished
        return
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
        if is_of_writing(error):
            raise unwritable(output, error) from error
        raise


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
