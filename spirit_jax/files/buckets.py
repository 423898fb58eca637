"""Paths of objects in buckets, with the methods of `pathlib.Path`.

Buckets are reached with fsspec, which has one library for each kind of storage. epath, which Orbax
uses, is not enough: it takes TensorFlow where that is installed, keeps listings, cannot write an
object only if there is none, and repeats no request.
"""

import contextlib
import datetime
import errno
import fnmatch
import io
import logging
import os
import pathlib
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from spirit_jax.errors import InputError
from spirit_jax.files.object_reader import BLOCK, ObjectReader
from spirit_jax.files.resources import UNFINISHED, find_resource_error

SCHEMES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub", "memory": "fsspec"}
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before a request is repeated, on average

# `pathlib` makes one slash of two.
URL = re.compile(rf"({'|'.join(SCHEMES)}):/+(.*)", re.DOTALL)
# Answers that stay the same when a request is repeated.
_FINAL = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    ImportError,
    NotImplementedError,
    TypeError,
    ValueError,
    InputError,
)
_FINAL_STATUSES = (400, 401, 403, 404, 405, 412)
_DENIED = ("forbidden", "access denied", "anonymous caller", "does not have storage.")

T = TypeVar("T")


class BucketPath(pathlib.PosixPath):
    """A path such as gs://bucket/folder/file, with the methods of `pathlib.Path`.

    Buckets have no folders: a folder is there if an object has its name and a slash at the start.
    A folder that `whole_folder` has not finished is not a folder (see `marker`).
    """

    # As parts it is ("/", "gs", "bucket", ...).
    def __new__(cls, *parts):
        return super().__new__(cls, *_split_url(parts))

    if sys.version_info >= (3, 12):

        def __init__(self, *parts):
            super().__init__(*_split_url(parts))

    def __str__(self):
        if len(self.parts) < 2 or self.parts[1] not in SCHEMES or self.parts[0] != "/":
            return "/".join(self.parts).replace("//", "/")  # relative, from `relative_to`
        return f"{self.parts[1]}://" + "/".join(self.parts[2:])

    def __fspath__(self):
        return str(self)

    @property
    def system(self) -> Any:
        """The file system of fsspec.

        Raises:
          InputError: its package is not installed.
        """
        import fsspec

        scheme = self.scheme
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # errors are raised too
        try:
            return fsspec.filesystem(scheme, use_listings_cache=False)
        except ImportError as error:
            extra = " (pip install 'spirit-jax[gcs]')" if scheme == "gs" else ""
            raise InputError(
                f"{self}: paths of {scheme}:// need {SCHEMES[scheme]}, which is not "
                f"installed{extra}."
            ) from error

    @property
    def scheme(self) -> str:
        """Such as "gs"."""
        return self.parts[1]

    @property
    def key(self) -> str:
        """The path as fsspec takes it."""
        return str(self)

    @property
    def marker(self) -> "BucketPath":
        """An object that exists while the folder is being written, and after its writer's death."""
        return self.with_name(self.name + UNFINISHED)

    @property
    def is_object(self) -> bool:
        """Whether the path is below a bucket, so that an object or folder can have it."""
        return len(self.parts) > 3

    def info(self) -> dict[str, Any]:
        """fsspec's description: type, size, and more; raises `FileNotFoundError`."""
        return self._repeat(self._describe)

    def _describe(self) -> dict[str, Any]:
        if self.scheme != "gs" or not self.is_object:
            return self.system.info(self.key)
        # `gcsfs.info` makes up to three requests, and closes the connection of one of them.
        bucket, _, name = self.key.removeprefix("gs://").partition("/")
        try:
            about = self.system.call("GET", "b/{}/o/{}", bucket, name, json_out=True)
        except FileNotFoundError:
            options = {"prefix": f"{name}/", "maxResults": 1}
            listed = self.system.call("GET", "b/{}/o", bucket, **options, json_out=True)
            if not listed.get("items"):
                raise
            return {"type": "directory", "size": 0}
        changed = datetime.datetime.fromisoformat(about["updated"])
        return about | {"type": "file", "size": int(about["size"]), "mtime": changed}

    def exists(self) -> bool:
        return bool(self._kind())

    def is_file(self) -> bool:
        return self._kind() == "file"

    def is_dir(self) -> bool:
        if self._kind() != "directory":
            return False
        return not (self.is_object and self.marker._kind())

    def is_symlink(self) -> bool:
        return False

    def _kind(self) -> str:
        try:
            return self.info()["type"]
        except FileNotFoundError:
            return ""

    def stat(self) -> os.stat_result:
        """Size and modification time; the other values are zero."""
        about = self.info()
        if about["type"] == "directory":
            raise IsADirectoryError(errno.EISDIR, "is a folder", str(self))
        changed = about.get("mtime") or about.get("LastModified") or about.get("created") or 0.0
        seconds = changed.timestamp() if hasattr(changed, "timestamp") else float(changed)
        times = (seconds,) * 3
        whole = (int(seconds),) * 3
        more = {"st_mtime_ns": round(seconds * 1e6) * 1000}
        values = (0o100644, 0, 0, 1, 0, 0, about["size"], *whole, *times)
        return os.stat_result(values, more)

    def iterdir(self) -> Iterator["BucketPath"]:
        for about in self._list():
            yield self / about["name"].rstrip("/").rpartition("/")[2]

    def _list(self) -> list[dict[str, Any]]:
        name = self.key.partition("://")[2].rstrip("/")
        listed = self._repeat(lambda: self.system.ls(self.key, detail=True))
        # An object whose name ends in a slash is an empty folder.
        return [entry for entry in listed if entry["name"].strip("/") != name.strip("/")]

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """The paths of objects and folders that match; a pattern of `*`, `?`, `[]` and `/`."""
        first, _, rest = pattern.partition("/")
        has_wildcard = any(sign in first for sign in "*?[")
        paths = [self / first]
        if has_wildcard:
            try:
                paths = [p for p in self.iterdir() if fnmatch.fnmatchcase(p.name, first)]
            except FileNotFoundError:
                return
        for path in paths:
            if rest:
                yield from path.glob(rest)
            elif has_wildcard or path.exists():
                yield path

    def rglob(self, pattern: str) -> Iterator["BucketPath"]:
        """The objects, at any depth, whose name matches; folders are left out."""
        return (path for path in self.walk_files() if path.match(pattern))

    def walk_files(self) -> Iterator["BucketPath"]:
        """All objects below the folder."""
        prefix = self.key.partition("://")[2].rstrip("/") + "/"
        keys = self._repeat(lambda: self.system.find(self.key))
        for name in keys:
            rest = name.lstrip("/").removeprefix(prefix.lstrip("/"))
            if rest and not rest.endswith("/") and rest != name.lstrip("/"):
                yield self / rest

    def mkdir(self, *_, **__) -> None:
        """Nothing: a folder is there when an object is in it."""

    def rmdir(self) -> None:
        """Nothing: a folder is gone when no object is in it."""

    def rmtree(self) -> None:
        """Removes all objects below the folder."""
        for path in self.walk_files():
            path.unlink(missing_ok=True)

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok:
            self.info()
        # If the answer is lost, then the repeated request finds nothing.
        with contextlib.suppress(FileNotFoundError):
            self._repeat(lambda: self.system.rm_file(self.key))

    def rename(self, target: Any) -> "BucketPath":
        """Copies the object or folder, and removes the original; this is not atomic."""
        target = BucketPath(str(target))
        pairs = [(self, target)]
        if not self.is_file():
            pairs = [(p, target / p.relative_to(self).as_posix()) for p in self.walk_files()]
        for source, copy in pairs:
            self._repeat(lambda s=source, c=copy: self.system.cp_file(s.key, c.key))
        for source, _ in pairs:
            source.unlink(missing_ok=True)
        return target

    replace = rename

    def absolute(self) -> "BucketPath":
        return self

    resolve = expanduser = absolute

    def open(self, mode: str = "r", **options) -> Any:
        """Opens an object for reading; `whole_file` and `put` write."""
        if mode not in ("r", "rb", "rt"):
            raise NotImplementedError(f"{self}: an object of a bucket is only written whole.")
        binary = io.BufferedReader(ObjectReader(self), BLOCK)
        if mode == "rb":
            return binary
        return io.TextIOWrapper(binary, encoding=options.get("encoding") or "utf-8")

    def read_bytes(self) -> bytes:
        return self._repeat(lambda: self.system.cat_file(self.key))

    def read_range(self, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`, which must be inside of the object."""
        if end <= start:
            return b""

        def read() -> bytes:
            data = self.system.cat_file(self.key, start=start, end=end)
            if len(data) != end - start:
                raise OSError(errno.EIO, "an answer of the bucket was cut short", str(self))
            return data

        return self._repeat(read)

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> None:
        """Writes an object, in place of an earlier one."""
        self._repeat(lambda: self.system.pipe_file(self.key, bytes(data)))

    def write_text(self, text: str, encoding: str = "utf-8", newline: str = "") -> None:
        self.write_bytes(text.encode(encoding))

    def create(self, data: bytes) -> None:
        """Writes a small object; raises `FileExistsError` if there is one with other content."""

        def write() -> None:
            try:
                self.system.pipe_file(self.key, bytes(data), mode="create")
            except FileExistsError:
                # The answer to an earlier attempt, also one of the library, may have been lost.
                if self.system.cat_file(self.key) != bytes(data):
                    raise

        self._repeat(write)

    def remove_version(self, generation: str | None) -> None:
        """Removes an object unless another one has its name now; see `info`.

        Storage other than gs:// cannot check that; there the object is removed.
        """
        if self.scheme != "gs" or generation is None:
            self.unlink(missing_ok=True)
            return
        bucket, _, name = self.key.removeprefix("gs://").partition("/")
        with contextlib.suppress(FileNotFoundError, FileExistsError):  # gone, or another one
            self._repeat(
                lambda: self.system.call(
                    "DELETE", "b/{}/o/{}", bucket, name, ifGenerationMatch=generation
                )
            )

    def put(self, local: Path, overwrite: bool = True) -> None:
        """Uploads a local file; the object appears whole at the end.

        Raises:
          FileExistsError: there is an object with other content, and `overwrite` is not set.
        """
        options = {} if overwrite else {"mode": "create"}
        size = local.stat().st_size

        def upload() -> None:
            try:
                self.system.put_file(str(local), self.key, **options)
            except FileExistsError:
                if not _same_content(self, local):
                    raise
            if self.info()["size"] != size:
                raise OSError(errno.EIO, "the uploaded object has another size", str(self))

        self._repeat(upload)

    def get(self, local: Path) -> None:
        """Downloads an object to a local file."""
        with self.open("rb") as source, open(local, "wb") as target:
            shutil.copyfileobj(source, target, BLOCK)

    def _repeat(self, request: Callable[[], T]) -> T:
        """Makes a request, again after each error that may pass."""
        if not self.parts[2:]:
            raise FileNotFoundError(errno.ENOENT, "the name of a bucket is missing", str(self))
        for wait in (*WAITS, None):
            try:
                return request()
            except Exception as error:
                text = str(error).lower()
                status = getattr(error, "code", None) or getattr(error, "status", None)
                if status in (401, 403) or any(phrase in text for phrase in _DENIED):
                    raise PermissionError(
                        errno.EACCES, "permission is denied", str(self)
                    ) from error
                if isinstance(error, FileNotFoundError):
                    raise FileNotFoundError(
                        errno.ENOENT, "No such file or directory", str(self)
                    ) from error
                is_final = isinstance(error, _FINAL) or status in _FINAL_STATUSES
                if is_final or isinstance(error, MemoryError) or find_resource_error(error):
                    raise
                if wait is None:
                    lines = str(error).strip().splitlines() or [type(error).__name__]
                    reason = f"the bucket does not answer: {lines[0][:200]}"
                    raise OSError(errno.EIO, reason, str(self)) from error
                time.sleep(wait * random.uniform(0.5, 1.5))  # many clients at different times
        raise AssertionError  # not reached


def _split_url(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a path, with a URL as ("/gs/bucket/...",)."""
    joined = "/".join(os.fspath(part) for part in parts)
    match = URL.fullmatch(joined)
    return (f"/{match[1]}/{match[2]}",) if match else parts


def _same_content(path: BucketPath, local: Path) -> bool:
    with path.open("rb") as left, open(local, "rb") as right:
        while True:
            block = left.read(BLOCK)
            if block != right.read(BLOCK):
                return False
            if not block:
                return True
