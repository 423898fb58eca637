"""Paths of local files and of objects in buckets.

`as_path` gives a `pathlib.Path` for a local path, and a `BucketPath` with the same methods for a
URL such as gs://bucket/folder.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from spirit_jax.files.buckets import URL, BucketPath


def as_path(path: str | os.PathLike) -> Path:
    """A local path, or a `BucketPath` for a URL, also for one that `pathlib.Path` shortened."""
    if isinstance(path, BucketPath):
        return path
    text = os.fspath(path)
    if isinstance(text, str) and URL.fullmatch(text):
        return BucketPath(text)
    return Path(path)


def is_bucket(path: Any) -> bool:
    """Whether a path, or a string, is that of a bucket."""
    return isinstance(path, BucketPath) or (
        isinstance(path, str | os.PathLike)
        and isinstance(os.fspath(path), str)
        and URL.fullmatch(os.fspath(path)) is not None
    )


def is_folder(path: str | os.PathLike) -> bool:
    """Whether a path is that of a folder; False also without permission to know."""
    path = as_path(path)
    return path.is_dir() if is_bucket(path) else os.path.isdir(path)


def is_file(path: str | os.PathLike) -> bool:
    """Whether a path is that of a file; False also without permission to know."""
    path = as_path(path)
    return path.is_file() if is_bucket(path) else os.path.isfile(path)


def walk(folder: str | os.PathLike) -> list[Path]:
    """All files below a folder, at any depth; in a bucket one listing gives them all."""
    folder = as_path(folder)
    if is_bucket(folder):
        return list(folder.walk_files())
    return [path for path in folder.rglob("*") if path.is_file()]


def join(folder: Path, name: str) -> Path:
    """A path relative to a folder, or `name` itself if that is absolute."""
    return as_path(name) if os.path.isabs(name) else without_dots(folder / name)


def without_dots(path: Path) -> Path:
    """The path; that of a bucket, where ".." is a name like others, without ".."."""
    if not is_bucket(path) or ".." not in path.parts:
        return path
    scheme, _, rest = str(path).partition("://")
    return as_path(f"{scheme}://{os.path.normpath(rest)}")


def open_binary(path: str | os.PathLike) -> BinaryIO:
    """Opens a local file or an object for reading bytes."""
    path = as_path(path)
    return path.open("rb") if is_bucket(path) else open(path, "rb")


@contextlib.contextmanager
def local_copy(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a local path of a file or folder, for a library that cannot read from buckets.

    That of a bucket is downloaded to the folder of temporary files, and removed at the end.

    Raises:
      OSError: it cannot be read.
    """
    path = as_path(path)
    if not is_bucket(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="spirit-jax-") as folder:
        local = Path(folder) / path.name
        copy_file(path, local) if path.is_file() else copy_tree(path, local)
        yield local


def copy_file(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copies the content of a file to a local file."""
    source = as_path(source)
    if is_bucket(source):
        source.get(Path(target))
    else:
        shutil.copyfile(source, target)


def copy_tree(source: str | os.PathLike, target: str | os.PathLike, **options: Any) -> None:
    """Copies a folder to a local one, as `shutil.copytree`, whose options these are."""
    source, target = as_path(source), Path(target)
    if not is_bucket(source):
        shutil.copytree(source, target, **options)
        return
    target.mkdir(parents=True, exist_ok=options.get("dirs_exist_ok", False))
    children = list(source.iterdir())
    ignored = options["ignore"](source, [p.name for p in children]) if "ignore" in options else ()
    for path in children:
        if path.name in ignored:
            continue
        if path.is_file():
            path.get(target / path.name)
        else:
            copy_tree(path, target / path.name, **options)


def remove_tree(path: str | os.PathLike) -> None:
    """Removes a folder with all that is in it; what cannot be removed stays."""
    path = as_path(path)
    if is_bucket(path):
        with contextlib.suppress(OSError):
            path.rmtree()
    else:
        shutil.rmtree(path, ignore_errors=True)
