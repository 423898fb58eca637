"""A cache on disk of arrays that are computed from recordings: units, labels, F0.

Recordings are divided into chunks. The arrays of a chunk are one file, whose name is a hash of the
settings and the recordings. So a stopped computation resumes, changed recordings are computed
again, and runs with the same cache folder use the same files. The hashes of the recordings decide
where chunks end, so an added recording changes only chunks near it.
"""

import functools
import hashlib
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from spirit_jax import files
from spirit_jax.data.manifest import Item, fingerprint
from spirit_jax.data.progress import counting
from spirit_jax.errors import InputError
from spirit_jax.training import distributed

CHUNK = 32  # average number of recordings in a file

Arrays = dict[str, np.ndarray]


def read(
    folder: str | Path,
    settings: str,
    items: Sequence[Item],
    compute: Callable[[Sequence[Item]], Iterable[Arrays]],
    title: str,
    *,
    key: Callable[[Item], bytes] = fingerprint,
    workers: int = 1,
) -> list[Arrays]:
    """The arrays of recordings, from the cache or computed and cached.

    With several processes the first one computes; all of them must have access to the folder. A
    damaged file is reported and computed again.

    Args:
      folder: folder of the cache.
      settings: describes everything besides the recordings that the arrays depend on.
      items: the recordings; equal ones are computed once.
      compute: takes some recordings and returns, for each, its arrays by name. All recordings have
        the same names; the first axes may have different lengths.
      title: title of the progress bar, such as "F0".
      key: the bytes of a recording that are hashed: they change when its arrays do.
      workers: number of worker processes; if there are several, `compute` must be picklable.

    Returns:
      The arrays of each recording, in order.

    Raises:
      InputError: a recording cannot be read, or the folder cannot be written.
    """
    digests = [hashlib.sha256(key(item)).digest() for item in items]
    unique = dict(zip(digests, items, strict=True))
    chunks = {
        files.as_path(folder) / f"{_digest(settings, chunk)}.npz": chunk
        for chunk in _split(list(unique))
    }

    def compute_missing() -> None:
        jobs = [
            (path, [unique[digest] for digest in chunk])
            for path, chunk in chunks.items()
            if _load_whole(path) is None
        ]
        if not jobs:
            return
        with counting(title, sum(len(items) for _, items in jobs)) as count:
            for done in _run(functools.partial(_compute, compute), jobs, workers):
                count(done)

    distributed.from_first(compute_missing)
    by_digest = {}
    for path, chunk in chunks.items():
        if not path.exists():
            raise InputError(f"{path}: is missing: the first process reads other recordings.")
        by_digest |= zip(chunk, _load(path), strict=True)
    return [by_digest[digest] for digest in digests]


def read_value(
    folder: str | Path,
    settings: str,
    items: Iterable[Item],
    compute: Callable[[], np.ndarray],
) -> np.ndarray:
    """As `read`, for one array that is computed from all recordings together."""
    digests = [hashlib.sha256(fingerprint(item)).digest() for item in items]
    path = files.as_path(folder) / f"{_digest(settings, digests)}.npz"

    def compute_missing() -> None:
        if _load_whole(path) is None:
            _write(path, [{"value": compute()}])

    distributed.from_first(compute_missing)
    return _load(path)[0]["value"]


def _split(digests: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Divides recordings into chunks, by their hashes; see the module's docstring."""
    chunk = []
    for digest in digests:
        chunk.append(digest)
        if len(chunk) == 2 * CHUNK or int.from_bytes(digest[:4]) % CHUNK == 0:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _digest(settings: str, digests: Sequence[bytes]) -> str:
    """The name of a chunk's file, without suffix."""
    return hashlib.sha256(settings.encode() + b"\0" + b"".join(digests)).hexdigest()[:32]


def _run(compute: Callable, jobs: list[tuple[Path, list[Item]]], workers: int) -> Iterator[int]:
    """Calls `compute` for each job, and yields its results."""
    workers = min(workers, len(jobs))
    if workers < 2:
        yield from map(compute, jobs)
        return
    # Not "fork", since JAX has threads whose locks may be held at the time of the fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(compute, jobs)


def _compute(
    compute: Callable[[Sequence[Item]], Iterable[Arrays]], job: tuple[Path, list[Item]]
) -> int:
    """Writes the file of a chunk; returns the number of its recordings."""
    path, items = job
    _write(path, list(compute(items)))
    return len(items)


def _write(path: Path, rows: Sequence[Arrays]) -> None:
    """Writes the arrays of some recordings: concatenated by name, with the length of each."""
    arrays = {}
    for name in rows[0]:
        arrays[name] = np.concatenate([row[name] for row in rows])
        arrays[f"{name} lengths"] = np.array([len(row[name]) for row in rows])
    with files.whole_file(path) as unfinished, open(unfinished, "wb") as file:
        np.savez(file, **arrays)


def _load(path: Path) -> list[Arrays]:
    """The inverse of `_write`."""
    with files.open_binary(path) as file, np.load(file) as arrays:
        names = [name for name in arrays if not name.endswith(" lengths")]
        parts = [
            np.split(arrays[name], np.cumsum(arrays[f"{name} lengths"])[:-1]) for name in names
        ]
    return [dict(zip(names, row, strict=True)) for row in zip(*parts, strict=True)]


def _load_whole(path: Path) -> list[Arrays] | None:
    """As `_load`, but None if the file is missing, or damaged; damage is reported."""
    if not path.exists():
        return None
    try:
        return _load(path)
    except Exception as error:  # libraries raise all kinds for a damaged file
        if files.find_resource_error(error):
            raise files.unreadable(path, error, "is damaged.") from error
        print(f"notice: {path} is damaged and computed again", file=sys.stderr)
        return None
