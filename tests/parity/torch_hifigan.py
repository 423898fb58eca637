"""A plain PyTorch unit HiFi-GAN with the key names of the release, to compare with."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm


def conv(channels_in, channels_out, kernel, dilation=1):
    padding = dilation * (kernel - 1) // 2
    return weight_norm(
        nn.Conv1d(channels_in, channels_out, kernel, dilation=dilation, padding=padding)
    )


class ResBlock(nn.Module):
    def __init__(self, channels, kernel, dilations):
        super().__init__()
        self.convs1 = nn.ModuleList(conv(channels, channels, kernel, d) for d in dilations)
        self.convs2 = nn.ModuleList(conv(channels, channels, kernel) for _ in dilations)

    def forward(self, x):
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, 0.1)), 0.1))
        return x


class DurationPredictor(nn.Module):
    def __init__(self, channels, hidden, kernel):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv1d(channels, hidden, kernel, padding=(kernel - 1) // 2), nn.ReLU()
        )
        self.ln1 = nn.LayerNorm(hidden)
        self.conv2 = nn.Sequential(nn.Conv1d(hidden, hidden, kernel, padding=1), nn.ReLU())
        self.ln2 = nn.LayerNorm(hidden)
        self.proj = nn.Linear(hidden, 1)

    def forward(self, x):
        for layer, norm in ((self.conv1, self.ln1), (self.conv2, self.ln2)):
            x = norm(layer(x.transpose(1, 2)).transpose(1, 2))
        return self.proj(x)[..., 0]


class TorchHifiGan(nn.Module):
    """`h`: a config in the release's spelling."""

    def __init__(self, h):
        super().__init__()
        self.h, size = h, h["embedding_dim"]
        self.dict = nn.Embedding(h["num_embeddings"], size)
        if h.get("num_f0_tokens"):
            self.f0_dict = nn.Embedding(h["num_f0_tokens"], size)
        if h.get("num_style_tokens"):
            self.style_dict = nn.Embedding(h["num_style_tokens"], size)
        if h.get("multispkr"):
            self.spkr = nn.Embedding(h.get("num_speakers", 200), size)
        if h.get("multistyle"):
            self.style = nn.Embedding(h.get("num_styles", 100), size)
        channels = h["upsample_initial_channel"]
        self.conv_pre = conv(h["model_in_dim"], channels, 7)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        rates = zip(h["upsample_rates"], h["upsample_kernel_sizes"], strict=True)
        for rate, kernel in rates:
            up = nn.ConvTranspose1d(channels, channels // 2, kernel, rate, (kernel - rate) // 2)
            self.ups.append(weight_norm(up))
            channels //= 2
            for k, d in zip(h["resblock_kernel_sizes"], h["resblock_dilation_sizes"], strict=True):
                self.resblocks.append(ResBlock(channels, k, d))
        self.conv_post = conv(channels, 1, 7)
        if h.get("dur_predictor_params"):
            p = h["dur_predictor_params"]
            sizes = p["encoder_embed_dim"], p["var_pred_hidden_dim"], p["var_pred_kernel_size"]
            self.dur_predictor = DurationPredictor(*sizes)

    def durations(self, codes):
        """(b, t) codes to (b, t) frames."""
        log_frames = self.dur_predictor(self.dict(codes))
        return torch.clamp(torch.round(torch.exp(log_frames) - 1), min=1).long()

    def forward(self, streams):
        """`streams`: ids (b, t) in the order code, f0, style, speaker, style id (those in use)."""
        names = ("dict", "f0_dict", "style_dict", "spkr", "style")
        tables = [getattr(self, name) for name in names if hasattr(self, name)]
        embedded = [table(ids) for table, ids in zip(tables, streams, strict=True)]
        x = self.conv_pre(torch.cat(embedded, dim=-1).transpose(1, 2))
        per_stage = len(self.resblocks) // len(self.ups)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            blocks = self.resblocks[i * per_stage : (i + 1) * per_stage]
            x = sum(block(x) for block in blocks) / per_stage
        return torch.tanh(self.conv_post(F.leaky_relu(x)))[:, 0]
