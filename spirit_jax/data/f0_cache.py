"""The F0 of a corpus, computed by several processes and cached on disk.

Each chunk of recordings is one file, whose name is a hash of its inputs. So an interrupted run
resumes, changed recordings are computed again, and runs with the same folder share chunks with the
same recordings in the same order.
"""

import dataclasses
import functools
import hashlib
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from spirit_jax import f0, files
from spirit_jax.audio import Audio, load_audio
from spirit_jax.data.configs import F0Config
from spirit_jax.data.manifest import Item, fingerprint
from spirit_jax.data.progress import watch
from spirit_jax.errors import InputError

CHUNK = 32  # recordings in a file


@dataclasses.dataclass(frozen=True)
class Track:
    """F0 of a recording, with 200 frames per second.

    Attributes:
      f0_t: float32 in Hz, interpolated over unvoiced frames; 0 if no frame is voiced.
      voiced_t: float32, 1 for voiced frames, else 0.
    """

    f0_t: np.ndarray
    voiced_t: np.ndarray

    @property
    def voiced_f0(self) -> np.ndarray:
        """F0 of the voiced frames only."""
        return self.f0_t[self.voiced_t > 0]

    @property
    def mean(self) -> float:
        """Mean F0 of the voiced frames in Hz; 0 without any."""
        return float(self.voiced_f0.mean()) if len(self.voiced_f0) else 0.0


def find_f0(wave_t: np.ndarray, resolution: float = f0.PYIN_RESOLUTION) -> Track:
    """F0 of float32 samples at 16 kHz, by `f0.pyin_f0`; `resolution` is in semitones."""
    return Track(*f0.pyin_f0(wave_t, resolution))


def read_tracks(items: Sequence[Item], config: F0Config, folder: str | Path) -> list[Track]:
    """The F0 of recordings, from the cache or computed and cached.

    Args:
      items: items with audio.
      config: resolution, workers and optionally the folder of the cache.
      folder: of the cache, if `config` has none.

    Returns:
      A track for each item, in order.

    Raises:
      InputError: a recording cannot be read, or the folder cannot be written.
    """
    folder = Path(config.folder or folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({files.describe(error)}).") from error
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    paths = [folder / f"{_digest(chunk, config)}.npz" for chunk in chunks]
    missing = [
        (chunk, path) for chunk, path in zip(chunks, paths, strict=True) if not _is_whole(path)
    ]
    jobs = [([item.audio for item in chunk], path) for chunk, path in missing]
    workers = min(config.workers or os.cpu_count() or 1, len(jobs))
    compute = functools.partial(_compute, resolution=config.resolution)
    if workers > 1:
        # Not "fork", since JAX has threads whose locks may be held at the time of the fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            _wait(pool.map(compute, jobs), len(jobs))
    elif jobs:
        _wait(map(compute, jobs), len(jobs))
    return [track for path in paths for track in _read(path)]


def speaker_means(items: Sequence[Item], tracks: Sequence[Track]) -> dict[str, float]:
    """Mean F0 in Hz of each named speaker's voiced frames; speakers without any are left out."""
    frames: dict[str, list[np.ndarray]] = {}
    for item, track in zip(items, tracks, strict=True):
        if item.speaker and len(track.voiced_f0):
            frames.setdefault(item.speaker, []).append(track.voiced_f0)
    return {name: float(np.concatenate(parts).mean()) for name, parts in frames.items()}


def _compute(job: tuple[list[Audio], Path], resolution: float) -> None:
    """Writes the file of a chunk."""
    audios, path = job
    tracks = [find_f0(load_audio(audio), resolution) for audio in audios]
    arrays = {
        "lengths": np.array([len(track.f0_t) for track in tracks]),
        "f0": np.concatenate([track.f0_t for track in tracks]),
        "voiced": np.concatenate([track.voiced_t for track in tracks]).astype(bool),
    }
    with files.whole_file(path) as unfinished, open(unfinished, "wb") as file:
        np.savez(file, **arrays)


def _is_whole(path: Path) -> bool:
    """Whether the file of a chunk exists and can be read; a damaged file is reported."""
    if not path.exists():
        return False
    try:
        _read(path)
        return True
    except Exception as error:  # the libraries raise many kinds for a damaged file
        if files.find_lack(error):
            raise files.unreadable(path, error, "is damaged.") from error
        print(f"notice: {path} is damaged and computed again", file=sys.stderr)
        return False


def _read(path: Path) -> list[Track]:
    with np.load(path) as arrays:
        ends = np.cumsum(arrays["lengths"])[:-1]
        parts = (np.split(arrays[name], ends) for name in ("f0", "voiced"))
        return [
            Track(f0_t, voiced_t.astype(np.float32)) for f0_t, voiced_t in zip(*parts, strict=True)
        ]


def _digest(items: Sequence[Item], config: F0Config) -> str:
    """A hash of the settings and the audio."""
    digest = hashlib.sha256(f"pyin {config.resolution}".encode())
    for item in items:
        digest.update(fingerprint(item))
    return digest.hexdigest()[:32]


def _wait(jobs: Iterator[None], total: int) -> None:
    for _ in watch(jobs, "F0, chunks of recordings", total):
        pass
