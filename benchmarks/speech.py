"""Encoding and vocoding speed compared with PyTorch, with the release's sizes and random weights.

    python -m benchmarks.speech

10 s of audio, in float32 on the CPU with two threads. HuBERT: trunk and quantizer, compared with
Hugging Face `HubertModel` with the 25 Hz config, eleven layers each. Vocoder: compared with a plain
PyTorch HiFi-GAN without weight norm.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import torch
import transformers

from benchmarks.paired import paired_ratio
from spirit_jax.cli.running import run
from spirit_jax.models.hifigan import HifiGan, HifiGanConfig
from spirit_jax.models.hifigan import abstract_params as vocoder_params
from spirit_jax.models.hubert import HubertConfig, HubertUnits, QuantizerConfig
from spirit_jax.models.wav2vec2 import TrunkConfig
from spirit_jax.models.wav2vec2 import abstract_params as trunk_params
from spirit_jax.random_model import random_params

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "parity"))
from torch_hifigan import TorchHifiGan  # noqa: E402

SECONDS, RATE, PAIRS, THREADS = 10, 16_000, 15, 2
CONV_LAYERS = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 3)
LAYERS = 11
VOCODER = {  # the release's
    "num_embeddings": 501,
    "embedding_dim": 128,
    "model_in_dim": 384,
    "multispkr": True,
    "num_speakers": 4,
    "multistyle": True,
    "num_styles": 26,
    "upsample_initial_channel": 512,
    "upsample_rates": [5, 4, 4, 4, 2],
    "upsample_kernel_sizes": [11, 8, 8, 8, 4],
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5]] * 3,
}


def on_device(abstract):
    return jax.device_put(random_params(abstract, np.random.default_rng(0)))


def make_hubert():
    """(parameters, compiled function) of HuBERT's trunk and the quantizer."""
    model = HubertUnits(
        HubertConfig(trunk=TrunkConfig(conv_layers=CONV_LAYERS, num_layers=LAYERS)),
        QuantizerConfig(hidden_sizes=(702, 635)),
    )
    apply = jax.jit(lambda params, wave, lengths: model.apply({"params": params}, wave, lengths))
    return on_device(trunk_params(model)), apply


def make_hubert_peer() -> torch.nn.Module:
    """Hugging Face's model of the same size."""
    channels, kernels, strides = zip(*CONV_LAYERS, strict=True)
    config = transformers.HubertConfig(
        conv_dim=channels, conv_kernel=kernels, conv_stride=strides, num_hidden_layers=LAYERS
    )
    return transformers.HubertModel(config).eval()


def hubert() -> dict[str, float]:
    params, apply = make_hubert()
    peer = make_hubert_peer()
    wave = np.random.default_rng(0).standard_normal((1, SECONDS * RATE)).astype(np.float32)
    lengths = np.array([wave.shape[1]], np.int32)
    wave_torch = torch.from_numpy(wave)

    def run_peer():
        with torch.inference_mode():
            return peer(wave_torch)

    return paired_ratio(
        lambda: jax.block_until_ready(apply(params, wave, lengths)), run_peer, PAIRS
    )


def make_vocoder():
    """(parameters, compiled function) of the release's vocoder."""
    model = HifiGan(HifiGanConfig())
    apply = jax.jit(lambda params, ids, lengths: model.apply({"params": params}, ids, lengths))
    return on_device(vocoder_params(model)), apply


def make_vocoder_peer() -> torch.nn.Module:
    """A PyTorch HiFi-GAN of the same size, without weight norm."""
    peer = TorchHifiGan(VOCODER).eval()
    for module in peer.modules():
        if torch.nn.utils.parametrize.is_parametrized(module):
            torch.nn.utils.parametrize.remove_parametrizations(module, "weight")
    return peer


def vocoder() -> dict[str, float]:
    params, apply = make_vocoder()
    peer = make_vocoder_peer()
    frames = SECONDS * 25
    ids = np.random.default_rng(0).integers(0, 4, (1, frames, 3)).astype(np.int32)
    streams = [torch.from_numpy(ids[..., i]).long() for i in range(3)]
    lengths = np.array([frames], np.int32)

    def run_peer():
        with torch.inference_mode():
            return peer(streams)

    return paired_ratio(lambda: jax.block_until_ready(apply(params, ids, lengths)), run_peer, PAIRS)


def main() -> None:
    """Runs the command that the module's docstring describes."""
    torch.set_num_threads(THREADS)
    for name, measure in (("hubert", hubert), ("vocoder", vocoder)):
        result = {key: round(value, 3) for key, value in measure().items()}
        print(json.dumps({"network": name, "audio_seconds": SECONDS} | result), flush=True)


if __name__ == "__main__":
    run(main)
