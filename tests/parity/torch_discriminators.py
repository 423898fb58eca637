"""Plain PyTorch discriminators of HiFi-GAN and its mel spectrogram, as a reference."""

import librosa
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm


class Discriminator(nn.Module):
    def __init__(self, make_conv, channels, kernels, strides, groups):
        super().__init__()
        inputs = (1, *channels)
        layers = zip(inputs, channels, kernels, strides, groups, strict=False)
        self.convs = nn.ModuleList(weight_norm(make_conv(*layer)) for layer in layers)
        self.out = weight_norm(make_conv(channels[-1], 1, 3, 1, 1))

    def forward(self, x):
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            features.append(x)
        features.append(self.out(x))
        return features[-1], features


class TorchDiscriminators(nn.Module):
    """`config`: a `DiscriminatorConfig`."""

    def __init__(self, config):
        super().__init__()
        self.periods = config.periods
        layers = len(config.period_channels)

        def column(inputs, outputs, kernel, stride, groups):
            return nn.Conv2d(inputs, outputs, (kernel, 1), (stride, 1), (kernel // 2, 0))

        def row(inputs, outputs, kernel, stride, groups):
            return nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)

        self.multi_period = nn.ModuleList(
            Discriminator(
                column,
                config.period_channels,
                (config.period_kernel,) * layers,
                (config.period_stride,) * (layers - 1) + (1,),
                (1,) * layers,
            )
            for _ in config.periods
        )
        self.multi_scale = nn.ModuleList(
            Discriminator(
                row,
                config.scale_channels,
                config.scale_kernels,
                config.scale_strides,
                config.scale_groups,
            )
            for _ in range(config.scales)
        )
        self.pool = nn.AvgPool1d(4, 2, padding=2)

    def forward(self, wave):
        outputs = []
        for period, discriminator in zip(self.periods, self.multi_period, strict=True):
            folded = wave[:, None]
            if folded.shape[-1] % period:
                folded = F.pad(folded, (0, period - folded.shape[-1] % period), "reflect")
            outputs.append(discriminator(folded.view(len(wave), 1, -1, period)))
        x = wave[:, None]
        for i, discriminator in enumerate(self.multi_scale):
            x = self.pool(x) if i else x
            outputs.append(discriminator(x))
        return [scores for scores, _ in outputs], [features for _, features in outputs]


def torch_log_mel(wave, config):
    """Log mel spectrogram (b, m, t) of (b, s)."""
    padding = (config.n_fft - config.hop) // 2
    padded = F.pad(wave[:, None], (padding, padding), mode="reflect")[:, 0]
    spectrum = torch.stft(
        padded,
        config.n_fft,
        config.hop,
        window=torch.hann_window(config.n_fft),
        center=False,
        return_complex=True,
    )
    magnitude = torch.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-9)
    bands = librosa.filters.mel(
        sr=config.sample_rate,
        n_fft=config.n_fft,
        n_mels=config.num_mels,
        fmin=config.f_min,
        fmax=config.f_max,
    )
    return torch.log(torch.clamp(torch.from_numpy(bands) @ magnitude, min=1e-5))
