"""Packed speech tokenizers with a flipped bit or a file cut short: loading notices it."""

import random

import pytest
from marks import slow

from fuzz.mutate import attempt
from spirit_jax import SpeechTokenizer, config, new_model
from spirit_jax.models.hubert import HubertConfig, QuantizerConfig
from spirit_jax.models.vocoder_configs import HifiGanConfig

CONFIGS = {"hubert": HubertConfig, "quantizer": QuantizerConfig, "hifigan": HifiGanConfig}


@pytest.fixture(scope="module")
def folder(base_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("fuzz") / "packed"
    new_model.pack(output, base_folder, vocoder=base_folder)
    return output


def read(folder):
    """The configs; loading compares the hashes of the parameters with those in the first."""
    networks = {
        name: config.read(cls, folder / name / "config.json") for name, cls in CONFIGS.items()
    }
    return SpeechTokenizer.from_pretrained(folder).config, networks


def damage(data, rng):
    """The data with one bit flipped, or cut short."""
    place = rng.randrange(len(data))
    if rng.random() < 0.25:
        return data[:place]
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


@pytest.mark.parametrize("seeds", [range(15), slow(range(15, 1_000))], ids=str)
def test_damaged_speech_tokenizers(seeds, folder):
    expected, files = (
        read(folder),
        [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size],
    )
    for seed in seeds:
        rng = random.Random(seed)
        path = rng.choice(files)
        original = path.read_bytes()
        path.write_bytes(damage(original, rng))
        result = attempt(lambda: read(folder), seed)
        path.write_bytes(original)
        assert result is None or result == expected, (seed, path)
