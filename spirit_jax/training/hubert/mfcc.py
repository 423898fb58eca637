"""MFCC features, one vector for each frame of a trunk: targets of the first iteration.

Letters: b batch, t time (samples, then frames), w samples in a window, f frequencies of the DFT,
m mel bands, d coefficients.

MFCC with delta and delta-delta features, as in the first iteration of HuBERT (arXiv 2106.07447,
section 4.1). They are computed every 10 ms and averaged over the frames of the trunk. All formulas
are those of librosa, with `center=False` and delta features with `mode="nearest"`.
"""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import scipy.fft
import scipy.signal

from spirit_jax.audio import SAMPLE_RATE
from spirit_jax.errors import InputError
from spirit_jax.models.frames import (
    apply_mel,
    length_mask,
    masked_standardize,
    power_spectrum,
)
from spirit_jax.models.wav2vec2 import TrunkConfig, frame_lengths

HOP, WINDOW = 160, 400  # samples: 10 and 25 ms
MELS, COEFFICIENTS = 40, 13
DELTA_FRAMES = 9  # window of delta features
POWER_FLOOR, RANGE = 1e-10, 80.0  # lower limit of power, and dB below the maximum


def mfcc(
    wave_bt: jax.Array, lengths_b: jax.Array, trunk: TrunkConfig
) -> tuple[jax.Array, jax.Array]:
    """39 coefficients for each frame of a trunk, normalised over the recording.

    Mean and variance normalisation reduces the differences of speakers and microphones.

    Args:
      wave_bt: float32 samples at 16 kHz; ignored after true lengths.
      lengths_b: int32, true lengths in samples.
      trunk: its stride and receptive field are used.

    Returns:
      values_btd: float32 (b, t, 39), zero after each row's true number of frames.
      frame_lengths_b: int32, true numbers of frames.

    Raises:
      InputError: the stride of the trunk is not a multiple of 10 ms.
    """
    if trunk.stride % HOP:
        raise InputError(f"Frames of {trunk.stride} samples are not a multiple of {HOP} (10 ms).")
    per_frame = trunk.stride // HOP
    frames_b = frame_lengths(lengths_b, trunk.conv_layers)
    frames = max(int(frame_lengths(wave_bt.shape[1], trunk.conv_layers)), 1)
    # The windows of a frame are centred in its receptive field.
    before = (WINDOW + (per_frame - 1) * HOP) // 2 - trunk.receptive_field // 2
    size = (frames * per_frame - 1) * HOP + WINDOW
    wave_bt = jnp.where(length_mask(lengths_b, wave_bt.shape[1]), wave_bt, 0)
    wave_bt = jnp.pad(wave_bt, ((0, 0), (max(before, 0), size)))[:, max(-before, 0) :][:, :size]
    cepstra_btd = cepstra(decibels(wave_bt, frames_b * per_frame))
    parts = [cepstra_btd, *(delta(cepstra_btd, frames_b * per_frame, order) for order in (1, 2))]
    fine_btd = jnp.concatenate(parts, axis=-1)
    values_btd = fine_btd.reshape(fine_btd.shape[0], frames, per_frame, -1).mean(axis=2)
    mask_bt = length_mask(frames_b, frames)
    values_btd = masked_standardize(values_btd, mask_bt, eps=1e-5)
    return jnp.where(mask_bt[..., None], values_btd, 0), frames_b


def decibels(wave_bt: jax.Array, frames_b: jax.Array) -> jax.Array:
    """Log-mel power in dB every 10 ms, (b, t, m), at most 80 dB below a recording's maximum.

    The formula is `librosa.power_to_db(librosa.feature.melspectrogram(..., center=False))`.

    Args:
      wave_bt: float32 samples at 16 kHz.
      frames_b: int32, true numbers of windows.
    """
    bands_mf = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=WINDOW, n_mels=MELS)
    mel_btm = apply_mel(power_spectrum(wave_bt, WINDOW, HOP), bands_mf)
    mel_btm = 10 * jnp.log10(jnp.maximum(mel_btm, POWER_FLOOR))
    mask_bt1 = length_mask(frames_b, mel_btm.shape[1])[..., None]
    maximum_b11 = jnp.where(mask_bt1, mel_btm, -jnp.inf).max(axis=(1, 2), keepdims=True)
    return jnp.maximum(mel_btm, maximum_b11 - RANGE)


def cepstra(decibels_btm: jax.Array) -> jax.Array:
    """MFCC, (b, t, 13): first coefficients of an orthonormal DCT-II over mel bands."""
    transform_md = scipy.fft.dct(np.eye(MELS), type=2, norm="ortho")[:, :COEFFICIENTS]
    transform_md = transform_md.astype(np.float32)
    return jnp.einsum("btm,md->btd", decibels_btm, transform_md, precision="highest")


def delta(x_btd: jax.Array, frames_b: jax.Array, order: int) -> jax.Array:
    """Delta features: derivatives over time by Savitzky-Golay filters of the same order.

    Args:
      x_btd: float32; edge values are repeated before the first and after the last true frame.
      frames_b: int32, true numbers of frames.
      order: of the derivative, 1 or 2.
    """
    half = DELTA_FRAMES // 2
    taps = scipy.signal.savgol_coeffs(DELTA_FRAMES, order, deriv=order, use="dot")
    places_t = jnp.arange(x_btd.shape[1])
    last_b1 = jnp.maximum(frames_b - 1, 0)[:, None]

    def shifted(by: int) -> jax.Array:
        places_bt = jnp.clip(places_t + by, 0, last_b1)
        return jnp.take_along_axis(x_btd, places_bt[..., None], axis=1)

    return sum(float(tap) * shifted(place - half) for place, tap in enumerate(taps))
