"""The harmonic source of a vocoder: F0 that is told from units, and sines that follow it.

Letters: b batch, t frames of one unit, k parts of a frame, s samples, h harmonics, c channels.

Convs that are told units alone have to invent the periods of a voice, which takes them long to
learn. As in neural source-filter models (arXiv 1904.12088), sines at F0 and its multiples are an
input besides. F0 itself is predicted from the units, so these are still all that is asked for.
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
REACH = sum(kernel // 2 for kernel in KERNELS)  # frames on each side that have a say
AMPLITUDE = 0.1  # of a sine
HIGHEST = 1000.0  # Hz; a predictor gone astray stays a voice


class F0Predictor(nn.Module):
    """Log F0 in Hz in every part of a frame, and a score that is above 0 where it is voiced."""

    hidden: int
    precision: str

    @nn.compact
    def __call__(self, x_btc: jax.Array, lengths_b: jax.Array) -> tuple[jax.Array, jax.Array]:
        mask_bt1 = length_mask(lengths_b, x_btc.shape[1])[..., None]
        for i, kernel in enumerate(KERNELS):
            conv = Conv1d(self.hidden, kernel, 1, self.precision, name=f"conv{i}")
            x_btc = jax.nn.relu(conv(x_btc * mask_bt1))
        made_bte = nn.Dense(2 * PARTS, precision=self.precision, name="out")(x_btc)
        log_f0_btk, score_btk = jnp.split(made_bte, 2, axis=-1)
        return log_f0_btk + np.log(150.0), score_btk  # a voice's, to begin with


def excite(f0_tk: np.ndarray, hop: int) -> np.ndarray:
    """What `sines` needs of each frame: F0 of its parts, and the phase that it begins with.

    The phase goes on from frame to frame, whichever window of them a network is given. It adds up
    the rounding of F0 as well: in ten seconds, to a ten-thousandth of a sine's amplitude or so.

    Args:
      f0_tk: Hz, 0 where unvoiced.
      hop: samples of a frame.

    Returns:
      float32 (t, PARTS + 1), the phase in cycles from 0 to 1.
    """
    f0_tk = f0_tk.reshape(-1, PARTS).astype(np.float64)
    cycles_t = f0_tk.sum(axis=1) * (hop / PARTS / SAMPLE_RATE)
    phase_t = (np.cumsum(cycles_t) - cycles_t) % 1
    return np.concatenate([f0_tk, phase_t[:, None]], axis=1).astype(np.float32)


def to_f0(told_te: np.ndarray) -> np.ndarray:
    """Hz (..., t, PARTS) for `excite` of what `HifiGan.predict_f0` says."""
    log_f0_tk, score_tk = np.split(told_te, 2, axis=-1)
    return np.where(score_tk > 0, np.exp(np.minimum(log_f0_tk, np.log(HIGHEST))), 0)


def sines(source_bte: jax.Array, hop: int, harmonics: int) -> jax.Array:
    """float32 (b, t * hop, h): sines at F0 and its multiples; none where unvoiced, or too high.

    Args:
      source_bte: of `excite`.
      hop: samples of a frame.
      harmonics: how many, with F0 itself.
    """
    f0_bts = jnp.repeat(source_bte[..., :PARTS], hop // PARTS, axis=-1)
    cycles_bts = source_bte[..., PARTS:] + jnp.cumsum(f0_bts / SAMPLE_RATE, axis=-1)
    multiples_h = jnp.arange(1, harmonics + 1)
    f0_bsh = f0_bts.reshape(len(f0_bts), -1, 1) * multiples_h
    cycles_bsh = cycles_bts.reshape(len(f0_bts), -1, 1) * multiples_h
    heard_bsh = (f0_bsh > 0) & (f0_bsh < SAMPLE_RATE / 2)
    return AMPLITUDE * jnp.where(heard_bsh, jnp.sin(2 * jnp.pi * (cycles_bsh % 1)), 0)


def f0_loss(told_bte: jax.Array, source_bte: jax.Array, mask_bt: jax.Array) -> jax.Array:
    """How far what `HifiGan.predict_f0` says is from the truth.

    The squared error of log F0 over voiced parts, and the cross-entropy of voicing over all.

    Args:
      source_bte: of `excite`, of the true F0.
      mask_bt: which frames are true.
    """
    log_f0_btk, score_btk = jnp.split(told_bte, 2, axis=-1)
    f0_btk = source_bte[..., :PARTS]
    voiced_btk = (f0_btk > 0) & mask_bt[..., None]
    errors_btk = jnp.square(log_f0_btk - jnp.log(jnp.maximum(f0_btk, 1.0)))
    off = jnp.where(voiced_btk, errors_btk, 0).sum() / jnp.maximum(voiced_btk.sum(), 1)
    unsure_btk = optax.sigmoid_binary_cross_entropy(score_btk, voiced_btk.astype(jnp.float32))
    unsure = jnp.where(mask_bt[..., None], unsure_btk, 0).sum()
    return off + unsure / jnp.maximum(PARTS * mask_bt.sum(), 1)
