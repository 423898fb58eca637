"""Evaluation of a vocoder on held-out recordings: metrics, spectrograms and audio."""

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
    generated_bs: np.ndarray, wave_bs: np.ndarray, samples_b: np.ndarray, config: MelConfig
) -> float:
    """The mean L1 distance of log-mel spectrograms.

    Args:
      generated_bs, wave_bs: float32, generated and recorded audio.
      samples_b: int32, samples of each row without padding.
      config: of the spectrogram.
    """
    generated_btm, wave_btm = log_mel(generated_bs, config), log_mel(wave_bs, config)
    mask_bt = length_mask(samples_b // config.hop, wave_btm.shape[1])
    return float(jnp.mean(jnp.abs(generated_btm - wave_btm), where=mask_bt[..., None]))


def duration_metrics(log_frames_bt: np.ndarray, batch: Row) -> dict[str, float]:
    """Compares predicted and true durations.

    Args:
      log_frames_bt: float32, predictions, see `hifigan.to_frames`.
      batch: from `data.whole_rows`; runs with `counted_bt` are compared.

    Returns:
      duration_correlation: Pearson correlation of log durations.
      pace: sum of predicted frames over sum of true frames; above 1 is too slow.
    """
    counted_bt = batch["counted_bt"]
    log_frames, true = log_frames_bt[counted_bt], batch["frames_bt"][counted_bt]
    correlation = np.corrcoef(log_frames, np.log1p(true))[0, 1]
    pace = hifigan.to_frames(log_frames).sum() / true.sum()
    return {"duration_correlation": float(correlation), "pace": float(pace)}


def write(folder: Path, names: list[str], waves: list[dict[str, np.ndarray]], mel: MelConfig):
    """Writes NAME.png with log-mel spectrograms and NAME_KIND.wav for each speaker.

    Args:
      folder: an existing folder.
      names: of speakers.
      waves: for each speaker, samples by kind, such as "real".
      mel: config of the spectrogram.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name, sounds in zip(names, waves, strict=True):
        figure, axes = pyplot.subplots(
            len(sounds), figsize=(10, 2.5 * len(sounds)), squeeze=False, sharex=True
        )
        for axis, (kind, wave_s) in zip(axes[:, 0], sounds.items(), strict=True):
            write_wav(folder / f"{name}_{kind}.wav", wave_s)
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
            axis.set_title(f"{name}, {kind}")
        figure.tight_layout()
        figure.savefig(folder / f"{name}.png", dpi=100)
        pyplot.close(figure)
