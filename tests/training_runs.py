"""A small corpus and runs on it, for tests of training; their fixtures are in conftest.py."""

import json

import jax
from test_interleave import make_utterance

from spirit_jax.data.pipeline import DataConfig
from spirit_jax.data.records import write_shard
from spirit_jax.data.samples import SourceConfig
from spirit_jax.data.shard_list import Shard, write_list
from spirit_jax.training import loop
from spirit_jax.training.configs import MeshConfig
from spirit_jax.training.lm.config import LmRunConfig
from spirit_jax.training.lm.recipe import LmRecipe
from spirit_jax.training.optimizer import OptimizerConfig

STEPS = 7
ALL_FSDP = MeshConfig()


def write_corpus(folder):
    """Twenty utterances with units and word times."""
    words = "the object is called with a value and returns".split()
    path = folder / "a.arrayrecord"
    count = write_shard(path, [make_utterance(words, k, name=f"u{k}") for k in range(20)])
    write_list(folder, [Shard.of(path, count)], {})


def make_run(run_dir, model, corpus, mesh=ALL_FSDP, **changes):
    """A run of a few steps."""
    settings = {
        "steps": STEPS,
        "checkpoint_every": 2,
        "data": DataConfig((SourceConfig(str(corpus)),), seq_len=48, batch_rows=8, shards=8),
        "optimizer": OptimizerConfig(learning_rate=1e-2),
    }
    return LmRunConfig(run_dir=str(run_dir), model=str(model), mesh=mesh, **settings | changes)


# Settings that a step does not use.
UNUSED = {"run_dir", "seed", "random_init", "keep", "eval_sources", "eval_every", "eval_batches"}
UNUSED |= {"checkpoint_every", "checkpoint_minutes", "samples"}
_STEPS = {}  # jitted steps by the other settings and shardings


class SharedStepRecipe(LmRecipe):
    """The language model's training, whose step is traced and compiled once for equal settings.

    A resumed run in another process, as in `test_a_killed_run_resumes`, compiles its step again.
    """

    def jit_step(self, gradients, places):
        settings = {name: value for name, value in vars(self.config).items() if name not in UNUSED}
        leaves, structure = jax.tree.flatten(places)
        key = repr(settings), tuple(leaves), structure
        if key not in _STEPS:
            _STEPS[key] = super().jit_step(gradients, places)
        return _STEPS[key]


def run(config, devices=1, stop_after=None):
    """Losses of a run; `stop_after` that many the run is dropped."""
    steps = loop.train(SharedStepRecipe(config), jax.devices()[:devices])
    losses = []
    for metrics in steps:
        losses.append(metrics["loss"])
        if len(losses) == stop_after:
            steps.close()
            break
    return losses


def write_config(path, config):
    values = {
        "run_dir": config.run_dir,
        "model": config.model,
        "checkpoint_every": 2,
        "data": {
            "sources": [{"path": config.data.sources[0].path}],
            "seq_len": 48,
            "batch_rows": 8,
            "shards": 8,
        },
        "optimizer": {"learning_rate": 0.01},
    }
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


def losses_of(run_dir):
    """The losses of a run by its metrics, which have every step once."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert [line["step"] for line in metrics] == list(range(1, len(metrics) + 1))
    return [line["loss"] for line in metrics]
