"""Style units: a wav2vec 2.0 classifier with one of 100 styles a second.

Letters: b batch, t time (samples, then frames), p pooled width, s seconds (runs of frames), w
frames in a run, l styles.

Follows Spirit LM (arXiv 2402.05755), whose encoder is Hugging Face's
`Wav2Vec2ForSequenceClassification` with the mean taken over every run of 50 frames.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import linen as nn

from spirit_jax import checkpoint
from spirit_jax.models.frames import length_mask
from spirit_jax.models.speech_configs import StyleConfig
from spirit_jax.models.wav2vec2 import Trunk


class StyleEncoder(nn.Module):
    """Waveforms to logits of styles, every second; the unit is the argmax."""

    config: StyleConfig

    @nn.compact
    def __call__(self, wave_bt: jax.Array, lengths_b: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits of every run of `pool_frames` frames; the last run may be shorter.

        Args:
          wave_bt: float32, one channel at `config.sample_rate`; ignored after true lengths.
          lengths_b: int32, true lengths in samples.

        Returns:
          logits_bsl: float32; finite but undefined after each row's true number of units.
          unit_lengths_b: int32, the true numbers of units.
        """
        cfg = self.config
        precision = cfg.trunk.precision
        hidden_btd, frames_b = Trunk(cfg.trunk, name="trunk")(wave_bt, lengths_b)
        hidden_btp = nn.Dense(cfg.projection_size, precision=precision, name="projector")(
            hidden_btd
        )
        mask_bt = length_mask(frames_b, hidden_btp.shape[1])
        rest = -hidden_btp.shape[1] % cfg.pool_frames
        mask_bt = jnp.pad(mask_bt, ((0, 0), (0, rest)))
        hidden_btp = jnp.pad(hidden_btp, ((0, 0), (0, rest), (0, 0)))
        mask_bsw = mask_bt.reshape(mask_bt.shape[0], -1, cfg.pool_frames)
        hidden_bswp = hidden_btp.reshape(*mask_bsw.shape, -1)
        sums_bsp = jnp.where(mask_bsw[..., None], hidden_bswp, 0).sum(axis=2)
        counts_bs = jnp.maximum(mask_bsw.sum(axis=2), 1)
        classifier = nn.Dense(cfg.num_styles, precision=precision, name="classifier")
        return classifier(sums_bsp / counts_bs[..., None]), -(-frames_b // cfg.pool_frames)


def load(folder: str | Path) -> tuple[StyleEncoder, dict]:
    """The model of a network folder and its parameters (numpy arrays)."""
    cfg, params = checkpoint.load_network(folder, StyleConfig)
    return StyleEncoder(cfg), params
