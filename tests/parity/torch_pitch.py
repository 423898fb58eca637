"""A plain PyTorch F0 VQ-VAE with the key names of the release, to compare with."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width, hidden, dilation):
        super().__init__()
        self.model = nn.Sequential(
            nn.ReLU(),
            nn.Conv1d(width, hidden, 3, padding=dilation, dilation=dilation),
            nn.ReLU(),
            nn.Conv1d(hidden, width, 1),
        )

    def forward(self, x):
        return x + self.model(x)


class Blocks(nn.Module):
    def __init__(self, width, hidden, dilations):
        super().__init__()
        self.model = nn.Sequential(*(Block(width, hidden, d) for d in dilations))

    def forward(self, x):
        return self.model(x)


class Level(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x):
        return self.model(x)


class Stack(nn.Module):
    def __init__(self, *layers, out=None):
        super().__init__()
        self.level_blocks = nn.ModuleList([Level(*layers)])
        if out is not None:
            self.out = out

    def forward(self, x):
        x = self.level_blocks[0](x)
        return self.out(x) if hasattr(self, "out") else x


class Codebook(nn.Module):
    def __init__(self, codes, width):
        super().__init__()
        self.register_buffer("k", torch.randn(codes, width))


class TorchPitch(nn.Module):
    """`c`: a `config.yaml` in the release's spelling."""

    def __init__(self, c):
        super().__init__()
        encoder, decoder, vq = (c[f"{name}_params"] for name in ("encoder", "decoder", "vq"))
        strides, downs = encoder["strides_t"][0], encoder["downs_t"][0]
        if isinstance(strides, int):
            sizes = [(strides, 2 * strides, strides // 2)] * downs
        else:
            sizes = [
                (s, 2 * s, s // 2) if s % 2 == 0 else (s, 2 * s + 1, s // 2 + 1) for s in strides
            ]
        emb, width = vq["emb_width"], encoder["width"]
        layers, channels = [], 2
        for stride, kernel, padding in sizes:
            down = nn.Conv1d(channels, width, kernel, stride, padding)
            layers.append(nn.Sequential(down, self.blocks(encoder)))
            channels = width
        self.encoder = Stack(*layers, nn.Conv1d(width, emb, 3, padding=1))
        width = decoder["width"]
        layers = [nn.Conv1d(emb, width, 3, padding=1)]
        for i, (stride, kernel, padding) in enumerate(reversed(sizes)):
            channels = emb if i == downs - 1 else width
            up = nn.ConvTranspose1d(width, channels, kernel, stride, padding)
            layers.append(nn.Sequential(self.blocks(decoder), up))
        self.decoder = Stack(*layers, out=nn.Conv1d(emb, 2, 3, padding=1))
        self.vq = nn.Module()
        self.vq.level_blocks = nn.ModuleList([Codebook(vq["l_bins"], emb)])

    @staticmethod
    def blocks(c):
        dilations = [c["dilation_growth_rate"] ** d for d in range(c["depth"])]
        if c.get("reverse_decoder_dilation"):
            dilations = dilations[::-1]
        return Blocks(c["width"], int(c["m_conv"] * c["width"]), dilations)

    def codes(self, x):
        """(b, 2, t) features to (b, t') codes."""
        latent = self.encoder(x).transpose(1, 2)
        codebook = self.vq.level_blocks[0].k
        return torch.cdist(latent, codebook[None]).argmin(-1)

    def decode(self, codes):
        return self.decoder(self.vq.level_blocks[0].k[codes].transpose(1, 2))
