"""What a pitch VQ-VAE does to F0, to see and to hear."""

from pathlib import Path

import matplotlib
import numpy as np

from spirit_jax.audio import SAMPLE_RATE, write_wav
from spirit_jax.f0 import FRAME_RATE, HOP

SHOWN = 6  # recordings
HUM = 150.0  # Hz, for the mean that was subtracted


def write(
    folder: Path, before: list[np.ndarray], after: list[np.ndarray], codes: list[np.ndarray]
) -> None:
    """Writes pitch.png, and before.wav and after.wav, in which the same F0 is hummed.

    Args:
      folder: that is there.
      before: features of recordings, (t, 2): F0 in Hz around the mean, and voicing.
      after: what came back of them, (t, 2).
      codes: int32 (t',), what they were in between.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = list(zip(before, after, codes, strict=True))[:SHOWN]
    figure, axes = pyplot.subplots(len(shown), figsize=(10, 2 * len(shown)), squeeze=False)
    for axis, (given_t2, made_t2, codes_t) in zip(axes[:, 0], shown, strict=True):
        for features_t2, label in ((given_t2, "before"), (made_t2, "after")):
            seconds = np.arange(len(features_t2)) / FRAME_RATE
            axis.plot(seconds, _voiced(features_t2), label=label)
        step = len(given_t2) / FRAME_RATE / max(len(codes_t), 1)
        for place, code in enumerate(codes_t):
            axis.annotate(str(code), (place * step, 0), xycoords=("data", "axes fraction"), size=5)
        axis.set_ylabel("F0 - mean, Hz")
    axes[0, 0].legend(loc="upper right")
    axes[-1, 0].set_xlabel("seconds; along the axis, the pitch units")
    figure.tight_layout()
    figure.savefig(folder / "pitch.png", dpi=100)
    pyplot.close(figure)
    for name, tracks in (("before", before), ("after", after)):
        write_wav(folder / f"{name}.wav", np.concatenate([_hum(one) for one in tracks[:SHOWN]]))


def _voiced(features_t2: np.ndarray) -> np.ndarray:
    """F0, NaN where it is not voiced."""
    return np.where(features_t2[:, 1] > 0.5, features_t2[:, 0], np.nan)


def _hum(features_t2: np.ndarray) -> np.ndarray:
    """The F0 as a sound of six harmonics, silent where it is not voiced, and a pause."""
    frames = np.repeat(features_t2, HOP, axis=0)
    phase_t = 2 * np.pi * np.cumsum(np.maximum(frames[:, 0] + HUM, 0)) / SAMPLE_RATE
    sound_t = sum(np.sin(k * phase_t) / k for k in range(1, 7))
    smooth = np.hanning(HOP) / np.hanning(HOP).sum()  # without clicks
    loud_t = np.convolve((frames[:, 1] > 0.5).astype(float), smooth, mode="same")
    return np.concatenate([0.2 * sound_t * loud_t, np.zeros(SAMPLE_RATE // 4)]).astype(np.float32)
