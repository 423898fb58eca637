"""The styles that a style encoder predicts for recordings, as pictures and sounds."""

from pathlib import Path

import matplotlib
import numpy as np

from spirit_jax.audio import SAMPLE_RATE, write_wav
from spirit_jax.data import f0_cache
from spirit_jax.training.style import features as style_features
from spirit_jax.training.style.labels import NO_LABEL

SHOWN = 4  # recordings
HEARD, SECONDS = 6, 8  # styles, and of each
COARSE = 0.5  # semitones, for a curve to look at


def write(
    folder: Path,
    wave_bt: np.ndarray,
    lengths_b: np.ndarray,
    labels_bs: np.ndarray,
    units_bs: np.ndarray,
    names: list[str],
) -> None:
    """Writes style.png, and for the commonest styles style-NAME.wav: seconds that were given it.

    Args:
      folder: that is there.
      wave_bt, lengths_b, labels_bs: recordings (segments of them) and the styles they should have.
      units_bs: the styles that they were given; -1 after the end.
      names: of the styles.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = min(SHOWN, int((lengths_b > 0).sum()))
    figure, axes = pyplot.subplots(rows, 3, figsize=(15, 2.5 * rows), squeeze=False)
    unit_samples = wave_bt.shape[1] // labels_bs.shape[1]
    for row in range(rows):
        wave_t = wave_bt[row, : lengths_b[row]]
        track = f0_cache.find_f0(wave_t, COARSE)
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
    figure.supxlabel("seconds; in brackets the style that it should be, where it is another")
    figure.tight_layout()
    figure.savefig(folder / "style.png", dpi=90)
    pyplot.close(figure)

    for old in folder.glob("style-*.wav"):
        old.unlink()
    counts_l = np.bincount(units_bs[units_bs >= 0], minlength=len(names))
    for unit in np.argsort(-counts_l, kind="stable")[:HEARD]:
        places = np.argwhere(units_bs == unit)[:SECONDS]
        parts = [wave_bt[row, k * unit_samples : (k + 1) * unit_samples] for row, k in places]
        if parts:
            write_wav(folder / f"style-{unit:03d}.wav", np.concatenate(parts))
    lines = [f"{unit}\t{counts_l[unit]}\t{name}\n" for unit, name in enumerate(names)]
    (folder / "styles.tsv").write_text("style\tseconds\twhat it is\n" + "".join(lines))
