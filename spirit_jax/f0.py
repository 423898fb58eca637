"""F0 and voicing of an utterance at 200 frames a second, for pitch units.

There are two methods: "fcpe", a network (`models/fcpe.py`) followed by `postprocess`, and librosa's
"pyin".
"""

import librosa
import numpy as np

from spirit_jax.audio import SAMPLE_RATE

HOP = 80  # samples from one frame to the next
FRAME_RATE = SAMPLE_RATE // HOP
LOWEST, HIGHEST = 50.0, 1100.0  # Hz
PYIN_WINDOW = 1024  # samples; three periods of the lowest F0
PYIN_RESOLUTION = 0.25  # semitones; run time grows with its inverse square


def postprocess(f0_frames: np.ndarray, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """F0 and voicing of an utterance from a network's output, as in torchfcpe's `infer`.

    Frames below 50 Hz are unvoiced and are interpolated linearly; F0 is limited to 1100 Hz. Frames
    are resampled to samples // 80 + 1 (nearest neighbour).

    Args:
      f0_frames: float (t,), F0 in Hz, evenly spaced over the utterance.
      samples: length of the utterance at 16 kHz.

    Returns:
      f0_t: float32 in Hz; all 0 where no frame is voiced.
      voiced_t: float32, 1 on voiced frames, else 0.
    """
    frames = samples // HOP + 1
    voiced = np.asarray(f0_frames) >= LOWEST
    if not voiced.any():
        return np.zeros(frames, np.float32), np.zeros(frames, np.float32)
    f0 = np.minimum(_interpolate(f0_frames, voiced), np.float32(HIGHEST))
    # In float32, as torch computes the nearest frame.
    source = np.floor(np.arange(frames, dtype=np.float32) * np.float32(len(f0) / frames))
    source = np.minimum(source.astype(int), len(f0) - 1)
    return f0[source], voiced[source].astype(np.float32)


def pyin_f0(
    wave_t: np.ndarray, resolution: float = PYIN_RESOLUTION
) -> tuple[np.ndarray, np.ndarray]:
    """F0 and voicing of an utterance by probabilistic YIN (Mauch and Dixon, 2014).

    Args:
      wave_t: float32 samples at 16 kHz.
      resolution: of F0, in semitones.

    Returns:
      f0_t, voiced_t: see `postprocess`; samples // 80 + 1 frames.
    """
    if not np.any(wave_t):
        silent = np.zeros(len(wave_t) // HOP + 1, np.float32)
        return silent, silent.copy()
    f0, voiced, _ = librosa.pyin(
        wave_t,
        fmin=LOWEST,
        fmax=HIGHEST,
        sr=SAMPLE_RATE,
        frame_length=PYIN_WINDOW,
        hop_length=HOP,
        resolution=resolution,
        fill_na=0.0,
    )
    return _interpolate(f0, voiced), voiced.astype(np.float32)


def _interpolate(f0_t: np.ndarray, voiced_t: np.ndarray) -> np.ndarray:
    """Interpolates unvoiced frames linearly, float32; all 0 if no frame is voiced."""
    if not voiced_t.any():
        return np.zeros(len(f0_t), np.float32)
    places = np.arange(len(f0_t))
    return np.interp(places, places[voiced_t], f0_t[voiced_t]).astype(np.float32)
