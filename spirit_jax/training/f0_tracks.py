"""The F0 of a corpus, computed by several processes and cached on disk."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spirit_jax import f0
from spirit_jax.audio import load_audio
from spirit_jax.data.configs import F0Config
from spirit_jax.data.manifest import Item
from spirit_jax.training import recording_cache


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
    rows = recording_cache.read(
        config.folder or folder,
        f"F0 by pyin {config.resolution}",
        items,
        functools.partial(_compute, resolution=config.resolution),
        "F0",
        workers=config.workers or os.cpu_count() or 1,
    )
    return [Track(row["f0"], row["voiced"].astype(np.float32)) for row in rows]


def speaker_means(items: Sequence[Item], tracks: Sequence[Track]) -> dict[str, float]:
    """Mean F0 in Hz of each named speaker's voiced frames; speakers without any are left out."""
    frames: dict[str, list[np.ndarray]] = {}
    for item, track in zip(items, tracks, strict=True):
        if item.speaker and len(track.voiced_f0):
            frames.setdefault(item.speaker, []).append(track.voiced_f0)
    return {name: float(np.concatenate(parts).mean()) for name, parts in frames.items()}


def _compute(items: Sequence[Item], resolution: float) -> list[recording_cache.Arrays]:
    tracks = [find_f0(load_audio(item.audio), resolution) for item in items]
    return [{"f0": track.f0_t, "voiced": track.voiced_t.astype(bool)} for track in tracks]
