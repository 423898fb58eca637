"""The network that HuBERT and wav2vec 2.0 share: waveform -> conv features -> transformer.

Letters: b batch, t time (samples, then frames), c conv channels, d model width, h heads, k head
width, s frames attended to.

Follows wav2vec 2.0 (arXiv 2006.11477) and HuBERT (arXiv 2106.07447). Both papers have two variants:
Base, with a group norm after the first conv and post-norm layers, and Large, with a layer norm
after every conv and pre-norm layers. Details that are not in the papers follow the released
checkpoints.

A batch is padded and comes with true lengths. Results on true frames do not depend on padding:
statistics over time and attention ignore padded frames, and these frames are set to zero before the
positional conv, the only one that pads its input.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from spirit_jax.models.adapter import Adapter
from spirit_jax.models.conv import conv1d
from spirit_jax.models.frames import length_mask, masked_standardize, split_frames
from spirit_jax.models.norms import TimeNorm, layer_norm
from spirit_jax.models.speech_configs import TrunkConfig

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def frame_lengths(lengths, conv_layers: tuple[tuple[int, int, int], ...]):
    """Number of frames of audio.

    For n inputs, a conv with kernel k and stride s has floor((n - k) / s) + 1 outputs, or none if n
    is less than k.

    Args:
      lengths: an int, or integers in a numpy or JAX array of any shape.
      conv_layers: (channels, kernel, stride) of each conv.

    Returns:
      Integers of the same shape; a JAX array if `lengths` is one, otherwise numpy.
    """
    frames = lengths if isinstance(lengths, jax.Array) else np.asarray(lengths)
    for _, kernel, stride in conv_layers:
        frames = ((frames - kernel) // stride + 1).clip(0)
    return frames


class ConvLayer(nn.Module):
    """One layer of the feature extractor: conv without padding, norm and activation."""

    config: TrunkConfig
    index: int

    @nn.compact
    def __call__(self, x_btc: jax.Array, frames_b: jax.Array) -> jax.Array:
        """The layer's output; `frames_b` are the true lengths of the output."""
        cfg = self.config
        channels, kernel, stride = cfg.conv_layers[self.index]
        init = nn.initializers.he_normal()
        kernel_kcd = self.param("kernel", init, (kernel, x_btc.shape[-1], channels))
        if x_btc.shape[-1] == 1:
            # As a matmul, since a conv with one input channel hardly uses a TPU's matrix unit.
            x_btk = split_frames(x_btc[..., 0], kernel, stride)
            x_btc = jnp.einsum("btk,kd->btd", x_btk, kernel_kcd[:, 0], precision=cfg.precision)
        else:
            x_btc = conv1d(x_btc, kernel_kcd, stride=stride, precision=cfg.precision)
        if cfg.conv_bias:
            x_btc += self.param("bias", nn.initializers.zeros, (channels,))
        if cfg.conv_norm == "layer":
            x_btc = layer_norm(cfg.conv_norm_eps, "norm")(x_btc)
        elif self.index == 0:
            mask_bt = length_mask(frames_b, x_btc.shape[1])
            x_btc = TimeNorm(cfg.conv_norm_eps, name="norm")(x_btc, mask_bt)
        return ACTIVATIONS[cfg.conv_activation](x_btc)


class ConvLayers(nn.Module):
    """The feature extractor: (b, t, 1) samples to (b, t, c) frames, and true numbers of frames."""

    config: TrunkConfig

    @nn.compact
    def __call__(self, x_btc: jax.Array, lengths_b: jax.Array) -> tuple[jax.Array, jax.Array]:
        for i, layer in enumerate(self.config.conv_layers):
            lengths_b = frame_lengths(lengths_b, (layer,))
            x_btc = ConvLayer(self.config, i, name=str(i))(x_btc, lengths_b)
        return x_btc, lengths_b


class PositionalConv(nn.Module):
    """Convolutional positional embedding: a wide grouped conv with "same" padding."""

    config: TrunkConfig

    @nn.compact
    def __call__(self, x_btd: jax.Array) -> jax.Array:
        cfg = self.config
        width = x_btd.shape[-1]
        shape = (cfg.conv_pos, width // cfg.conv_pos_groups, width)
        init = nn.initializers.normal(math.sqrt(4 / (cfg.conv_pos * width)))
        left = cfg.conv_pos // 2
        x_btd = jax.lax.conv_general_dilated(
            x_btd,
            self.param("kernel", init, shape),
            window_strides=(1,),
            # torch pads k // 2 on both sides and drops the last frame of an even kernel.
            padding=((left, cfg.conv_pos - 1 - left),),
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=cfg.conv_pos_groups,
            precision=cfg.precision,
        )
        x_btd += self.param("bias", nn.initializers.zeros, (width,))
        return ACTIVATIONS[cfg.conv_activation](x_btd)


class Attention(nn.Module):
    """Self-attention: every frame attends to all true frames."""

    config: TrunkConfig

    @nn.compact
    def __call__(self, x_btd: jax.Array, mask_bs: jax.Array) -> jax.Array:
        cfg = self.config
        heads = (*x_btd.shape[:-1], cfg.num_heads, cfg.hidden_size // cfg.num_heads)
        q_bthk, k_bshk, v_bshk = (
            nn.Dense(cfg.hidden_size, precision=cfg.precision, name=name)(x_btd).reshape(heads)
            for name in ("q", "k", "v")
        )
        q_bthk *= heads[-1] ** -0.5
        scores_bhts = jnp.einsum("bthk,bshk->bhts", q_bthk, k_bshk, precision=cfg.precision)
        # Finite, so that a row without true frames gives no NaN; its output is masked later.
        lowest = jnp.finfo(scores_bhts.dtype).min
        scores_bhts = jnp.where(mask_bs[:, None, None, :], scores_bhts, lowest)
        weights_bhts = jax.nn.softmax(scores_bhts, axis=-1)
        y_bthk = jnp.einsum("bhts,bshk->bthk", weights_bhts, v_bshk, precision=cfg.precision)
        out = nn.Dense(cfg.hidden_size, precision=cfg.precision, name="out")
        return out(y_bthk.reshape(x_btd.shape))


class Layer(nn.Module):
    """A transformer layer, pre-norm or post-norm."""

    config: TrunkConfig

    @nn.compact
    def __call__(self, x_btd: jax.Array, mask_bt: jax.Array) -> jax.Array:
        cfg = self.config
        attention_norm = layer_norm(cfg.norm_eps, "attention_norm")
        ffn_norm = layer_norm(cfg.norm_eps, "ffn_norm")
        attention = Attention(cfg, name="attention")
        widen = nn.Dense(cfg.ffn_size, precision=cfg.precision, name="fc1")
        narrow = nn.Dense(cfg.hidden_size, precision=cfg.precision, name="fc2")

        def feed_forward(y_btd):
            return narrow(ACTIVATIONS[cfg.activation](widen(y_btd)))

        if cfg.norm_first:
            x_btd += attention(attention_norm(x_btd), mask_bt)
            x_btd += feed_forward(ffn_norm(x_btd))
            adapter = Adapter(cfg.adapter_size, cfg.precision, name="adapter")
            return x_btd + adapter(x_btd) if cfg.adapter_size else x_btd
        x_btd = attention_norm(x_btd + attention(x_btd, mask_bt))
        return ffn_norm(x_btd + feed_forward(x_btd))


class Layers(nn.Module):
    """The transformer layers in turn, named `0`, `1`, ..."""

    config: TrunkConfig

    @nn.compact
    def __call__(self, x_btd: jax.Array, mask_bt: jax.Array) -> jax.Array:
        for i in range(self.config.num_layers):
            x_btd = Layer(self.config, name=str(i))(x_btd, mask_bt)
        return x_btd


class Trunk(nn.Module):
    """Waveforms to a vector for each frame; the whole network without its output layer.

    `__call__` is divided into methods, so that training can mask features between them.
    """

    config: TrunkConfig

    def setup(self):
        cfg = self.config
        self.conv = ConvLayers(cfg)
        if cfg.feature_norm:
            self.feature_norm = layer_norm(cfg.norm_eps, None)
        if cfg.feature_projection:
            self.feature_projection = nn.Dense(cfg.hidden_size, precision=cfg.precision)
        self.pos_conv = PositionalConv(cfg)
        if cfg.final_norm:
            self.norm = layer_norm(cfg.norm_eps, None)
        self.layers = Layers(cfg)

    def __call__(self, wave_bt: jax.Array, lengths_b: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The last layer's output.

        Args:
          wave_bt: float32 samples at the sampling rate of the checkpoint (16 kHz for all known
            checkpoints); samples after the true lengths are ignored.
          lengths_b: int32, true lengths in samples.

        Returns:
          hidden_btd: float32, zero after each row's true number of frames. It has as many frames
            as t samples have, but at least one.
          frame_lengths_b: int32, the true numbers of frames; 0 for audio shorter than
            `config.receptive_field`.
        """
        features_btc, frames_b = self.extract(wave_bt, lengths_b)
        hidden_btd = self.project(self.normalize(features_btc))
        return self.contextualize(hidden_btd, frames_b), frames_b

    def extract(self, wave_bt: jax.Array, lengths_b: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Conv features, (b, t, c), undefined for padding, and true numbers of frames."""
        short = self.config.receptive_field - wave_bt.shape[1]
        wave_bt = jnp.pad(wave_bt, ((0, 0), (0, max(0, short))))
        mask_bt = length_mask(lengths_b, wave_bt.shape[1])
        wave_bt = jnp.where(mask_bt, wave_bt, 0)
        if self.config.input_norm_eps is not None:
            eps = self.config.input_norm_eps
            wave_bt = masked_standardize(wave_bt[..., None], mask_bt, eps)[..., 0]
        return self.conv(wave_bt[..., None], lengths_b)

    def normalize(self, features_btc: jax.Array) -> jax.Array:
        """Layer norm of conv features, if the network has it."""
        return self.feature_norm(features_btc) if self.config.feature_norm else features_btc

    def project(self, features_btc: jax.Array) -> jax.Array:
        """Projects conv features to the transformer's width."""
        if not self.config.feature_projection:
            return features_btc
        return self.feature_projection(features_btc)

    def contextualize(self, hidden_btd: jax.Array, frames_b: jax.Array) -> jax.Array:
        """The transformer, (b, t, d) to (b, t, d); zero for padding."""
        cfg = self.config
        mask_bt = length_mask(frames_b, hidden_btd.shape[1])
        hidden_btd = jnp.where(mask_bt[..., None], hidden_btd, 0)
        hidden_btd += self.pos_conv(hidden_btd)
        if not cfg.norm_first:
            hidden_btd = self.norm(hidden_btd)
        hidden_btd = self.layers(hidden_btd, mask_bt)
        if cfg.norm_first and cfg.final_norm:
            hidden_btd = self.norm(hidden_btd)
        return jnp.where(mask_bt[..., None], hidden_btd, 0)


@functools.cache
def abstract_params(module: nn.Module) -> dict:
    """The parameters' `jax.ShapeDtypeStruct` tree, for a module that takes (wave_bt, lengths_b)."""
    wave = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.eval_shape(module.init, jax.random.key(0), wave, lengths)["params"]
