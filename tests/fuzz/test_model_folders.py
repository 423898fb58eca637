"""Damaged model folders: reading gives the original content or an `InputError`."""

import random
import shutil

import numpy as np
import pytest

from fuzz.mutate import attempt, mutate_bytes, seeds
from spirit_jax import checkpoint, config
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.text import load_text_tokenizer
from spirit_jax.vocab import Vocab

ARRAYS = {
    "embed": {"embedding": np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)},
    "norm": {"scale": np.ones(4, np.float16)},
}
CONFIG = LlamaConfig(64, 32, 64, 1, 2, 2, 16)
TEXT = "the object is called [Speech] with a value"


@pytest.fixture(scope="module")
def folder(base_folder, tmp_path_factory):
    """A model folder with small arrays, so that it is read in milliseconds."""
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    shutil.copytree(base_folder, folder, ignore=shutil.ignore_patterns("llama", "speech_tokenizer"))
    checkpoint.save_network(folder / "llama", CONFIG, ARRAYS)
    return folder


def read(folder):
    vocab = config.read(Vocab, folder / "vocab.json")
    network_config, params = checkpoint.load_network(folder / "llama", LlamaConfig)
    ids = load_text_tokenizer(folder / "text_tokenizer", vocab).encode(TEXT)
    return vocab, network_config, checkpoint.hash_params(params), ids


@seeds
def test_damaged_files(seeds, folder):
    expected, files = read(folder), [path for path in folder.rglob("*") if path.is_file()]
    for seed in seeds:
        path = random.Random(seed).choice(files)
        original = path.read_bytes()
        if seed % 20 == 0:
            path.unlink()
        else:
            path.write_bytes(mutate_bytes(original, seed))
        result = attempt(lambda: read(folder), seed)
        path.write_bytes(original)
        # Earlier versions wrote no checksums, so a folder without them may be read.
        assert result is None or result == expected, (seed, path)
