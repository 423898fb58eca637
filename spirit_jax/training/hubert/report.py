"""Plots spectrograms with target clusters and predictions."""

from pathlib import Path

import librosa
import matplotlib
import numpy as np

from spirit_jax.audio import SAMPLE_RATE, write_wav
from spirit_jax.data.speech import Row
from spirit_jax.models.wav2vec2 import TrunkConfig

SHOWN = 4  # recordings


def write(folder: Path, batch: Row, predicted_bt: np.ndarray, trunk: TrunkConfig) -> None:
    """Writes units.png, spectrograms with labels and predictions, and units.wav, the audio.

    Args:
      folder: an existing folder.
      batch: see `recipe.make_row`. Masked frames are shaded; their predictions are green if correct
        and red otherwise.
      predicted_bt: int, the predicted cluster of each frame.
      trunk: its stride and receptive field are used.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = min(SHOWN, len(predicted_bt))
    figure, axes = pyplot.subplots(shown, figsize=(24, 3.2 * shown), squeeze=False)
    step = trunk.stride / SAMPLE_RATE
    for row, axis in enumerate(axes[:, 0]):
        wave_t = batch["wave_bt"][row, : batch["lengths_b"][row]]
        draw_spectrogram(axis, wave_t)
        for place in range((len(wave_t) - trunk.receptive_field) // trunk.stride + 1):
            label, predicted = batch["labels_bt"][row, place], predicted_bt[row, place]
            middle = (place * trunk.stride + trunk.receptive_field / 2) / SAMPLE_RATE
            axis.text(middle, 7500, str(label), size=6, rotation=90, ha="center", va="top")
            if batch["mask_bt"][row, place]:
                colour = "green" if predicted == label else "red"
                axis.axvspan(middle - step / 2, middle + step / 2, color="white", alpha=0.4, lw=0)
                place_of = {"size": 6, "rotation": 90, "ha": "center", "va": "bottom"}
                axis.text(middle, 60, str(predicted), color=colour, **place_of)
    axes[0, 0].set_title("top: target clusters; bottom: predictions for masked frames")
    figure.tight_layout()
    figure.savefig(folder / "units.png", dpi=80)
    pyplot.close(figure)
    write_wav(folder / "units.wav", batch["wave_bt"][:shown].reshape(-1))


def draw_spectrogram(axis, wave_t: np.ndarray) -> None:
    """Draws a mel spectrogram in dB on a matplotlib axis."""
    power = librosa.feature.melspectrogram(y=wave_t, sr=SAMPLE_RATE, n_fft=512, hop_length=160)
    decibels = librosa.power_to_db(power, ref=np.max)
    librosa.display.specshow(
        decibels, sr=SAMPLE_RATE, hop_length=160, x_axis="time", y_axis="mel", ax=axis
    )
