"""Every number in a network config has limits, and values out of range are rejected."""

import dataclasses
import functools
import json

import pytest

from spirit_jax import config
from spirit_jax.data.configs import DataConfig, SpeechDataConfig
from spirit_jax.data.toy import write_toy_corpus
from spirit_jax.errors import InputError
from spirit_jax.evaluation.configs import EvalConfig
from spirit_jax.generation.config import GenerationConfig
from spirit_jax.models.attention import RopeScaling
from spirit_jax.models.ctc import CtcConfig
from spirit_jax.models.discriminators import DiscriminatorConfig
from spirit_jax.models.fcpe import FcpeConfig
from spirit_jax.models.frames import MelConfig
from spirit_jax.models.hifigan import HifiGanConfig
from spirit_jax.models.hubert import HubertConfig, QuantizerConfig
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.models.pitch import PitchConfig, StackConfig
from spirit_jax.models.style import StyleConfig
from spirit_jax.models.wav2vec2 import TrunkConfig
from spirit_jax.new_model import extend_model
from spirit_jax.random_model import write_random_model
from spirit_jax.training.configs import KMeansConfig
from spirit_jax.training.hubert.config import HubertRunConfig
from spirit_jax.training.lm.config import LmRunConfig
from spirit_jax.vocab import Vocab

CONFIGS = [
    RopeScaling,
    CtcConfig,
    DiscriminatorConfig,
    FcpeConfig,
    HifiGanConfig,
    HubertConfig,
    QuantizerConfig,
    LlamaConfig,
    MelConfig,
    PitchConfig,
    StackConfig,
    StyleConfig,
    TrunkConfig,
    Vocab,
]
ABSURD = (10**30, -(10**30), -1, float("nan"), float("inf"), 1e300, "x", True)


def with_number(value, new):
    """A default value with its first number replaced; None if it has no number."""
    if isinstance(value, tuple) and value:
        first = with_number(value[0], new)
        return None if first is None else (first, *value[1:])
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return new if is_number else None


@pytest.mark.parametrize("cls", CONFIGS)
def test_absurd_numbers_are_rejected(cls):
    cls()  # the defaults are fine
    for field in dataclasses.fields(cls):
        for new in ABSURD:
            value = with_number(field.default, new)
            if value is not None:
                with pytest.raises(InputError, match=r"\w"):
                    cls(**{field.name: value})
        if isinstance(field.default, bool):
            with pytest.raises(InputError, match=field.name):
                cls(**{field.name: 1})


@pytest.mark.parametrize("cls", CONFIGS)
def test_config_files_with_absurd_numbers_are_rejected(cls, tmp_path):
    path = tmp_path / "config.json"
    for field in dataclasses.fields(cls):
        for new in (10**30, float("nan"), None):
            value = with_number(field.default, new)
            is_needed = isinstance(field.default, int | float) and "None" not in str(field.type)
            if value is not None or (new is None and is_needed):
                path.write_text(json.dumps({field.name: value}))
                with pytest.raises(InputError, match="config.json"):
                    config.read(cls, path)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (LlamaConfig, {"num_layers": 0}, "num_layers"),
        (LlamaConfig, {"num_kv_heads": 0}, "num_kv_heads"),
        (LlamaConfig, {"num_kv_heads": 5}, "cannot share 5"),
        (LlamaConfig, {"head_dim": 3}, "even"),
        (TrunkConfig, {"num_heads": 0}, "num_heads"),
        (TrunkConfig, {"num_heads": 7}, "7 heads"),
        (TrunkConfig, {"conv_pos_groups": 0}, "conv_pos_groups"),
        (TrunkConfig, {"conv_layers": ((8, 0, 1),)}, "conv_layers"),
        (TrunkConfig, {"conv_layers": ((8, 3),)}, "triples"),
        (TrunkConfig, {"precision": "low"}, "precision"),
        (TrunkConfig, {"conv_layers": ((8, 3, 1),) * 5_000}, "5000 items"),
        (HifiGanConfig, {"upsample_rates": (0, 640), "upsample_kernels": (2, 642)}, "rates"),
        (HifiGanConfig, {"resblock_kernels": (), "resblock_dilations": ()}, "resblock_kernels"),
        (PitchConfig, {"downs": ()}, "downs"),
        (StackConfig, {"growth": 60, "depth": 60}, "dilated"),
        (FcpeConfig, {"hop": 2_000}, "hop 2000"),
        (FcpeConfig, {"norm_groups": 3}, "norm_groups"),
        (RopeScaling, {"high_freq_factor": 1.0}, "must differ"),
    ],
)
def test_inconsistent_numbers_are_rejected(cls, values, message):
    with pytest.raises(InputError, match=message):
        cls(**values)


@pytest.mark.parametrize("seed", [-1, 2**32])
@pytest.mark.parametrize(
    "make",
    [
        DataConfig,
        SpeechDataConfig,
        KMeansConfig,
        EvalConfig,
        functools.partial(LmRunConfig, run_dir="run", model="spirit-tiny-base"),
        functools.partial(HubertRunConfig, run_dir="run"),
    ],
    ids=str,
)
def test_seeds_outside_32_bits_are_rejected(make, seed):
    with pytest.raises(InputError, match=f"seed is {seed}"):
        make(seed=seed)


@pytest.mark.parametrize("name", ["max_new_tokens", "temperature", "top_p", "seed"])
def test_a_list_for_a_number_is_rejected(name):
    with pytest.raises(InputError, match=f"{name} is .1.; expected one number"):
        GenerationConfig(**{"do_sample": True, name: [1]})


@pytest.mark.parametrize("seed", [-1, 1 << 32, 1.0, True, "1", None])
def test_every_seed_is_checked_before_anything_is_written(seed, base_folder, tmp_path):
    for write in (
        lambda: extend_model(tmp_path / "out", base_folder, base_folder, seed),
        lambda: write_random_model(tmp_path / "out", "base", seed),
        lambda: write_toy_corpus(tmp_path / "out", 1, seed),
    ):
        with pytest.raises(InputError, match="seed is .*expected a whole number from 0"):
            write()
    assert not list(tmp_path.iterdir())
