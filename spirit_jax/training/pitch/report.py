"""Plots F0 and its reconstruction by a pitch VQ-VAE, and makes both audible as tones."""

from pathlib import Path

import matplotlib
import numpy as np

from spirit_jax.audio import SAMPLE_RATE, write_wav
from spirit_jax.f0 import FRAME_RATE, HOP

SHOWN = 6  # recordings
MEAN_F0 = 150.0  # Hz, added to the network's input and output, which are F0 minus its mean


def write(
    folder: Path, before: list[np.ndarray], after: list[np.ndarray], codes: list[np.ndarray]
) -> None:
    """Writes a plot, pitch.png, and tones with the F0, before.wav and after.wav.

    Args:
      folder: an existing folder.
      before: the network's input for each recording, (t, 2): F0 in Hz minus its mean, and voicing.
      after: the reconstruction of each, (t, 2).
      codes: the pitch units of each, int32; one unit is for several frames.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = list(zip(before, after, codes, strict=True))[:SHOWN]
    figure, axes = pyplot.subplots(len(shown), figsize=(10, 2 * len(shown)), squeeze=False)
    for axis, (before_t2, after_t2, codes_t) in zip(axes[:, 0], shown, strict=True):
        for features_t2, label in ((before_t2, "before"), (after_t2, "after")):
            seconds = np.arange(len(features_t2)) / FRAME_RATE
            axis.plot(seconds, _voiced(features_t2), label=label)
        step = len(before_t2) / FRAME_RATE / max(len(codes_t), 1)
        for place, code in enumerate(codes_t):
            axis.annotate(str(code), (place * step, 0), xycoords=("data", "axes fraction"), size=5)
        axis.set_ylabel("F0 - mean, Hz")
    axes[0, 0].legend(loc="upper right")
    axes[-1, 0].set_xlabel("seconds; along the axis, the pitch units")
    figure.tight_layout()
    figure.savefig(folder / "pitch.png", dpi=100)
    pyplot.close(figure)
    for name, tracks in (("before", before), ("after", after)):
        write_wav(
            folder / f"{name}.wav",
            np.concatenate([_synthesise(track_t2) for track_t2 in tracks[:SHOWN]]),
        )


def _voiced(features_t2: np.ndarray) -> np.ndarray:
    """F0, with NaN where unvoiced, so that nothing is plotted there."""
    return np.where(features_t2[:, 1] > 0.5, features_t2[:, 0], np.nan)


def _synthesise(features_t2: np.ndarray) -> np.ndarray:
    """Sines at F0 and five of its multiples, silent where unvoiced, followed by a pause."""
    frames = np.repeat(features_t2, HOP, axis=0)
    phase_t = 2 * np.pi * np.cumsum(np.maximum(frames[:, 0] + MEAN_F0, 0)) / SAMPLE_RATE
    sound_t = sum(np.sin(k * phase_t) / k for k in range(1, 7))
    smooth = np.hanning(HOP) / np.hanning(HOP).sum()  # avoids clicks
    loud_t = np.convolve((frames[:, 1] > 0.5).astype(float), smooth, mode="same")
    return np.concatenate([0.2 * sound_t * loud_t, np.zeros(SAMPLE_RATE // 4)]).astype(np.float32)
