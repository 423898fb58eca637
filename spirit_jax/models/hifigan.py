"""The vocoder: a HiFi-GAN generator with units for input, and a duration predictor.

Letters: b batch, t time (frames of 40 ms, then samples), c channels, k kernel width.

Follows HiFi-GAN (arXiv 2010.05646) with units for input as in arXiv 2104.00355. The input is
the concatenation of the embedded ids of a frame (unit, pitch, style, speaker, style id: see
`HifiGanConfig.channels`).

With `source_harmonics`, which the release's vocoders lack, harmonics of an F0 predicted from the
units are an input as well (`models/harmonic_source.py`).

A batch is padded and comes with true lengths. Frames after a row's true length are zeroed before
every conv, so a row's result does not depend on its padding.
"""

import functools
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from spirit_jax import checkpoint
from spirit_jax.errors import InputError
from spirit_jax.models import harmonic_source
from spirit_jax.models.conv import Conv1d, conv1d
from spirit_jax.models.frames import length_mask
from spirit_jax.models.vocoder_configs import FRAME_DILATIONS, FRAME_KERNEL, HifiGanConfig

SLOPE, FINAL_SLOPE = 0.1, 0.01  # of the leaky ReLUs: between layers, and before the last conv
MAX_DURATION = 2_500  # frames; limits the output for a bad prediction


class DurationPredictor(nn.Module):
    """Predicts log(1 + frames) of each unit from its embedding and those of its neighbours."""

    config: HifiGanConfig

    @nn.compact
    def __call__(self, x_btc: jax.Array, lengths_b: jax.Array) -> jax.Array:
        cfg = self.config
        for i, padding in enumerate(duration_paddings(cfg)):
            x_btc = x_btc * length_mask(lengths_b, x_btc.shape[1])[..., None]
            conv = nn.Conv(
                cfg.duration_hidden,
                (cfg.duration_kernel,),
                padding=((padding, padding),),
                precision=cfg.precision,
                name=f"conv{i}",
            )
            x_btc = jax.nn.relu(conv(x_btc))
            norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=f"norm{i}")
            x_btc = norm(x_btc)
            lengths_b = lengths_b + 2 * padding - (cfg.duration_kernel - 1)
        return nn.Dense(1, precision=cfg.precision, name="out")(x_btc)[..., 0]


def duration_paddings(config: HifiGanConfig) -> tuple[int, int]:
    """Zeros on each side of the input of the duration predictor's two convs."""
    return (config.duration_kernel - 1) // 2, 1


class Upsample(nn.Module):
    """A transposed conv that upsamples by `rate`.

    Output q * rate + s is the sum of inputs q, q - 1, ... by weights s, s + rate, ... So it is
    computed as one conv with `rate` times the channels, which are then reshaped to time: the same
    sums, without the zeros of a dilated input.
    """

    features: int
    rate: int
    kernel_size: int
    precision: str

    @nn.compact
    def __call__(self, x_btc: jax.Array) -> jax.Array:
        batch, frames, channels = x_btc.shape
        shape = (self.kernel_size, channels, self.features)
        kernel_kcd = self.param("kernel", nn.initializers.normal(0.01), shape)
        bias_d = self.param("bias", nn.initializers.zeros, (self.features,))
        phases = split_phases(kernel_kcd, self.rate)
        outside = len(phases) - 1
        y_btd = conv1d(x_btc, phases, (outside, outside), 1, 1, self.precision)
        y_btd = y_btd.reshape(batch, -1, self.features)
        start = (self.kernel_size - self.rate) // 2
        return y_btd[:, start : start + frames * self.rate] + bias_d


def split_phases(kernel_kcd: jax.Array, rate: int) -> jax.Array:
    """The kernel of the conv that `Upsample` computes, (taps, c, rate * d)."""
    taps = -(-len(kernel_kcd) // rate)
    missing = taps * rate - len(kernel_kcd)
    phases = jnp.pad(kernel_kcd, ((0, missing), (0, 0), (0, 0)))
    phases = phases.reshape(taps, rate, *kernel_kcd.shape[1:])
    # A conv applies its weights in the reverse order of a transposed conv.
    return phases[::-1].transpose(0, 2, 1, 3).reshape(taps, kernel_kcd.shape[1], -1)


class ResBlock(nn.Module):
    """Residual pairs of convs, the first of each pair dilated."""

    kernel_size: int
    dilations: tuple[int, ...]
    precision: str

    @nn.compact
    def __call__(self, x_btc: jax.Array, mask_bt1: jax.Array) -> jax.Array:
        for i, dilation in enumerate(self.dilations):
            y_btc = x_btc
            for name, step in ((f"dilated{i}", dilation), (f"plain{i}", 1)):
                y_btc = jax.nn.leaky_relu(y_btc, SLOPE) * mask_bt1
                conv = Conv1d(x_btc.shape[-1], self.kernel_size, step, self.precision, name=name)
                y_btc = conv(y_btc)
            x_btc += y_btc
        return x_btc


class Generator(nn.Module):
    """The generator: embedded frames, and harmonics if there are any, to samples."""

    config: HifiGanConfig

    @nn.compact
    def __call__(
        self, x_btc: jax.Array, lengths_b: jax.Array, sines_bsh: jax.Array | None = None
    ) -> jax.Array:
        cfg = self.config
        mask_bt1 = length_mask(lengths_b, x_btc.shape[1])[..., None]
        conv_pre = Conv1d(cfg.initial_channels, 7, precision=cfg.precision, name="conv_pre")
        x_btc = conv_pre(x_btc * mask_bt1)
        for i in range(cfg.frame_blocks):
            block = ResBlock(FRAME_KERNEL, FRAME_DILATIONS, cfg.precision, name=f"frame{i}")
            x_btc = block(x_btc, mask_bt1)
        for i, (rate, size) in enumerate(
            zip(cfg.upsample_rates, cfg.upsample_kernels, strict=True)
        ):
            x_btc = jax.nn.leaky_relu(x_btc, SLOPE) * mask_bt1
            channels = cfg.initial_channels // 2 ** (i + 1)
            x_btc = Upsample(channels, rate, size, cfg.precision, name=f"up{i}")(x_btc)
            lengths_b = lengths_b * rate
            mask_bt1 = length_mask(lengths_b, x_btc.shape[1])[..., None]
            if sines_bsh is not None:  # all samples of a frame of this stage, as channels
                folded_btd = sines_bsh.reshape(*x_btc.shape[:2], -1)
                dense = nn.Dense(channels, precision=cfg.precision, name=f"source{i}")
                x_btc += dense(folded_btd)
            blocks = zip(cfg.resblock_kernels, cfg.resblock_dilations, strict=True)
            x_btc = sum(
                ResBlock(kernel, dilations, cfg.precision, name=f"res{i}_{j}")(x_btc, mask_bt1)
                for j, (kernel, dilations) in enumerate(blocks)
            ) / len(cfg.resblock_kernels)
        x_btc = jax.nn.leaky_relu(x_btc, FINAL_SLOPE) * mask_bt1
        conv_post = Conv1d(1, 7, precision=cfg.precision, name="conv_post")
        return jnp.tanh(conv_post(x_btc))[..., 0] * mask_bt1[..., 0]


class HifiGan(nn.Module):
    """Units to speech."""

    config: HifiGanConfig

    def setup(self):
        cfg = self.config
        self.embed = {
            name: nn.Embed(count, cfg.embedding_dim) for name, count in cfg.channels.items()
        }
        self.generator = Generator(cfg)
        if cfg.duration_hidden:
            self.duration = DurationPredictor(cfg)
        if cfg.source_harmonics:
            self.f0 = harmonic_source.F0Predictor(cfg.f0_hidden, cfg.precision)

    def __call__(
        self, ids_btc: jax.Array, lengths_b: jax.Array, source_bte: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Generates `config.code_hop` samples for each frame.

        Args:
          ids_btc: int32 (b, t, channels), ids in the order of `config.channels`; ignored
            after a row's true length.
          lengths_b: int32 (b,), true numbers of frames.
          source_bte: float32 (b, t, PARTS + 1) from `harmonic_source.excite`; needed with
            `config.source_harmonics`.

        Returns:
          wave_bs: float32 (b, t * code_hop) in -1..1, 0 after a row's true length.
          samples_b: int32 (b,), true lengths in samples.
        """
        cfg, sines_bsh = self.config, None
        if cfg.source_harmonics:
            sines_bsh = harmonic_source.sines(source_bte, cfg.code_hop, cfg.source_harmonics)
        wave_bs = self.generator(self._embed(ids_btc), lengths_b, sines_bsh)
        return wave_bs, lengths_b * cfg.code_hop

    def _embed(self, ids_btc: jax.Array) -> jax.Array:
        embedded = [
            self.embed[name](ids_btc[..., i]) for i, name in enumerate(self.config.channels)
        ]
        return jnp.concatenate(embedded, axis=-1)

    def predict_f0(self, ids_btc: jax.Array, lengths_b: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Predicts F0 and voicing.

        Args:
          ids_btc, lengths_b: see `__call__`.

        Returns:
          float32 (b, t, 2 * PARTS) for `harmonic_source.to_f0`, and `lengths_b`.
        """
        f0_and_voicing = self.f0(self._embed(ids_btc), lengths_b)
        return jnp.concatenate(f0_and_voicing, axis=-1), lengths_b

    def log_durations(
        self, codes_bt: jax.Array, lengths_b: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Predicts durations.

        Args:
          codes_bt: int32 (b, t), phonetic units without repeats; ignored after true lengths.
          lengths_b: int32 (b,), true numbers of units.

        Returns:
          float32 (b, t) for `to_frames`, and `lengths_b`.
        """
        return self.duration(self.embed["code"](codes_bt), lengths_b), lengths_b

    def everything(self, ids_btc: jax.Array, lengths_b: jax.Array) -> None:
        """Uses every parameter, for `init`."""
        source_bte = jnp.zeros((*ids_btc.shape[:2], harmonic_source.PARTS + 1))
        self(ids_btc, lengths_b, source_bte)
        if self.config.source_harmonics:
            self.predict_f0(ids_btc, lengths_b)
        if self.config.duration_hidden:
            self.log_durations(ids_btc[..., 0], lengths_b)


@functools.cache
def abstract_params(model: HifiGan) -> dict:
    """The parameter tree as `jax.ShapeDtypeStruct`."""
    ids = jax.ShapeDtypeStruct((1, 8, len(model.config.channels)), jnp.int32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    init = functools.partial(model.init, method="everything")
    return jax.eval_shape(init, jax.random.key(0), ids, lengths)["params"]


def load(folder: str | Path) -> tuple[HifiGan, dict]:
    """The model of a network folder and its parameters (numpy arrays)."""
    cfg, params = checkpoint.load_network(folder, HifiGanConfig)
    return HifiGan(cfg), params


def to_frames(log_frames: np.ndarray) -> np.ndarray:
    """Durations in frames, int32, at least 1: exp(x) - 1, rounded half to even.

    The exponential is computed in float64 and rounded to float32, which agrees with the release; a
    float32 exponential is sometimes on the other side of a half.

    A prediction that is within rounding of a half can differ by a frame between padded lengths,
    since XLA then sums in another order. Padded from 70 units to 400, a prediction of the tests'
    reference vocoder changes from 3.8394523 to 3.8394527, which is 45.499998 and 45.500020 frames.
    """
    frames = np.exp(log_frames.astype(np.float64)).astype(np.float32) - np.float32(1)
    return np.clip(np.round(frames), 1, MAX_DURATION).astype(np.int32)


def expand_stream(stream: np.ndarray, hop: int, code_hop: int, frames: int) -> np.ndarray:
    """Repeats each unit of a slower stream round(hop / code_hop) times, to one unit a frame.

    Args:
      stream: int32 (n,), at least one unit.
      hop, code_hop: samples of a unit and of a frame.
      frames: length of the result; it is cut, or padded with its last unit.
    """
    repeated = np.repeat(stream, round(hop / code_hop))[:frames]
    return np.pad(repeated, (0, frames - len(repeated)), mode="edge")


def stack_ids(
    streams: Mapping[str, np.ndarray | None],
    voice: Mapping[str, int],
    cfg: HifiGanConfig,
    timed: bool,
) -> np.ndarray:
    """The vocoder's input, int32 (frames, channels).

    Args:
      streams: units by channel: "code", one a frame, negative for padding; "pitch" and "style".
      voice: ids of the constant channels, "speaker" and "style_id".
      cfg: of the vocoder; its `channels` are used.
      timed: pitch and style have their own slower rates (see `expand_stream`); otherwise they have
        one unit a frame.

    Raises:
      InputError: a stream is missing, or has a unit that the vocoder does not have.
    """
    frames, columns = len(streams["code"]), []
    for name, count in cfg.channels.items():
        if name in voice:
            columns.append(np.full(frames, voice[name]))
            continue
        stream = streams[name]
        stream = np.zeros(0, np.int32) if stream is None else stream
        if frames and not len(stream):
            raise InputError(f"This vocoder needs {name} units, and there are none.")
        if timed and name != "code" and frames:
            hop = {"pitch": cfg.pitch_hop, "style": cfg.style_hop}[name]
            stream = expand_stream(stream, hop, cfg.code_hop, frames)
        wrong = stream[(stream >= count) | ((stream < 0) & (name != "code"))]
        if wrong.size:
            raise InputError(f"There is no {name} unit {wrong[0]}; known are 0 to {count - 1}.")
        columns.append(stream)
    return np.stack(columns, axis=-1).astype(np.int32)
