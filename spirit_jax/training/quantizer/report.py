"""Plots the units of original and augmented recordings, and writes their audio."""

from pathlib import Path

import matplotlib
import numpy as np

from spirit_jax.audio import SAMPLE_RATE, write_wav
from spirit_jax.data.speech import Row
from spirit_jax.evaluation.unit_distance import unit_edit_distance
from spirit_jax.models.wav2vec2 import TrunkConfig
from spirit_jax.training.hubert.report import draw_spectrogram


def write(
    folder: Path,
    batches: dict[str, list[Row]],
    before: dict[str, list[np.ndarray]],
    now: dict[str, list[np.ndarray]],
    trunk: TrunkConfig,
) -> None:
    """Writes units.png, a recording with each augmentation and its units, and KIND.wav of each.

    Args:
      folder: an existing folder.
      batches: by kind of augmentation ("" for none), batches of audio.
      before, now: by kind, the units of each row by the teacher and by the trained network.
      trunk: its stride and receptive field are used.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(batches), figsize=(24, 3.2 * len(batches)), squeeze=False)
    for (kind, rows), axis in zip(batches.items(), axes[:, 0], strict=True):
        wave_t = rows[0]["wave_bt"][0, : rows[0]["lengths_b"][0]]
        draw_spectrogram(axis, wave_t)
        for units, height in ((before, 7500), (now, 2500)):
            units_t = units[kind][0]
            for place in np.flatnonzero(np.diff(units_t, prepend=-1)):
                middle = (place * trunk.stride + trunk.receptive_field / 2) / SAMPLE_RATE
                axis.text(middle, height, str(units_t[place]), size=6, rotation=90, va="top")
        edits = [unit_edit_distance(units[""][0], units[kind][0]) for units in (before, now)]
        axis.set_title(
            f"{kind or 'unchanged'}: units before (above) and now, where they change; unit edit "
            f"distance to the original {edits[0]:.0f} % and {edits[1]:.0f} %"
        )
        write_wav(folder / f"{kind or 'unchanged'}.wav", wave_t)
    figure.tight_layout()
    figure.savefig(folder / "units.png", dpi=80)
    pyplot.close(figure)
