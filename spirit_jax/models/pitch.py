"""Pitch units: a VQ-VAE over F0, 12.5 units a second.

Letters: b batch, t time (frames), c channels, d code width, v codes.

A VQ-VAE as in Jukebox (arXiv 2005.00341), with one level, as used for F0 in arXiv 2104.00355. Each
frame is [F0, voiced]. A batch is padded and comes with true lengths. Frames after a row's true
length are zeroed before every conv, so a row's result does not depend on its padding.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from spirit_jax import checkpoint
from spirit_jax.models.frames import length_mask
from spirit_jax.models.speech_configs import PitchConfig, StackConfig


def normalise_f0(
    f0_t: np.ndarray, voiced_t: np.ndarray, config: PitchConfig, mean: float | None = None
) -> np.ndarray:
    """The network's input for one utterance.

    Args:
      f0_t: F0 in Hz, interpolated over unvoiced frames; 0 if no frame is voiced.
      voiced_t: 1 on voiced frames, else 0.
      config: `features` and `speaker_norm` are used.
      mean: mean F0 of the speaker in Hz; by default the mean over the utterance's voiced frames, or
        0 without any. It is subtracted where F0 is not 0.

    Returns:
      float32 (t, 2).
    """
    f0_t, voiced_t = np.asarray(f0_t, np.float32), np.asarray(voiced_t, np.float32)
    voiced = voiced_t > 0
    if mean is None:
        mean = f0_t[voiced].mean() if voiced.any() else 0.0
    if "f0_interp" not in config.features:
        f0_t = np.where(voiced, f0_t, 0)
    if config.speaker_norm or config.features.startswith("norm_"):
        f0_t = np.where(f0_t != 0, f0_t - np.float32(mean), 0)
    return np.stack([f0_t, voiced_t], axis=-1).astype(np.float32)


class ResidualBlocks(nn.Module):
    """Residual blocks x + conv1(relu(conv3(relu(x)))); conv3 is dilated."""

    config: StackConfig
    precision: str

    @nn.compact
    def __call__(self, x_btc: jax.Array, lengths_b: jax.Array) -> jax.Array:
        cfg = self.config
        mask_bt1 = length_mask(lengths_b, x_btc.shape[1])[..., None]
        for i, dilation in enumerate(cfg.dilations):
            wide = nn.Conv(
                cfg.hidden,
                (3,),
                kernel_dilation=(dilation,),
                padding=((dilation, dilation),),
                precision=self.precision,
                name=f"{i}_wide",
            )
            narrow = nn.Conv(cfg.width, (1,), precision=self.precision, name=f"{i}_narrow")
            x_btc += narrow(jax.nn.relu(wide(jax.nn.relu(x_btc) * mask_bt1)))
        return x_btc


class Encoder(nn.Module):
    """The encoder: features to latents, downsampled by the product of strides."""

    config: PitchConfig

    @nn.compact
    def __call__(self, x_btc: jax.Array, lengths_b: jax.Array) -> tuple[jax.Array, jax.Array]:
        cfg = self.config
        for i, (stride, kernel, padding) in enumerate(cfg.downs):
            down = nn.Conv(
                cfg.encoder.width,
                (kernel,),
                strides=(stride,),
                padding=((padding, padding),),
                precision=cfg.precision,
                name=f"down{i}",
            )
            x_btc = down(_mask(x_btc, lengths_b))
            lengths_b = jnp.maximum((lengths_b + 2 * padding - kernel) // stride + 1, 0)
            x_btc = ResidualBlocks(cfg.encoder, cfg.precision, name=f"blocks{i}")(x_btc, lengths_b)
        out = nn.Conv(cfg.code_dim, (3,), padding=((1, 1),), precision=cfg.precision, name="out")
        return out(_mask(x_btc, lengths_b)), lengths_b


class Decoder(nn.Module):
    """The decoder: latents to features, the mirror image of the encoder."""

    config: PitchConfig

    @nn.compact
    def __call__(self, x_btd: jax.Array, lengths_b: jax.Array) -> tuple[jax.Array, jax.Array]:
        cfg = self.config
        conv3 = {"kernel_size": (3,), "padding": ((1, 1),), "precision": cfg.precision}
        x_btc = nn.Conv(cfg.decoder.width, name="in", **conv3)(_mask(x_btd, lengths_b))
        for i, (stride, kernel, padding) in enumerate(reversed(cfg.downs)):
            x_btc = ResidualBlocks(cfg.decoder, cfg.precision, name=f"blocks{i}")(x_btc, lengths_b)
            last = i == len(cfg.downs) - 1
            up = nn.ConvTranspose(
                cfg.code_dim if last else cfg.decoder.width,
                (kernel,),
                strides=(stride,),
                padding=((kernel - 1 - padding,) * 2,),
                precision=cfg.precision,
                name=f"up{i}",
            )
            x_btc = up(_mask(x_btc, lengths_b))
            lengths_b = jnp.where(lengths_b > 0, (lengths_b - 1) * stride + kernel - 2 * padding, 0)
        return nn.Conv(2, name="out", **conv3)(_mask(x_btc, lengths_b)), lengths_b


class PitchVqVae(nn.Module):
    """F0 to pitch units, and back."""

    config: PitchConfig

    def setup(self):
        cfg = self.config
        self.encoder, self.decoder = Encoder(cfg), Decoder(cfg)
        shape = (cfg.num_codes, cfg.code_dim)
        self.codebook = self.param("codebook", nn.initializers.normal(1.0), shape)

    def __call__(self, features_bt2: jax.Array, lengths_b: jax.Array):
        """Encodes F0 to one code for every 80 ms.

        Args:
          features_bt2: float32 (b, t, 2), from `normalise_f0`, 200 frames a second; ignored after
            a row's true length.
          lengths_b: int32 (b,), true numbers of frames.

        Returns:
          codes_bt: int32 (b, t'); undefined after a row's true number of codes.
          code_lengths_b: int32 (b,), those numbers.
        """
        latent_btd, lengths_b = self.latent(features_bt2, lengths_b)
        return nearest_codes(latent_btd, self.codebook, self.config.precision), lengths_b

    def latent(self, features_bt2: jax.Array, lengths_b: jax.Array):
        """The encoder's output, float32 (b, t', d), and true numbers of codes."""
        return self.encoder(features_bt2, lengths_b)

    def decode(self, codes_bt: jax.Array, lengths_b: jax.Array):
        """Decodes codes to features, float32 (b, t', 2), and true numbers of frames."""
        return self.decoder(jnp.take(self.codebook, codes_bt, axis=0), lengths_b)

    def everything(self, features_bt2: jax.Array, lengths_b: jax.Array) -> None:
        """Uses every parameter, for `init`."""
        self.decode(*self(features_bt2, lengths_b))


def nearest_codes(latent_btd: jax.Array, codes_vd: jax.Array, precision: str) -> jax.Array:
    """The nearest code of each vector, int32 (b, t).

    Args:
      latent_btd: float32.
      codes_vd: float32, the codebook.
      precision: a `jax.lax.Precision` name.
    """
    products_btv = jnp.einsum("btd,vd->btv", latent_btd, codes_vd, precision=precision)
    distances_btv = jnp.square(codes_vd).sum(-1) - 2 * products_btv
    return jnp.argmin(distances_btv, axis=-1).astype(jnp.int32)


@functools.cache
def abstract_params(model: PitchVqVae) -> dict:
    """The parameter tree as `jax.ShapeDtypeStruct`."""
    features = jax.ShapeDtypeStruct((1, 64, 2), jnp.float32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    init = functools.partial(model.init, method="everything")
    return jax.eval_shape(init, jax.random.key(0), features, lengths)["params"]


def load(folder: str | Path) -> tuple[PitchVqVae, dict]:
    """The model of a network folder and its parameters (numpy arrays)."""
    cfg, params = checkpoint.load_network(folder, PitchConfig)
    return PitchVqVae(cfg), params


def _mask(x_btc: jax.Array, lengths_b: jax.Array) -> jax.Array:
    return jnp.where(length_mask(lengths_b, x_btc.shape[1])[..., None], x_btc, 0)
