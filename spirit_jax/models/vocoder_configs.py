"""Sizes of a vocoder and its discriminators. Importing this does not import JAX."""

import dataclasses
import math
import re

from spirit_jax import limits
from spirit_jax.errors import InputError

SOURCE_PARTS = 4  # of a frame, each with an F0 value, for the harmonic source
FRAME_KERNEL, FRAME_DILATIONS = 3, (1, 3)  # of a block of `frame_blocks`
MAX_STAGES = 32  # of upsampling, and residual blocks of each


@dataclasses.dataclass(frozen=True)
class HifiGanConfig:
    """Sizes of a vocoder; the defaults are those of Spirit LM Base.

    Attributes:
      num_codes: phonetic units.
      num_pitch, num_style: pitch and style units; 0 if they are not an input.
      num_speakers, num_style_ids: number of speakers and styles (Base); 0 if not an input.
      speakers, styles: their names, in the order of ids; may be shorter, or empty.
      default_speaker, default_style: ids that are used if none is requested.
      common_style: style unit of a unit string with pitch and without style; 71 in the release.
      embedding_dim: width of each embedded id.
      upsample_rates, upsample_kernels: of each transposed conv.
      initial_channels: channels after the first conv; every transposed conv halves them.
      frame_blocks: residual blocks before the first transposed conv; 0 in the release.
      resblock_kernels, resblock_dilations: of the residual blocks of every stage.
      duration_hidden: width of the duration predictor; 0 for no predictor.
      duration_kernel: of its two convs.
      source_harmonics: number of sines of the harmonic source; 0 for none, as in the release.
      f0_hidden: width of the F0 predictor.
      code_hop, pitch_hop, style_hop: samples of a unit, for timed units.
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
        if self.source_harmonics and self.code_hop % SOURCE_PARTS:
            raise InputError(f"A harmonic source needs a code_hop that {SOURCE_PARTS} divides.")
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
        """The ids of a frame in order: name and number of possible ids."""
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
        """Upper bound of the frames on each side that a frame's samples depend on."""
        frames = 3.0 + self.frame_blocks * _reach(FRAME_KERNEL, FRAME_DILATIONS)
        rate_so_far = 1
        for rate, kernel in zip(self.upsample_rates, self.upsample_kernels, strict=True):
            frames += -(-kernel // rate) / rate_so_far
            rate_so_far *= rate
            frames += max(map(_reach, self.resblock_kernels, self.resblock_dilations)) / rate_so_far
        return math.ceil(frames + 3 / rate_so_far)

    def find_voice(self, speaker: int | str | None, style: int | str | None) -> dict[str, int]:
        """Ids by channel, "speaker" and "style_id".

        Args:
          speaker, style: number or name; None for the default.

        Raises:
          InputError: there is no such number or name.
        """
        ids = {"speaker": self.default_speaker, "style_id": self.default_style}
        if speaker is not None:
            ids["speaker"] = _find_id("speaker", speaker, self.speakers, self.num_speakers)
        if style is not None:
            ids["style_id"] = _find_id("style", style, self.styles, self.num_style_ids)
        return ids


def _reach(kernel: int, dilations: tuple[int, ...]) -> int:
    """Frames on each side that an output of a residual block depends on."""
    return sum((kernel - 1) // 2 * (dilation + 1) for dilation in dilations)


def _find_id(what: str, wanted: int | str, names: tuple[str, ...], count: int) -> int:
    if not count:
        raise InputError(f"This vocoder has no {what} to choose, so not '{wanted}' either.")
    name = str(wanted).strip()
    if name in names:
        return names.index(name)
    if re.fullmatch("[0-9]{1,9}", name) and int(name) < count:
        return int(name)
    known = f"0 to {count - 1}" + (f" or {', '.join(names)}" if names else "")
    raise InputError(f"There is no {what} '{name[:80]}'; known are {known}.")


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of the discriminators; the defaults are those of the paper.

    Attributes:
      periods: of the multi-period discriminator, one network each.
      period_channels: of its convs; all but the last have a stride.
      period_kernel, period_stride: of its convs.
      scales: networks of the multi-scale discriminator, each at half the rate of the one before.
      scale_channels, scale_kernels, scale_strides, scale_groups: of the convs of each network.
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    period_kernel: int = 5
    period_stride: int = 3
    scales: int = 3
    scale_channels: tuple[int, ...] = (128, 128, 256, 512, 1024, 1024, 1024)
    scale_kernels: tuple[int, ...] = (15, 41, 41, 41, 41, 41, 5)
    scale_strides: tuple[int, ...] = (1, 2, 2, 4, 4, 1, 1)
    scale_groups: tuple[int, ...] = (1, 4, 16, 16, 16, 16, 1)

    def __post_init__(self):
        limits.check_numbers(
            self,
            periods=limits.KERNEL,
            period_channels=limits.WIDTH,
            period_kernel=limits.KERNEL,
            period_stride=limits.KERNEL,
            scales=(0, 16),
            scale_channels=limits.WIDTH,
            scale_kernels=limits.KERNEL,
            scale_strides=limits.KERNEL,
            scale_groups=limits.WIDTH,
        )
        layers = len(self.scale_channels)
        for name in ("scale_kernels", "scale_strides", "scale_groups"):
            if len(getattr(self, name)) != layers:
                raise InputError(f"{name} must have {layers} items, as scale_channels has.")
        if any(kernel % 2 == 0 for kernel in (*self.scale_kernels, self.period_kernel)):
            raise InputError("The kernels of the discriminators must be odd.")
        inputs = (1, *self.scale_channels)
        for groups, *sizes in zip(self.scale_groups, inputs, self.scale_channels, strict=False):
            if any(size % groups for size in sizes):
                raise InputError(f"scale_groups: {groups} groups do not divide {sizes} channels.")
        if not self.periods and not self.scales:
            raise InputError("There must be a discriminator: periods or scales.")
