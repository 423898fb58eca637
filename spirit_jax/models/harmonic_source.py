"""The harmonic source of a vocoder: an F0 predictor, and sines at F0 and its multiples.

Letters: b batch, t frames (one for each unit), k parts of a frame, s samples, h harmonics, c
channels, e channels of the source.

A generator that gets units only must learn to produce periodic waveforms, which takes long. As in
neural source-filter models (arXiv 1904.12088), harmonics of F0 are an additional input. In
inference F0 is predicted from the units.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from spirit_jax.audio import SAMPLE_RATE
from spirit_jax.models.conv import Conv1d
from spirit_jax.models.frames import length_mask
from spirit_jax.models.vocoder_configs import SOURCE_PARTS as PARTS

KERNELS = 7, 5  # of the predictor's convs
REACH = sum(kernel // 2 for kernel in KERNELS)  # frames on each side that a prediction depends on
AMPLITUDE = 0.1  # of a sine
MEAN_F0 = 150.0  # Hz, initial prediction
MAX_F0 = 1000.0  # Hz, limit of predictions


class F0Predictor(nn.Module):
    """Predicts log F0 (in Hz) and voicing logits of every part of a frame."""

    hidden: int
    precision: str

    @nn.compact
    def __call__(self, x_btc: jax.Array, lengths_b: jax.Array) -> tuple[jax.Array, jax.Array]:
        mask_bt1 = length_mask(lengths_b, x_btc.shape[1])[..., None]
        for i, kernel in enumerate(KERNELS):
            conv = Conv1d(self.hidden, kernel, 1, self.precision, name=f"conv{i}")
            x_btc = jax.nn.relu(conv(x_btc * mask_bt1))
        output_bte = nn.Dense(2 * PARTS, precision=self.precision, name="out")(x_btc)
        log_f0_btk, score_btk = jnp.split(output_bte, 2, axis=-1)
        return log_f0_btk + np.log(MEAN_F0), score_btk


def excite(f0_tk: np.ndarray, hop: int, cycles: float = 0.0) -> np.ndarray:
    """The input of `sines`: F0 of each frame, and the phase at its start.

    The phase is continuous over frames, so a recording can be generated in windows. Rounding of F0
    to float32 changes a sine by about a ten-thousandth of its amplitude after ten seconds.

    Args:
      f0_tk: F0 in Hz, 0 where unvoiced.
      hop: samples of a frame.
      cycles: of all frames before the first; see `count_cycles`.

    Returns:
      float32 (t, PARTS + 1): F0 in Hz, then the phase in cycles from 0 to 1.
    """
    f0_tk = f0_tk.reshape(-1, PARTS).astype(np.float64)
    cycles_t = count_cycles(f0_tk, hop)
    phase_t = (cycles + np.cumsum(cycles_t) - cycles_t) % 1
    return np.concatenate([f0_tk, phase_t[:, None]], axis=1).astype(np.float32)


def count_cycles(f0_tk: np.ndarray, hop: int) -> np.ndarray:
    """Cycles of F0 in each frame, float64 (t,); arguments as those of `excite`."""
    return f0_tk.astype(np.float64).sum(axis=1) * (hop / PARTS / SAMPLE_RATE)


def to_f0(predicted_te: np.ndarray) -> np.ndarray:
    """F0 in Hz, (..., t, PARTS), 0 where unvoiced, from the output of `HifiGan.predict_f0`."""
    log_f0_tk, score_tk = np.split(predicted_te, 2, axis=-1)
    return np.where(score_tk > 0, np.exp(np.minimum(log_f0_tk, np.log(MAX_F0))), 0)


def sines(source_bte: jax.Array, hop: int, harmonics: int) -> jax.Array:
    """Sines at F0 and its multiples; 0 where unvoiced and above the Nyquist frequency.

    Args:
      source_bte: from `excite`.
      hop: samples of a frame.
      harmonics: number of sines, including that of F0.

    Returns:
      float32 (b, t * hop, h).
    """
    f0_bts = jnp.repeat(source_bte[..., :PARTS], hop // PARTS, axis=-1)
    cycles_bts = source_bte[..., PARTS:] + jnp.cumsum(f0_bts / SAMPLE_RATE, axis=-1)
    multiples_h = jnp.arange(1, harmonics + 1)
    f0_bsh = f0_bts.reshape(len(f0_bts), -1, 1) * multiples_h
    cycles_bsh = cycles_bts.reshape(len(f0_bts), -1, 1) * multiples_h
    audible_bsh = (f0_bsh > 0) & (f0_bsh < SAMPLE_RATE / 2)
    return AMPLITUDE * jnp.where(audible_bsh, jnp.sin(2 * jnp.pi * (cycles_bsh % 1)), 0)


def f0_loss(predicted_bte: jax.Array, source_bte: jax.Array, mask_bt: jax.Array) -> jax.Array:
    """The loss of the F0 predictor.

    Args:
      predicted_bte: output of `HifiGan.predict_f0`.
      source_bte: from `excite`, of the true F0.
      mask_bt: bool, False for padding.

    Returns:
      The mean squared error of log F0 over voiced parts plus the mean cross-entropy of voicing.
    """
    log_f0_btk, score_btk = jnp.split(predicted_bte, 2, axis=-1)
    f0_btk = source_bte[..., :PARTS]
    voiced_btk = (f0_btk > 0) & mask_bt[..., None]
    errors_btk = jnp.square(log_f0_btk - jnp.log(jnp.maximum(f0_btk, 1.0)))
    f0_error = jnp.where(voiced_btk, errors_btk, 0).sum() / jnp.maximum(voiced_btk.sum(), 1)
    entropy_btk = optax.sigmoid_binary_cross_entropy(score_btk, voiced_btk.astype(jnp.float32))
    entropy = jnp.where(mask_bt[..., None], entropy_btk, 0).sum()
    return f0_error + entropy / jnp.maximum(PARTS * mask_bt.sum(), 1)
