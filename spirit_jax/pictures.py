"""Pictures of speech: spectrogram, F0 and units."""

import dataclasses
import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from spirit_jax import f0
from spirit_jax.audio import SAMPLE_RATE

PICTURE_SECONDS = 12  # longer spectrograms would be too dense
UNITS_HEIGHT = 0.25  # inches
COLORS = "tab20"  # of units


@dataclasses.dataclass(frozen=True)
class Panel:
    """A spectrogram of a figure.

    Attributes:
      title: above the spectrogram.
      wave: float32 (t,) samples at 16 kHz.
      units: (start, length, unit) of each phonetic unit, in seconds; drawn below the spectrogram.
    """

    title: str
    wave: np.ndarray
    units: tuple[tuple[float, float, int], ...] = ()


def draw(path: str | Path | io.BytesIO, panels: list[Panel], height: float = 1.9) -> None:
    """Draws spectrograms with F0, one below the other with the same axes.

    May be called from several threads.

    Args:
      path: PNG file to write.
      panels: what to draw; cut after `PICTURE_SECONDS`.
      height: of each panel, in inches; the width is 11.
    """
    heights = []
    for panel in panels:
        heights += [height - UNITS_HEIGHT, UNITS_HEIGHT] if panel.units else [height]
    figure = Figure(figsize=(11, sum(heights)), layout="constrained")
    axes = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    remaining = iter(axes)
    for panel in panels:
        _draw_spectrogram(next(remaining), panel)
        if panel.units:
            _draw_units(next(remaining), panel)
    axes[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=100, format="png")


def _draw_spectrogram(axis, panel: Panel) -> None:
    wave = panel.wave[: PICTURE_SECONDS * SAMPLE_RATE]
    # Noise, since the log of silence is infinite.
    noise = 1e-6 * np.random.default_rng(0).standard_normal(len(wave))
    axis.specgram(wave + noise, NFFT=512, noverlap=384, Fs=SAMPLE_RATE, vmin=-130, vmax=-30)
    axis.set(ylabel="Hz", ylim=(0, 6000))
    axis.set_title(panel.title, fontsize=9, loc="left")
    f0_t, voiced_t = f0.pyin_f0(wave)
    times = np.arange(len(f0_t)) / f0.FRAME_RATE
    pitch = axis.twinx()
    pitch.plot(times, np.where(voiced_t > 0, f0_t, np.nan), "w.", markersize=2)
    pitch.set(ylabel="F0, Hz", ylim=(0, 500))


def _draw_units(axis, panel: Panel) -> None:
    """A strip with a colour for each unit, and its number where there is room."""
    import matplotlib

    colors = matplotlib.colormaps[COLORS]
    for start, length, unit in panel.units:
        if start >= PICTURE_SECONDS:
            break
        axis.broken_barh([(start, length)], (0, 1), color=colors(unit * 7 % colors.N))
        if length >= 0.015 * len(str(unit)) * min(len(panel.wave) / SAMPLE_RATE, PICTURE_SECONDS):
            axis.text(start + length / 2, 0.45, unit, ha="center", va="center", fontsize=7)
    axis.margins(x=0)
    axis.set(ylim=(0, 1), yticks=[])
    axis.set_ylabel("units", fontsize=8)
