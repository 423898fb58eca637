"""Plots of predicted styles, and audio of each style."""

from pathlib import Path

import matplotlib
import numpy as np

from spirit_jax.audio import SAMPLE_RATE, write_wav
from spirit_jax.training import f0_tracks
from spirit_jax.training.style import features as style_features
from spirit_jax.training.style.labels import NO_LABEL

SHOWN = 4  # recordings
AUDIO_STYLES, SECONDS = 6, 8  # styles with audio, and seconds of each
RESOLUTION = 0.5  # semitones, of the plotted F0


def write(
    folder: Path,
    wave_bt: np.ndarray,
    lengths_b: np.ndarray,
    labels_bs: np.ndarray,
    units_bs: np.ndarray,
    names: list[str],
) -> None:
    """Writes style.png, styles.tsv, and style-ID.wav with audio of the most frequent styles.

    Args:
      folder: an existing folder.
      wave_bt: float32, segments of recordings.
      lengths_b: int32, samples without padding.
      labels_bs: int32, style labels.
      units_bs: int32, predicted styles; -1 for padding.
      names: description of each style.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = min(SHOWN, int((lengths_b > 0).sum()))
    figure, axes = pyplot.subplots(rows, 3, figsize=(15, 2.5 * rows), squeeze=False)
    unit_samples = wave_bt.shape[1] // labels_bs.shape[1]
    for row in range(rows):
        wave_t = wave_bt[row, : lengths_b[row]]
        track = f0_tracks.find_f0(wave_t, RESOLUTION)
        voiced_f0 = np.where(track.voiced_t > 0, track.f0_t, np.nan)
        curves = ("waveform", wave_t), ("energy, dB", style_features.loudness(wave_t)[1])
        for axis, (name, values_t) in zip(axes[row], (*curves, ("F0, Hz", voiced_f0)), strict=True):
            axis.plot(np.linspace(0, len(wave_t) / SAMPLE_RATE, len(values_t)), values_t, lw=0.7)
            axis.set_ylabel(name)
            for place, unit in enumerate(units_bs[row][units_bs[row] >= 0]):
                start = place * unit_samples / SAMPLE_RATE
                end = min(start + unit_samples / SAMPLE_RATE, len(wave_t) / SAMPLE_RATE)
                axis.axvspan(start, end, color=pyplot.cm.tab20(unit % 20), alpha=0.3)
                label = labels_bs[row, place]
                text = f"St{unit}" if label in (unit, NO_LABEL) else f"St{unit} ({label})"
                axis.annotate(text, (start, 1.02), xycoords=("data", "axes fraction"), size=7)
    figure.supxlabel("seconds; predicted styles, with the label in brackets if it is different")
    figure.tight_layout()
    figure.savefig(folder / "style.png", dpi=90)
    pyplot.close(figure)

    for old in folder.glob("style-*.wav"):
        old.unlink()
    counts_l = np.bincount(units_bs[units_bs >= 0], minlength=len(names))
    for unit in np.argsort(-counts_l, kind="stable")[:AUDIO_STYLES]:
        places = np.argwhere(units_bs == unit)[:SECONDS]
        parts = [wave_bt[row, k * unit_samples : (k + 1) * unit_samples] for row, k in places]
        if parts:
            write_wav(folder / f"style-{unit:03d}.wav", np.concatenate(parts))
    lines = [f"{unit}\t{counts_l[unit]}\t{name}\n" for unit, name in enumerate(names)]
    (folder / "styles.tsv").write_text("style\tseconds\tdescription\n" + "".join(lines))
