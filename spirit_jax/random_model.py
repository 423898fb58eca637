"""Writes a small model folder with random weights, with all networks and files, for tests."""

import math
from pathlib import Path

import numpy as np

from spirit_jax import checkpoint, config, files, limits, model_folder
from spirit_jax.checkpoint import Params
from spirit_jax.models import hifigan, hubert, llama, llama_weights, pitch, style, wav2vec2
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.text import learn_text_tokenizer
from spirit_jax.vocab import PITCH_UNITS, STYLE_UNITS, Vocab

# Few layers compile quickly; stride and width of a frame are those of wav2vec 2.0, 320 and 400.
CONV_LAYERS = ((16, 100, 20), (16, 16, 16))
TRUNK = {
    "conv_pos": 8,
    "conv_pos_groups": 2,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_size": 32,
}
TEXT_PIECES = 400


def write_random_model(folder: str | Path, kind: str = "expressive", seed: int = 0) -> None:
    """Writes a model folder of kind "base" or "expressive"; its F0 comes from `pyin`."""
    limits.check_seed(seed)
    folder = files.as_path(folder)
    sources = sorted(Path(__file__).parent.glob("*.py"))  # text to train the tokenizer on
    lines = "\n".join(path.read_text(encoding="utf-8") for path in sources).splitlines()
    learn_text_tokenizer(folder / "text_tokenizer", lines, TEXT_PIECES)
    vocab = Vocab.make(kind, TEXT_PIECES)
    llama_config = LlamaConfig(
        vocab_size=vocab.padded_size,
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        max_positions=2048,
    )
    networks = {
        "llama": (llama_config, llama_weights.abstract_params(llama.Llama(llama_config))),
        **{f"speech_tokenizer/{name}": parts for name, parts in _speech_networks(kind).items()},
    }
    rng = np.random.default_rng(seed)
    for name, (cfg, abstract) in networks.items():
        checkpoint.save_network(folder / name, cfg, random_params(abstract, rng))
    model_folder.write_speech_tokenizer(
        folder / model_folder.SPEECH_TOKENIZER, kind, f0_method="pyin"
    )
    config.write(vocab, folder / "vocab.json")
    model_folder.list_texts(folder)


def random_params(abstract: Params, rng: np.random.Generator) -> Params:
    """Random parameters: scales 1, biases 0, others normal with variance 1 / fan-in."""

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if path.endswith(("scale", "bias")):
            return np.full(shape, path.endswith("scale"), np.float32)
        inputs = 1 if path.endswith("embedding") else math.prod(shape[:-1])
        return rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(inputs))

    leaves = checkpoint.flatten(abstract)
    return checkpoint.unflatten({path: draw(path, leaf.shape) for path, leaf in leaves.items()})


def _speech_networks(kind: str) -> dict[str, tuple]:
    """(config, abstract parameters) of each network."""
    trunk = wav2vec2.TrunkConfig(conv_layers=(*CONV_LAYERS, (16, 2, 2)), **TRUNK)
    units = hubert.HubertUnits(
        hubert.HubertConfig(trunk=trunk),
        hubert.QuantizerConfig(vocab_size=500, dim=trunk.hidden_size),
    )
    unit_params = wav2vec2.abstract_params(units)
    expressive = kind == "expressive"
    vocoder = hifigan.HifiGanConfig(
        num_pitch=PITCH_UNITS if expressive else 0,
        num_style=STYLE_UNITS if expressive else 0,
        num_style_ids=0 if expressive else 26,
        speakers=("ex01", "ex02", "ex03", "ex04"),
        embedding_dim=8,
        upsample_rates=(20, 32),
        upsample_kernels=(40, 64),
        initial_channels=64,
        resblock_kernels=(3,),
        resblock_dilations=((3,),),
        duration_hidden=8,
    )
    networks = {
        "hubert": (units.config, unit_params["hubert"]),
        "quantizer": (units.quantizer, unit_params["quantizer"]),
        "hifigan": (vocoder, hifigan.abstract_params(hifigan.HifiGan(vocoder))),
    }
    if expressive:
        pitch_config = pitch.PitchConfig(
            downs=((4, 8, 2),) * 2,
            encoder=pitch.StackConfig(width=16, hidden=16, depth=1),
            decoder=pitch.StackConfig(width=16, hidden=16, depth=1, reverse=True),
            code_dim=16,
        )
        networks["pitch"] = (pitch_config, pitch.abstract_params(pitch.PitchVqVae(pitch_config)))
        style_config = style.StyleConfig(
            trunk=wav2vec2.TrunkConfig(input_norm_eps=1e-7, conv_layers=CONV_LAYERS, **TRUNK),
            projection_size=16,
            num_styles=STYLE_UNITS,
        )
        encoder = style.StyleEncoder(style_config)
        networks["style"] = (style_config, wav2vec2.abstract_params(encoder))
    return networks
