"""The discriminators of HiFi-GAN (arXiv 2010.05646).

Letters: b batch, s samples, p rows, t time, c channels in, d channels out, k kernel width.

Discriminators learn to distinguish recorded from generated audio. A multi-period discriminator
reshapes audio to an image with `period` rows: row i has the samples whose index is i modulo
`period`. A multi-scale discriminator takes audio as one row, at the original sampling rate or,
after average pooling, at a lower one. All process images (b, p, t, c) with kernels of height 1.

All convs have weight norm. The paper has spectral norm in the first scale, whose power iteration
would need state that is kept between steps.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from spirit_jax.models.conv import conv1d
from spirit_jax.models.vocoder_configs import DiscriminatorConfig

SLOPE = 0.1  # of the leaky ReLUs
POOL, POOL_STRIDE, POOL_PADDING = 4, 2, 2  # average pooling between scales

Features = list[jax.Array]


class NormedConv(nn.Module):
    """A conv along the rows of an image, with weight norm.

    The kernel is initialised by PyTorch's default, as in the paper's code.
    """

    features: int
    kernel_size: int
    stride: int = 1
    groups: int = 1

    @nn.compact
    def __call__(self, x_bptc: jax.Array) -> jax.Array:
        shape = (1, self.kernel_size, x_bptc.shape[-1] // self.groups, self.features)
        initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        kernel_1kcd = self.param("kernel", initializer, shape)
        norm_d = jnp.sqrt(jnp.sum(jnp.square(kernel_1kcd), axis=(0, 1, 2)))
        scale_d = self.param("scale", lambda _: norm_d)
        bias_d = self.param("bias", nn.initializers.zeros, (self.features,))
        padding = self.kernel_size // 2
        kernel_1kcd = kernel_1kcd * (scale_d / norm_d)
        if self.groups == 1:
            batch, rows, time, channels = x_bptc.shape
            x_btc = x_bptc.reshape(batch * rows, time, channels)
            y_btd = conv1d(x_btc, kernel_1kcd[0], (padding, padding), 1, self.stride)
            return y_btd.reshape(batch, rows, -1, self.features) + bias_d
        y_bptd = jax.lax.conv_general_dilated(
            x_bptc,
            kernel_1kcd,
            window_strides=(1, self.stride),
            padding=((0, 0), (padding, padding)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )
        return y_bptd + bias_d


class Discriminator(nn.Module):
    """A stack of convs; returns scores, and the outputs of all layers including the scores."""

    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    groups: tuple[int, ...]

    @nn.compact
    def __call__(self, x_bptc: jax.Array) -> tuple[jax.Array, Features]:
        layers = zip(self.channels, self.kernels, self.strides, self.groups, strict=True)
        features = []
        for i, layer in enumerate(layers):
            x_bptc = jax.nn.leaky_relu(NormedConv(*layer, name=f"conv{i}")(x_bptc), SLOPE)
            features.append(x_bptc)
        scores = NormedConv(1, 3, name="out")(x_bptc)
        return scores, [*features, scores]


class Discriminators(nn.Module):
    """All discriminators; each gives a score for every position of its last layer."""

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, wave_bs: jax.Array) -> tuple[list[jax.Array], list[Features]]:
        """Scores audio.

        Args:
          wave_bs: float32 (b, s), samples in -1..1.

        Returns:
          scores: for each discriminator (b, rows, t, 1); targets are 1 for recorded and 0 for
            generated audio.
          features: for each discriminator, the outputs of its layers, for feature matching.
        """
        cfg = self.config
        outputs = []
        for period in cfg.periods:
            layers = len(cfg.period_channels)
            discriminator = Discriminator(
                cfg.period_channels,
                (cfg.period_kernel,) * layers,
                (cfg.period_stride,) * (layers - 1) + (1,),
                (1,) * layers,
                name=f"period{period}",
            )
            outputs.append(discriminator(fold(wave_bs, period)))
        x_bptc = wave_bs[:, None, :, None]
        for i in range(cfg.scales):
            if i:
                x_bptc = halve(x_bptc)
            discriminator = Discriminator(
                cfg.scale_channels,
                cfg.scale_kernels,
                cfg.scale_strides,
                cfg.scale_groups,
                name=f"scale{i}",
            )
            outputs.append(discriminator(x_bptc))
        return [scores for scores, _ in outputs], [features for _, features in outputs]


def fold(wave_bs: jax.Array, period: int) -> jax.Array:
    """Reshapes audio to (b, period, t, 1), after reflection padding to a multiple of `period`."""
    missing = -wave_bs.shape[1] % period
    wave_bs = jnp.pad(wave_bs, ((0, 0), (0, missing)), mode="reflect")
    return wave_bs.reshape(len(wave_bs), -1, period).swapaxes(1, 2)[..., None]


def halve(x_bptc: jax.Array) -> jax.Array:
    """Halves the sampling rate by average pooling; the zeros of the padding are averaged too."""
    padding = ((0, 0), (POOL_PADDING, POOL_PADDING))
    return nn.avg_pool(x_bptc, (1, POOL), (1, POOL_STRIDE), padding)


def discriminator_loss(real: list[jax.Array], generated: list[jax.Array]) -> jax.Array:
    """Least-squares GAN loss (arXiv 1611.04076) of the discriminators, from their scores."""
    return sum(
        jnp.mean(jnp.square(r - 1)) + jnp.mean(jnp.square(g))
        for r, g in zip(real, generated, strict=True)
    )


def adversarial_loss(generated: list[jax.Array]) -> jax.Array:
    """Least-squares GAN loss of the generator, whose audio should get the score 1."""
    return sum(jnp.mean(jnp.square(scores - 1)) for scores in generated)


def feature_loss(real: list[Features], generated: list[Features]) -> jax.Array:
    """Feature matching loss: mean L1 distance of each layer, summed over all layers."""
    return sum(
        jnp.mean(jnp.abs(jax.lax.stop_gradient(real_layer) - generated_layer))
        for features in zip(real, generated, strict=True)
        for real_layer, generated_layer in zip(*features, strict=True)
    )
