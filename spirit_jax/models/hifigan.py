"""The vocoder: a HiFi-GAN that speaks units, and says how long each of them lasts.

Letters: b batch, t time (frames of 40 ms, then samples), c channels, k kernel width.

Follows HiFi-GAN (arXiv 2010.05646) with units for input as in arXiv 2104.00355: each frame is the
concatenation of embedded ids (unit, pitch, style, speaker, style id: `HifiGanConfig.channels`).

With `source_harmonics`, which the release's vocoders lack, sines at an F0 that is told from the
units are an input as well (`models/source.py`).

A batch is padded and comes with its true lengths. Every conv that pads sees zeros after a row's
true end, as it does for that row alone.
"""

import dataclasses
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from spirit_jax import checkpoint, limits
from spirit_jax.errors import InputError
from spirit_jax.models import source
from spirit_jax.models.conv import Conv1d, conv1d
from spirit_jax.models.wav2vec2 import length_mask

SLOPE, FINAL_SLOPE = 0.1, 0.01  # of the leaky ReLUs: between layers, and before the last conv
FRAME_KERNEL, FRAME_DILATIONS = 3, (1, 3)  # of a block of `frame_blocks`
MAX_STAGES = 32  # of upsampling, and residual blocks of each
MAX_DURATION = 2_500  # frames; a predictor gone astray must not ask for hours of speech


@dataclasses.dataclass(frozen=True)
class HifiGanConfig:
    """Sizes of a vocoder; the defaults are those of Spirit LM Base.

    Attributes:
      num_codes: phonetic units.
      num_pitch, num_style: pitch and style units; 0 for a vocoder without.
      num_speakers, num_style_ids: voices and manners to choose from; 0 for none.
      speakers, styles: their names, in the order of their ids; may be shorter, or empty.
      default_speaker, default_style: the ids that are used if none is asked for.
      common_style: the style unit of a string that has pitch and no style; the release's is 71.
      embedding_dim: of every embedded id.
      upsample_rates, upsample_kernels: of each transposed conv.
      initial_channels: after the first conv; every transposed conv halves them.
      frame_blocks: residual blocks before the first transposed conv, where frames are few and
        channels many; 0 as in the release.
      resblock_kernels, resblock_dilations: of the residual blocks of every stage.
      duration_hidden: width of the duration predictor; 0 for a vocoder without.
      duration_kernel: of its two convs.
      source_harmonics: sines of the harmonic source; 0 for a vocoder without, as the release's.
      f0_hidden: width of the predictor of its F0.
      code_hop, pitch_hop, style_hop: samples a unit lasts where streams keep their own timing.
      precision: a `jax.lax.Precision` name, for every matmul and conv.
    """

    num_codes: int = 501
    num_pitch: int = 0
    num_style: int = 0
    num_speakers: int = 4
    num_style_ids: int = 26
    speakers: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    default_speaker: int = 2
    default_style: int = 8
    common_style: int = 71
    embedding_dim: int = 128
    upsample_rates: tuple[int, ...] = (5, 4, 4, 4, 2)
    upsample_kernels: tuple[int, ...] = (11, 8, 8, 8, 4)
    initial_channels: int = 512
    frame_blocks: int = 0
    resblock_kernels: tuple[int, ...] = (3, 7, 11)
    resblock_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    duration_hidden: int = 128
    duration_kernel: int = 3
    source_harmonics: int = 0
    f0_hidden: int = 128
    code_hop: int = 640
    pitch_hop: int = 1280
    style_hop: int = 16000
    precision: str = "highest"

    def __post_init__(self):
        self._check_numbers()
        stages = len(self.upsample_rates)
        if len(self.upsample_kernels) != stages:
            raise InputError(
                f"{stages} upsample_rates need as many kernels, not {len(self.upsample_kernels)}."
            )
        for rate, kernel in zip(self.upsample_rates, self.upsample_kernels, strict=True):
            if rate < 1 or kernel < rate or (kernel - rate) % 2:
                raise InputError(
                    f"An upsampling by {rate} with a kernel of {kernel} gives no whole multiple of "
                    "its input; the kernel must be the rate plus an even number."
                )
        if math.prod(self.upsample_rates) != self.code_hop:
            raise InputError(
                f"upsample_rates {self.upsample_rates} make {math.prod(self.upsample_rates)} "
                f"samples of a unit, and code_hop is {self.code_hop}."
            )
        if self.initial_channels < 2**stages:
            raise InputError(
                f"initial_channels is {self.initial_channels}, not to be halved {stages} times."
            )
        if len(self.resblock_dilations) != len(self.resblock_kernels):
            raise InputError("resblock_dilations must have one row for each of resblock_kernels.")
        if any(kernel % 2 == 0 for kernel in self.resblock_kernels):
            raise InputError(f"resblock_kernels {self.resblock_kernels} must be odd.")
        if self.duration_hidden and self.duration_kernel not in (2, 3):
            # The second conv pads one frame on each side, whatever its kernel.
            raise InputError(
                f"A duration_kernel of {self.duration_kernel} does not give one duration a unit."
            )
        if self.source_harmonics and self.code_hop % source.PARTS:
            raise InputError(f"A harmonic source needs a code_hop that {source.PARTS} divides.")
        for name, default, count in (
            ("default_speaker", self.default_speaker, self.num_speakers),
            ("default_style", self.default_style, self.num_style_ids),
        ):
            if count and not 0 <= default < count:
                raise InputError(f"{name} is {default}, and there are {count}.")

    def _check_numbers(self) -> None:
        ids = limits.may_be_zero(limits.IDS)
        limits.check_numbers(
            self,
            num_codes=limits.IDS,
            num_pitch=ids,
            num_style=ids,
            num_speakers=ids,
            num_style_ids=ids,
            default_speaker=ids,
            default_style=ids,
            common_style=ids,
            embedding_dim=limits.WIDTH,
            upsample_rates=limits.KERNEL,
            upsample_kernels=limits.KERNEL,
            initial_channels=limits.WIDTH,
            frame_blocks=limits.may_be_zero(limits.LAYERS),
            resblock_kernels=limits.KERNEL,
            resblock_dilations=limits.KERNEL,
            duration_hidden=limits.may_be_zero(limits.WIDTH),
            duration_kernel=limits.KERNEL,
            source_harmonics=(0, 1 << 10),
            f0_hidden=limits.WIDTH,
            code_hop=(1, 1 << 20),
            pitch_hop=(1, 1 << 20),
            style_hop=(1, 1 << 24),
        )
        for name in ("upsample_rates", "resblock_kernels", "resblock_dilations"):
            if not getattr(self, name) or len(getattr(self, name)) > MAX_STAGES:
                raise InputError(f"{name} must have 1 to {MAX_STAGES} items.")

    @property
    def channels(self) -> dict[str, int]:
        """What a frame is made of, in order, and how many ids each has."""
        counts = {
            "code": self.num_codes,
            "pitch": self.num_pitch,
            "style": self.num_style,
            "speaker": self.num_speakers,
            "style_id": self.num_style_ids,
        }
        return {name: count for name, count in counts.items() if count}

    @property
    def receptive_frames(self) -> int:
        """How many frames on each side have a say in a frame's samples, at most."""
        frames = 3.0 + self.frame_blocks * _reach(FRAME_KERNEL, FRAME_DILATIONS)
        rate_so_far = 1
        for rate, kernel in zip(self.upsample_rates, self.upsample_kernels, strict=True):
            frames += -(-kernel // rate) / rate_so_far
            rate_so_far *= rate
            frames += max(map(_reach, self.resblock_kernels, self.resblock_dilations)) / rate_so_far
        return math.ceil(frames + 3 / rate_so_far)


def _reach(kernel: int, dilations: tuple[int, ...]) -> int:
    """Rows on each side that have a say in what a residual block makes of one."""
    return sum((kernel - 1) // 2 * (dilation + 1) for dilation in dilations)


class DurationPredictor(nn.Module):
    """How many frames each unit lasts, as log(1 + frames), from its embedding and neighbours."""

    config: HifiGanConfig

    @nn.compact
    def __call__(self, x_btc: jax.Array, lengths_b: jax.Array) -> jax.Array:
        cfg = self.config
        first = (cfg.duration_kernel - 1) // 2
        for i, padding in enumerate((first, 1)):
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


class Upsample(nn.Module):
    """A transposed conv that makes `rate` times as many frames.

    Sample q * rate + s of its output sees inputs q, q - 1, ... through every rate-th weight from s
    on. So it is one conv with `rate` times the channels, whose channels are then laid out in time:
    the same sums, without the zeros that a dilated input would be full of.
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
        taps = -(-self.kernel_size // self.rate)
        missing = taps * self.rate - self.kernel_size
        phases = jnp.pad(kernel_kcd, ((0, missing), (0, 0), (0, 0)))
        phases = phases.reshape(taps, self.rate, channels, self.features)
        # A conv's weights run against those of a transposed one.
        phases = phases[::-1].transpose(0, 2, 1, 3).reshape(taps, channels, -1)
        y_btd = conv1d(x_btc, phases, (taps - 1, taps - 1), 1, 1, self.precision)
        y_btd = y_btd.reshape(batch, -1, self.features)
        start = (self.kernel_size - self.rate) // 2
        return y_btd[:, start : start + frames * self.rate] + bias_d


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
    """Embedded frames, and sines if there are any, to samples."""

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
            if sines_bsh is not None:  # as many of their samples as a row of this stage stands for
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
            self.f0 = source.F0Predictor(cfg.f0_hidden, cfg.precision)

    def __call__(
        self, ids_btc: jax.Array, lengths_b: jax.Array, source_bte: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Speaks frames of `config.code_hop` samples.

        Args:
          ids_btc: int32 (b, t, channels), the ids of each frame in the order of
            `config.channels`; not read after a row's true length.
          lengths_b: int32 (b,), true numbers of frames.
          source_bte: float32 (b, t, source.PARTS + 1), of `source.excite`; for vocoders that have
            `source_harmonics`.

        Returns:
          wave_bs: float32 (b, t * code_hop) in -1..1, 0 after a row's true length.
          samples_b: int32 (b,), true lengths in samples.
        """
        cfg, sines_bsh = self.config, None
        if cfg.source_harmonics:
            sines_bsh = source.sines(source_bte, cfg.code_hop, cfg.source_harmonics)
        wave_bs = self.generator(self._embed(ids_btc), lengths_b, sines_bsh)
        return wave_bs, lengths_b * cfg.code_hop

    def _embed(self, ids_btc: jax.Array) -> jax.Array:
        embedded = [
            self.embed[name](ids_btc[..., i]) for i, name in enumerate(self.config.channels)
        ]
        return jnp.concatenate(embedded, axis=-1)

    def predict_f0(self, ids_btc: jax.Array, lengths_b: jax.Array) -> tuple[jax.Array, jax.Array]:
        """F0 and voicing, float32 (b, t, 2 * source.PARTS) for `source.to_f0`, and `lengths_b`.

        Args: as those of a call.
        """
        told = self.f0(self._embed(ids_btc), lengths_b)
        return jnp.concatenate(told, axis=-1), lengths_b

    def log_durations(
        self, codes_bt: jax.Array, lengths_b: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """How long each unit lasts: float32 (b, t) for `to_frames`, and `lengths_b`.

        Args:
          codes_bt: int32 (b, t), phonetic units without repeats; not read after true lengths.
          lengths_b: int32 (b,), true numbers of units.
        """
        return self.duration(self.embed["code"](codes_bt), lengths_b), lengths_b

    def everything(self, ids_btc: jax.Array, lengths_b: jax.Array) -> None:
        """Touches every parameter, for `init`."""
        source_bte = jnp.zeros((*ids_btc.shape[:2], source.PARTS + 1))
        self(ids_btc, lengths_b, source_bte)
        if self.config.source_harmonics:
            self.predict_f0(ids_btc, lengths_b)
        if self.config.duration_hidden:
            self.log_durations(ids_btc[..., 0], lengths_b)


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
    """int32 frames that units last, at least 1: exp(x) - 1 rounded, half to even.

    The exponential is taken exactly and rounded to float32 once, which is what the release's comes
    to; an approximate one lands on the other side of a half now and then.
    """
    frames = np.exp(log_frames.astype(np.float64)).astype(np.float32) - np.float32(1)
    return np.clip(np.round(frames), 1, MAX_DURATION).astype(np.int32)


def expand_stream(stream: np.ndarray, hop: int, code_hop: int, frames: int) -> np.ndarray:
    """Repeats each unit of a slower stream round(hop / code_hop) times, to one for each frame.

    The result is cut to `frames`, or goes on with its last unit.
    """
    repeated = np.repeat(stream, round(hop / code_hop))[:frames]
    return np.pad(repeated, (0, frames - len(repeated)), mode="edge")


def find_id(wanted: int | str | None, names: tuple[str, ...], count: int, default: int, what: str):
    """The number of a speaker or style given by number or name; `default` for None.

    Raises:
      InputError: there is none of that number or name.
    """
    if wanted is None:
        return default
    if not count:
        raise InputError(f"This vocoder has no {what} to choose, so not '{wanted}' either.")
    name = str(wanted).strip()
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < count:
        return int(name)
    known = f"0 to {count - 1}" + (f" or {', '.join(names)}" if names else "")
    raise InputError(f"There is no {what} '{wanted}'; known are {known}.")
