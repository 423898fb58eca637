"""What the machine lacks when a file cannot be read or written: disk, memory, permission, ..."""

import errno
import os
from pathlib import Path

from spirit_jax.errors import InputError, ResourceError

UNFINISHED = ".unfinished"  # suffix of a temporary name; ".unfinished-1" while another is in use
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # the first bytes of such a file

# Errors that are due to the machine and not to the file.
_RESOURCES = {
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
_NO_WRITING = {
    _RESOURCES[number] for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
}
_PHRASES = {
    "no space left": _RESOURCES[errno.ENOSPC],
    "disk quota exceeded": _RESOURCES[errno.EDQUOT],
    "read-only file system": _RESOURCES[errno.EROFS],
    "file too large": _RESOURCES[errno.EFBIG],
    "permission denied": _RESOURCES[errno.EACCES],
    "too many open files": _RESOURCES[errno.EMFILE],
    "resource_exhausted": _RESOURCES[errno.ENOMEM],
    "out of memory": _RESOURCES[errno.ENOMEM],
    "cannot allocate memory": _RESOURCES[errno.ENOMEM],
    "bad_alloc": _RESOURCES[errno.ENOMEM],
    "malloc () failed": _RESOURCES[errno.ENOMEM],  # libsndfile's words
}


def describe(error: BaseException) -> str:
    """A short phrase for an error: that of `find_resource_error`, if any, or its message."""
    phrase = find_resource_error(error)
    if phrase:
        return phrase
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def find_resource_error(error: BaseException | None) -> str:
    """A phrase for what the machine lacks (disk, memory, ...) if that caused an error; else "".

    A library that cannot open another file, or is out of memory, often raises the same error as for
    a damaged file. The message must not blame the file then.
    """
    seen: set[int] = set()  # an error that is raised again by another thread can be its own cause
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError):
            return _RESOURCES[errno.ENOMEM]
        if isinstance(error, OSError) and error.errno in _RESOURCES:
            return _RESOURCES[error.errno]
        text = str(error).lower()
        for words, phrase in _PHRASES.items():
            if words in text:
                return phrase
        error = error.__cause__ or error.__context__
    return ""


def unreadable(path: str | Path, error: BaseException, reason: str) -> InputError:
    """The error to raise for a file that a library cannot read.

    Args:
      path: the file or folder.
      error: what the library raised.
      reason: what is wrong unless the machine lacks something, such as "is not a whole shard".

    Returns:
      An `InputError` with `PATH: reason`; or, if the machine lacks something, a `ResourceError`
      with `PATH: cannot be read (...)`, which is a plain `InputError` for a lack of permission. A
      Git LFS pointer in place of the file is named as such.
    """
    phrase = find_resource_error(error)
    if not phrase:
        return lfs_pointer(path) if _is_lfs_pointer(path) else InputError(f"{path}: {reason}")
    kind = InputError if phrase == _RESOURCES[errno.EACCES] else ResourceError
    return kind(f"{path}: cannot be read ({phrase}).")


def unwritable(
    output: str | Path, error: BaseException, temporary: str | Path | None = None
) -> InputError:
    """The error to raise for an output that could not be written.

    Args:
      output: the file or folder.
      error: what was raised meanwhile. If it names a file elsewhere, then an input is the cause.
      temporary: the local folder in which it was written before an upload.

    Returns:
      An `InputError` with `OUTPUT: cannot be written (...)`, or that the input cannot be read.
    """
    name = getattr(error, "filename", None)
    if isinstance(name, str | bytes | os.PathLike):
        path, target = (os.path.abspath(os.fsdecode(each)) for each in (name, output))
        is_temporary = path.startswith((target + UNFINISHED, str(temporary or "\0")))
        is_inside = (path + "/").startswith(target + "/") or (target + "/").startswith(path + "/")
        if not is_temporary and not is_inside:
            return InputError(f"{os.fsdecode(name)}: cannot be read ({describe(error)}).")
    reason = describe(error)
    if temporary is not None and find_resource_error(error) in _NO_WRITING:
        reason = f"in the folder of temporary files, {temporary}, {reason}; set TMPDIR to another"
    return InputError(f"{output}: cannot be written ({reason}).")


def is_of_writing(error: Exception) -> bool:
    """Whether an error is that of an output; libraries have their own types for a full disk."""
    return isinstance(error, OSError) or find_resource_error(error) in _NO_WRITING


def _is_lfs_pointer(path: str | Path) -> bool:
    try:
        with (Path(path) if isinstance(path, str) else path).open("rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except (OSError, ValueError):
        return False


def lfs_pointer(path: str | Path) -> InputError:
    return InputError(
        f"{path}: is a Git LFS pointer and not the file itself; download it with 'git lfs pull'."
    )
