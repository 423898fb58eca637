"""Configs of speech encoders, pitch, style and spectrograms. Importing this does not import JAX."""

import dataclasses
import math

from spirit_jax import limits
from spirit_jax.errors import InputError

MAX_CONV_LAYERS = 64  # of a feature extractor
ACTIVATION_NAMES = ("gelu", "gelu_tanh", "relu", "silu")


@dataclasses.dataclass(frozen=True)
class TrunkConfig:
    """Architecture of a trunk; the defaults are those of HuBERT and wav2vec 2.0 Base.

    Attributes:
      input_norm_eps: epsilon of the normalisation of waveforms to mean 0 and variance 1; None for
        no normalisation.
      conv_layers: (channels, kernel, stride) of each conv; there is no padding.
      conv_norm: "group" is a group norm after the first conv, with one channel per group; "layer"
        is a layer norm after each conv.
      conv_bias: whether the convs have a bias.
      conv_activation: after each conv and the positional conv; a name in `ACTIVATION_NAMES`.
      conv_norm_eps: epsilon of the norms after convs.
      feature_norm: whether there is a layer norm after the conv features.
      feature_projection: whether conv features are projected to `hidden_size`.
      conv_pos, conv_pos_groups: kernel and groups of the convolutional positional embedding.
      num_layers: transformer layers; fewer for the output of an inner layer.
      activation: of the feed-forward network; a name in `ACTIVATION_NAMES`.
      norm_first: pre-norm layers instead of post-norm layers.
      final_norm: whether there is a layer norm after the last layer, for pre-norm networks; False
        for the output of an inner layer.
      norm_eps: epsilon of all other layer norms.
      adapter_size: width of the adapter after every pre-norm layer; 0 for none.
      precision: a `jax.lax.Precision` name, for every matmul and conv. Below "highest" a TPU
        multiplies float32 in bfloat16, which changes units.
    """

    input_norm_eps: float | None = None
    conv_layers: tuple[tuple[int, int, int], ...] = (
        (512, 10, 5),
        *((512, 3, 2),) * 4,
        *((512, 2, 2),) * 2,
    )
    conv_norm: str = "group"
    conv_bias: bool = False
    conv_activation: str = "gelu"
    conv_norm_eps: float = 1e-5
    feature_norm: bool = True
    feature_projection: bool = True
    conv_pos: int = 128
    conv_pos_groups: int = 16
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    ffn_size: int = 3072
    activation: str = "gelu"
    norm_first: bool = False
    final_norm: bool = True
    norm_eps: float = 1e-5
    adapter_size: int = 0
    precision: str = "highest"

    def __post_init__(self):
        limits.check_numbers(
            self,
            input_norm_eps=limits.EPSILON,
            conv_layers=limits.KERNEL,
            conv_norm_eps=limits.EPSILON,
            conv_pos=limits.KERNEL,
            conv_pos_groups=limits.WIDTH,
            hidden_size=limits.WIDTH,
            num_layers=limits.LAYERS,
            num_heads=limits.HEADS,
            ffn_size=(1, 1 << 22),
            norm_eps=limits.EPSILON,
            adapter_size=limits.may_be_zero(limits.WIDTH),
        )
        if self.hidden_size % self.num_heads or self.hidden_size % self.conv_pos_groups:
            raise InputError(
                f"A width of {self.hidden_size} does not divide into {self.num_heads} heads and "
                f"{self.conv_pos_groups} groups of the positional conv."
            )
        if self.conv_norm not in ("group", "layer"):
            raise InputError(f"conv_norm is '{self.conv_norm}', expected 'group' or 'layer'.")
        for name in (self.activation, self.conv_activation):
            if name not in ACTIVATION_NAMES:
                raise InputError(
                    f"activation is '{name}', expected one of {', '.join(ACTIVATION_NAMES)}."
                )
        layers = len(self.conv_layers)
        if not 1 <= layers <= MAX_CONV_LAYERS or any(len(item) != 3 for item in self.conv_layers):
            raise InputError(
                f"conv_layers is {str(self.conv_layers)[:80]}; expected 1 to {MAX_CONV_LAYERS} "
                "(channels, kernel, stride) triples."
            )
        if not self.feature_projection and self.conv_layers[-1][0] != self.hidden_size:
            raise InputError(
                f"{self.conv_layers[-1][0]} conv channels need a feature_projection to a width of "
                f"{self.hidden_size}."
            )
        if not self.norm_first and (self.adapter_size or not self.final_norm):
            raise InputError("adapter_size, and no final_norm, need pre-norm layers (norm_first).")

    @property
    def stride(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(stride for _, _, stride in self.conv_layers)

    @property
    def receptive_field(self) -> int:
        """Receptive field of a frame in samples: the shortest audio with a frame."""
        field = 1
        for _, kernel, stride in reversed(self.conv_layers):
            field = (field - 1) * stride + kernel
        return field


FEATURES = ("f0,vuv", "f0_interp,vuv", "norm_f0,vuv", "norm_f0_interp,vuv")


@dataclasses.dataclass(frozen=True)
class StackConfig:
    """The residual convs of an encoder or a decoder.

    Attributes:
      width: channels between blocks.
      hidden: channels inside a residual block.
      depth: residual blocks for every strided conv.
      growth: the dilation of block i is growth ** i.
      reverse: the largest dilation comes first.
    """

    width: int = 32
    hidden: int = 32
    depth: int = 4
    growth: int = 3
    reverse: bool = False

    def __post_init__(self):
        limits.check_numbers(
            self,
            width=limits.WIDTH,
            hidden=limits.WIDTH,
            depth=limits.may_be_zero((1, 64)),
            growth=(1, 64),
        )
        if self.depth and self.growth ** (self.depth - 1) > limits.KERNEL[1]:
            raise InputError(
                f"A depth of {self.depth} and a growth of {self.growth} make convs that are "
                f"dilated {self.growth} ** {self.depth - 1} times; the limit is {limits.KERNEL[1]}."
            )

    @property
    def dilations(self) -> tuple[int, ...]:
        """Dilation of each residual block, in order."""
        dilations = tuple(self.growth**i for i in range(self.depth))
        return dilations[::-1] if self.reverse else dilations


@dataclasses.dataclass(frozen=True)
class PitchConfig:
    """Sizes of the VQ-VAE.

    Attributes:
      features: one of `FEATURES`. With `f0_interp` unvoiced frames have interpolated F0, otherwise
        0; with `norm_` the mean is subtracted.
      speaker_norm: subtracts the mean for all `features`.
      downs: (stride, kernel, padding) of each strided conv.
      encoder, decoder: residual blocks between strided convs.
      num_codes, code_dim: the codebook.
      precision: a `jax.lax.Precision` name, for every matmul and conv.
    """

    features: str = "norm_f0_interp,vuv"
    speaker_norm: bool = True
    downs: tuple[tuple[int, int, int], ...] = ((2, 4, 1),) * 4
    encoder: StackConfig = StackConfig()
    decoder: StackConfig = StackConfig(reverse=True)
    num_codes: int = 64
    code_dim: int = 128
    precision: str = "highest"

    def __post_init__(self):
        if self.features not in FEATURES:
            raise InputError(f"features is '{self.features}', expected one of {FEATURES}.")
        limits.check_numbers(
            self,
            downs=limits.may_be_zero(limits.KERNEL),
            num_codes=limits.IDS,
            code_dim=limits.WIDTH,
        )
        if not self.downs or any(len(down) != 3 or min(down[:2]) < 1 for down in self.downs):
            raise InputError(f"downs is {self.downs}, expected (stride, kernel, padding) triples.")


@dataclasses.dataclass(frozen=True)
class StyleConfig:
    """The style classifier.

    Attributes:
      trunk: the wav2vec 2.0 network.
      projection_size: width of the projection before pooling.
      num_styles: number of classes.
      pool_frames: frames that are averaged for one unit.
      sample_rate: of the audio, in Hz.
    """

    trunk: TrunkConfig = TrunkConfig(input_norm_eps=1e-7)
    projection_size: int = 256
    num_styles: int = 100
    pool_frames: int = 50
    sample_rate: int = 16000

    def __post_init__(self):
        limits.check_numbers(
            self,
            projection_size=limits.WIDTH,
            num_styles=limits.IDS,
            pool_frames=(1, 1 << 20),
            sample_rate=limits.SAMPLE_RATE,
        )


@dataclasses.dataclass(frozen=True)
class MelConfig:
    """A log-mel spectrogram.

    Attributes:
      sample_rate: in Hz.
      n_fft: samples of a Hann window.
      hop: samples from one window to the next.
      num_mels: number of mel bands, with librosa's (Slaney's) scale and norm.
      f_min, f_max: lowest and highest frequency of the bands, in Hz.
      floor: lower limit of magnitudes.
    """

    sample_rate: int = 16_000
    n_fft: int = 1024
    hop: int = 256
    num_mels: int = 80
    f_min: float = 0.0
    f_max: float = 8_000.0
    floor: float = 1e-5

    def __post_init__(self):
        limits.check_numbers(
            self,
            sample_rate=limits.SAMPLE_RATE,
            n_fft=(2, 1 << 20),
            hop=(1, 1 << 20),
            num_mels=limits.KERNEL,
            f_min=(0.0, 1e6),
            f_max=(0.0, 1e6),
            floor=(0.0, 1e6),
        )
        if not 0 < self.hop <= self.n_fft or (self.n_fft - self.hop) % 2:
            raise InputError(
                f"A hop of {self.hop} does not go with an n_fft of {self.n_fft}: it must be at "
                "most as long, and differ by an even number."
            )
        if not 0 <= self.f_min < self.f_max <= self.sample_rate / 2:
            raise InputError(
                f"f_min and f_max are {self.f_min} and {self.f_max}; expected 0 to "
                f"{self.sample_rate / 2}, with f_min below f_max."
            )
        if self.floor <= 0:
            raise InputError(f"The floor of mel magnitudes is {self.floor}, expected above 0.")
