"""How good a vocoder is on held-out recordings: numbers, pictures and sounds to judge by."""

from pathlib import Path

import jax.numpy as jnp
import librosa
import matplotlib
import numpy as np

from spirit_jax.audio import write_wav
from spirit_jax.data.speech import Row
from spirit_jax.models import hifigan
from spirit_jax.models.frames import MelConfig, length_mask, log_mel


def mel_distance(
    made_bs: np.ndarray, wave_bs: np.ndarray, samples_b: np.ndarray, config: MelConfig
) -> float:
    """The mean L1 of log-mel spectrograms over the frames of each row's true samples."""
    made_btm, wave_btm = log_mel(made_bs, config), log_mel(wave_bs, config)
    mask_bt = length_mask(samples_b // config.hop, wave_btm.shape[1])
    return float(jnp.mean(jnp.abs(made_btm - wave_btm), where=mask_bt[..., None]))


def duration_metrics(log_frames_bt: np.ndarray, batch: Row) -> dict[str, float]:
    """How predicted durations go with true ones, over the runs of `batch` that count.

    Returns:
      duration_correlation: of the logarithms that are learnt.
      pace: predicted frames in all over true ones; above 1 is too slow.
    """
    counted_bt = batch["counted_bt"]
    log_frames, true = log_frames_bt[counted_bt], batch["frames_bt"][counted_bt]
    together = np.corrcoef(log_frames, np.log1p(true))[0, 1]
    pace = hifigan.to_frames(log_frames).sum() / true.sum()
    return {"duration_correlation": float(together), "pace": float(pace)}


def write(folder: Path, names: list[str], waves: list[dict[str, np.ndarray]], mel: MelConfig):
    """Writes NAME.png with the log-mel spectrograms of waves, and each wave as NAME_WHAT.wav.

    Args:
      folder: that is there.
      names: of speakers.
      waves: of each speaker samples by what they are, such as "real".
      mel: the spectrogram.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name, sounds in zip(names, waves, strict=True):
        figure, axes = pyplot.subplots(
            len(sounds), figsize=(10, 2.5 * len(sounds)), squeeze=False, sharex=True
        )
        for axis, (what, wave_s) in zip(axes[:, 0], sounds.items(), strict=True):
            write_wav(folder / f"{name}_{what}.wav", wave_s)
            librosa.display.specshow(
                np.asarray(log_mel(wave_s[None], mel))[0].T,
                sr=mel.sample_rate,
                hop_length=mel.hop,
                fmin=mel.f_min,
                fmax=mel.f_max,
                x_axis="time",
                y_axis="mel",
                vmin=np.log(mel.floor),
                vmax=2.0,
                ax=axis,
            )
            axis.set_title(f"{name}, {what}")
        figure.tight_layout()
        figure.savefig(folder / f"{name}.png", dpi=100)
        pyplot.close(figure)
