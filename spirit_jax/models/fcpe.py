"""FCPE: the fundamental frequency of speech, 100 frames a second.

Letters: b batch, t time (samples, then frames), w samples in a window, f frequencies of the DFT,
m mel bands, d model width, c cent bins, n neighbours of the best bin.

Network and decoding are those of torchfcpe (MIT) with its bundled weights: convolutional conformer
blocks without attention. A batch is padded and comes with true lengths; results on true frames do
not depend on padding.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import librosa
from flax import linen as nn

from spirit_jax import checkpoint, limits
from spirit_jax.errors import InputError
from spirit_jax.models.frames import apply_mel, length_mask, power_spectrum
from spirit_jax.models.norms import layer_norm

MAGNITUDE_FLOOR, MEL_FLOOR = 1e-9, 1e-5
NEIGHBOURS = 4  # bins on each side of the best bin that are averaged
CENTS_FROM = 10.0  # frequency of 0 cents, in Hz


@dataclasses.dataclass(frozen=True)
class FcpeConfig:
    """Sizes of the front end and the network; the defaults are those of the bundled weights.

    Attributes:
      sample_rate, window, hop: in Hz, samples, samples.
      num_mels, fmin, fmax: the mel bands, in Hz.
      hidden_size, num_layers, num_bins: of the network; a bin is an F0 in cents.
      kernel: of the depthwise convs.
      expansion: width of the depthwise convs divided by `hidden_size`.
      norm_groups: of the group norm between the first two convs.
      threshold: a frame is unvoiced if the score of its best bin is at most this.
      precision: a `jax.lax.Precision` name, for every matmul and conv.
    """

    sample_rate: int = 16000
    window: int = 1024
    hop: int = 160
    num_mels: int = 128
    fmin: float = 0.0
    fmax: float = 8000.0
    hidden_size: int = 512
    num_layers: int = 6
    num_bins: int = 360
    kernel: int = 31
    expansion: int = 2
    norm_groups: int = 4
    threshold: float = 0.05
    precision: str = "highest"

    def __post_init__(self):
        limits.check_numbers(
            self,
            sample_rate=limits.SAMPLE_RATE,
            window=limits.KERNEL,
            hop=limits.KERNEL,
            num_mels=limits.KERNEL,
            fmin=(0.0, 1e6),
            fmax=(0.0, 1e6),
            hidden_size=limits.WIDTH,
            num_layers=limits.LAYERS,
            num_bins=limits.KERNEL,
            kernel=limits.KERNEL,
            expansion=(1, 64),
            norm_groups=limits.WIDTH,
            threshold=(0.0, 1.0),
        )
        if self.hop > self.window or self.fmin >= self.fmax:
            raise InputError(
                f"hop {self.hop} must be at most the window {self.window}, and fmin {self.fmin} "
                f"below fmax {self.fmax}."
            )
        if self.hidden_size % self.norm_groups:
            raise InputError(
                f"{self.norm_groups} norm_groups do not divide a hidden_size of {self.hidden_size}."
            )


def log_mel(wave_bt: jax.Array, lengths_b: jax.Array, cfg: FcpeConfig):
    """Log-mel spectrogram.

    The first window starts (window - hop) / 2 samples before the audio, which has reflection
    padding at both ends (zero padding if it is too short). The last frame is repeated once.

    Args:
      wave_bt: float32 samples; ignored after true lengths.
      lengths_b: int32, true lengths in samples.
      cfg: of the front end.

    Returns:
      float32 (b, t // hop + 1, m), and true numbers of frames, int32 (b,).
    """
    before = (cfg.window - cfg.hop) // 2
    after = (cfg.window - cfg.hop + 1) // 2
    size = wave_bt.shape[1]
    longest = max(size // cfg.hop, 1)  # windows of the longest row
    padded_size = (longest - 1) * cfg.hop + cfg.window
    lengths_b1 = lengths_b[:, None]

    place_bt = jnp.arange(padded_size)[None] - before
    inside_bt = (place_bt >= 0) & (place_bt < lengths_b1)
    reflected_bt = jnp.abs(place_bt)
    reflected_bt = jnp.where(
        reflected_bt < lengths_b1, reflected_bt, 2 * (lengths_b1 - 1) - reflected_bt
    )
    use_bt = inside_bt | ((lengths_b1 > after) & (place_bt < lengths_b1 + after))
    wave_bt = jnp.take_along_axis(wave_bt, jnp.clip(reflected_bt, 0, size - 1), axis=1)
    wave_bt = jnp.where(use_bt, wave_bt, 0)

    power_btf = power_spectrum(wave_bt, cfg.window, cfg.hop)
    magnitude_btf = jnp.sqrt(power_btf + MAGNITUDE_FLOOR)
    bands_mf = librosa.filters.mel(
        sr=cfg.sample_rate, n_fft=cfg.window, n_mels=cfg.num_mels, fmin=cfg.fmin, fmax=cfg.fmax
    )
    mel_btm = apply_mel(magnitude_btf, bands_mf, cfg.precision)
    mel_btm = jnp.log(jnp.maximum(mel_btm, MEL_FLOOR))

    last_b1 = jnp.maximum(lengths_b1 // cfg.hop, 1) - 1
    frame_bt = jnp.minimum(jnp.arange(size // cfg.hop + 1)[None], last_b1)
    mel_btm = jnp.take_along_axis(mel_btm, frame_bt[..., None], axis=1)
    return mel_btm, jnp.where(lengths_b > 0, lengths_b // cfg.hop + 1, 0)


class MaskedGroupNorm(nn.Module):
    """Group norm (arXiv 1803.08494) over true frames."""

    groups: int
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x_btd: jax.Array, mask_bt: jax.Array) -> jax.Array:
        batch, frames, width = x_btd.shape
        scale_d = self.param("scale", nn.initializers.ones, (width,))
        bias_d = self.param("bias", nn.initializers.zeros, (width,))
        x_btgk = x_btd.reshape(batch, frames, self.groups, -1)
        mask = mask_bt[:, :, None, None]
        count = jnp.maximum(mask.sum(axis=1, keepdims=True), 1) * x_btgk.shape[-1]

        def mean(y_btgk):
            return jnp.where(mask, y_btgk, 0).sum(axis=(1, 3), keepdims=True) / count

        centered = x_btgk - mean(x_btgk)
        normed = centered * jax.lax.rsqrt(mean(jnp.square(centered)) + self.eps)
        return normed.reshape(x_btd.shape) * scale_d + bias_d


class ConvBlock(nn.Module):
    """The conv module of a conformer (arXiv 2005.08100), with a residual connection."""

    config: FcpeConfig

    @nn.compact
    def __call__(self, x_btd: jax.Array, mask_bt: jax.Array) -> jax.Array:
        cfg = self.config
        inner = cfg.hidden_size * cfg.expansion
        y_btd = layer_norm(1e-5, "norm")(x_btd)
        y_btd = nn.Dense(2 * inner, precision=cfg.precision, name="widen")(y_btd)
        value_btd, gate_btd = jnp.split(y_btd, 2, axis=-1)
        y_btd = value_btd * jax.nn.sigmoid(gate_btd) * mask_bt[..., None]
        left = cfg.kernel // 2
        depthwise = nn.Conv(
            inner,
            (cfg.kernel,),
            padding=((left, cfg.kernel - 1 - left),),
            feature_group_count=inner,
            precision=cfg.precision,
            name="depthwise",
        )
        y_btd = jax.nn.silu(depthwise(y_btd))
        return x_btd + nn.Dense(cfg.hidden_size, precision=cfg.precision, name="narrow")(y_btd)


class Fcpe(nn.Module):
    """Waveforms to F0."""

    config: FcpeConfig

    def setup(self):
        cfg = self.config
        conv3 = {"kernel_size": (3,), "padding": ((1, 1),), "precision": cfg.precision}
        self.conv0 = nn.Conv(cfg.hidden_size, **conv3)
        self.group_norm = MaskedGroupNorm(cfg.norm_groups)
        self.conv1 = nn.Conv(cfg.hidden_size, **conv3)
        self.layers = [ConvBlock(cfg) for _ in range(cfg.num_layers)]
        self.norm = layer_norm(1e-5, None)
        self.out = nn.Dense(cfg.num_bins, precision=cfg.precision)
        self.cents = self.param("cents", nn.initializers.uniform(9000.0), (cfg.num_bins,))

    def __call__(self, wave_bt: jax.Array, lengths_b: jax.Array) -> tuple[jax.Array, jax.Array]:
        """F0 every 10 ms.

        Args:
          wave_bt: float32, one channel at `config.sample_rate`; ignored after true lengths.
          lengths_b: int32 (b,), true lengths in samples.

        Returns:
          f0_bt: float32 in Hz, (b, t // hop + 1); 0 for unvoiced frames, undefined after a
            row's true number of frames.
          frames_b: int32 (b,), true numbers of frames, length // hop + 1.
        """
        mel_btm, frames_b = log_mel(wave_bt, lengths_b, self.config)
        return self.pick(self.score(mel_btm, frames_b)), frames_b

    def score(self, mel_btm: jax.Array, frames_b: jax.Array) -> jax.Array:
        """Scores of cent bins in 0..1, float32 (b, t, c)."""
        mask_bt = length_mask(frames_b, mel_btm.shape[1])
        x_btd = self.conv0(jnp.where(mask_bt[..., None], mel_btm, 0))
        x_btd = jax.nn.leaky_relu(self.group_norm(x_btd, mask_bt), 0.01)
        x_btd = self.conv1(x_btd * mask_bt[..., None])
        for layer in self.layers:
            x_btd = layer(x_btd, mask_bt)
        return jax.nn.sigmoid(self.out(self.norm(x_btd)))

    def pick(self, scores_btc: jax.Array) -> jax.Array:
        """F0 in Hz: the mean of the best bin and its neighbours; 0 below the threshold."""
        best_bt1 = jnp.argmax(scores_btc, axis=-1, keepdims=True)
        near_btn = best_bt1 + jnp.arange(-NEIGHBOURS, NEIGHBOURS + 1)
        near_btn = jnp.clip(near_btn, 0, self.config.num_bins - 1)
        weights_btn = jnp.take_along_axis(scores_btc, near_btn, axis=-1)
        cents_btn = jnp.take(self.cents, near_btn)
        cents_bt = (cents_btn * weights_btn).sum(-1) / weights_btn.sum(-1)
        f0_bt = CENTS_FROM * jnp.exp2(cents_bt / 1200)
        return jnp.where(scores_btc.max(axis=-1) > self.config.threshold, f0_bt, 0)


def load(folder: str | Path) -> tuple[Fcpe, dict]:
    """The model of a network folder and its parameters (numpy arrays)."""
    cfg, params = checkpoint.load_network(folder, FcpeConfig)
    return Fcpe(cfg), params
