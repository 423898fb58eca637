"""F0 of a whole corpus: computed once, by several processes, and kept on disk.

Recordings are taken in chunks, each of which is one file that is whole or absent, named by what it
was made of. So a stopped run goes on where it was, changed recordings are computed anew, and runs
that name the same folder share the chunks that have the same recordings in the same order.
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

CHUNK = 32  # recordings a file


@dataclasses.dataclass(frozen=True)
class Track:
    """F0 of one recording.

    Attributes:
      f0_t: float32 in Hz, 200 frames a second, interpolated over unvoiced frames; 0 where no
        frame is voiced.
      voiced_t: float32, 1 on voiced frames, else 0.
    """

    f0_t: np.ndarray
    voiced_t: np.ndarray

    @property
    def voiced_f0(self) -> np.ndarray:
        """F0 of the voiced frames alone."""
        return self.f0_t[self.voiced_t > 0]

    @property
    def mean(self) -> float:
        """F0 in Hz over voiced frames, 0 without any."""
        return float(self.voiced_f0.mean()) if len(self.voiced_f0) else 0.0


def find_f0(wave_t: np.ndarray, resolution: float = f0.PYIN_RESOLUTION) -> Track:
    """F0 of samples at 16 kHz, by `f0.pyin_f0`."""
    return Track(*f0.pyin_f0(wave_t, resolution))


def read_tracks(items: Sequence[Item], config: F0Config, folder: str | Path) -> list[Track]:
    """The F0 of recordings, in order; what is not in `folder` yet is computed.

    Args:
      items: with audio.
      config: how F0 is found; its own `folder`, where there is one, is taken instead.
      folder: of the files.

    Raises:
      InputError: a recording cannot be read.
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
        # Not forked: JAX has threads, which a fork would leave with their locks held.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            _wait(pool.map(compute, jobs), len(jobs))
    elif jobs:
        _wait(map(compute, jobs), len(jobs))
    return [one for path in paths for one in _read(path)]


def speaker_means(items: Sequence[Item], tracks: Sequence[Track]) -> dict[str, float]:
    """Mean F0 in Hz over the voiced frames of each speaker who has a name, and any."""
    frames: dict[str, list[np.ndarray]] = {}
    for item, one in zip(items, tracks, strict=True):
        if item.speaker and len(one.voiced_f0):
            frames.setdefault(item.speaker, []).append(one.voiced_f0)
    return {name: float(np.concatenate(parts).mean()) for name, parts in frames.items()}


def _compute(job: tuple[list[Audio], Path], resolution: float) -> None:
    """Writes the file of a chunk."""
    audios, path = job
    tracks = [find_f0(load_audio(audio), resolution) for audio in audios]
    arrays = {
        "lengths": np.array([len(one.f0_t) for one in tracks]),
        "f0": np.concatenate([one.f0_t for one in tracks]),
        "voiced": np.concatenate([one.voiced_t for one in tracks]).astype(bool),
    }
    with files.whole_file(path) as unfinished, open(unfinished, "wb") as file:
        np.savez(file, **arrays)


def _is_whole(path: Path) -> bool:
    """Whether the file of a chunk is there and can be read; a damaged one is computed again."""
    if not path.exists():
        return False
    try:
        _read(path)
        return True
    except Exception as error:  # whatever a damaged file makes the libraries raise
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
    """A name for what F0 is made of: the settings and the audio."""
    digest = hashlib.sha256(f"pyin {config.resolution}".encode())
    for item in items:
        digest.update(fingerprint(item))
    return digest.hexdigest()[:32]


def _wait(jobs: Iterator[None], total: int) -> None:
    for _ in watch(jobs, "F0, chunks of recordings", total):
        pass
