"""Damaged run configs and overrides: applied as given, or rejected with an `InputError`."""

import dataclasses
import random
from pathlib import Path

import pytest

from fuzz.mutate import STRINGS, VALUES, attempt, mutate_bytes, mutate_json, mutate_text, seeds
from spirit_jax import config
from spirit_jax.evaluation.configs import EvalConfig
from spirit_jax.training import read_run_config
from spirit_jax.training.lm.config import LmRunConfig

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
RUN = {
    "run_dir": "run",
    "model": "spirit-tiny-base",
    "compiler_options": {"xla_x": "1"},
    "optimizer": {"learning_rate": 1e-4, "schedule": "cosine"},
    "data": {"sources": [{"path": "a", "share": 2.0, "interleave": {"text_words": [3, 9]}}]},
    "lora": {"rank": 4, "layers": ["q", "v"]},
}
EVAL = {"seed": 3, "tasks": [{"name": "a", "manifest": "b.jsonl", "ask": "[Text]{text}"}]}


def agrees(value, result) -> bool:
    """Whether a config has the given values; a number may have become a string."""
    if isinstance(value, dict):
        fields = dataclasses.asdict(result) if dataclasses.is_dataclass(result) else result
        return all(agrees(item, fields[name]) for name, item in value.items())
    if isinstance(value, list):
        return len(value) == len(result) and all(map(agrees, value, result))
    return value == result or str(value) == str(result) or value == str(result)


@seeds
@pytest.mark.parametrize(
    ("cls", "valid"), [(LmRunConfig, RUN), (EvalConfig, EVAL)], ids=["lm", "eval"]
)
def test_damaged_values_are_applied_or_rejected(cls, valid, seeds):
    for seed in seeds:
        values = mutate_json(valid, seed)
        if isinstance(values, dict):
            result = attempt(lambda: config.from_dict(cls, values), seed)  # noqa: B023
            assert result is None or agrees(values, result), f"seed {seed}: {values} -> {result}"


@seeds
def test_damaged_files_are_read_or_rejected(seeds, tmp_path):
    path = tmp_path / "run.yaml"
    for seed in seeds:
        data = CONFIGS[seed % len(CONFIGS)].read_bytes()
        damage = mutate_bytes if seed % 2 else lambda d, s: _encode(mutate_text(d.decode(), s))
        path.write_bytes(damage(data, seed))
        attempt(lambda: read_run_config(path), seed)


@seeds
def test_damaged_overrides_are_applied_or_rejected(seeds):
    for seed in seeds:
        rng = random.Random(seed)
        key = rng.choice(("steps", "data.seed", "data.sources[0].share", "lora.layers", "model"))
        value = rng.choice(
            (*STRINGS, *map(str, VALUES), "[1", "{a", "2", "1e3", "&a *a", "!!int x")
        )
        override = mutate_text(f"{key}={value}", seed)
        attempt(lambda: config.from_dict(LmRunConfig, RUN, [override]), seed)  # noqa: B023


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
