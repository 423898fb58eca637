"""Every config of the repository can be read and is consistent."""

import math
from pathlib import Path

import pytest

from spirit_jax import InputError, config
from spirit_jax.evaluation.run import EvalConfig
from spirit_jax.training import find_recipe, read_run_config
from spirit_jax.training.configs import OptimizerConfig
from spirit_jax.training.lm.config import LmRunConfig

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
TINY = sorted(path for path in (FOLDER / "tiny").glob("*.yaml") if path.stem != "eval")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_a_valid_run(path):
    run = config.read(LmRunConfig, path)
    assert path.stem in run.run_dir
    assert run.data.sources and all(source.path for source in run.data.sources)
    header = path.read_text().partition("run_dir:")[0]
    assert f"configs/{path.name}" in header  # the command that starts it
    if run.topology:
        chips = math.prod(int(n) for n in run.topology.split(":")[1].split("x"))
        mesh = run.mesh
        assert mesh.data * mesh.fsdp * mesh.tensor == chips
        assert run.data.batch_rows % chips == 0 and run.attention == "splash"


@pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
def test_every_tiny_config_is_a_valid_run_of_its_recipe(path):
    run = read_run_config(path)
    assert find_recipe(run.recipe).__name__.lower().startswith(run.recipe)
    assert run.run_dir.startswith("runs/tiny/") and run.data.sources
    command = f"train --config configs/tiny/{path.name}"
    assert command in path.read_text()


def test_evaluation_tasks_use_manifests_of_the_small_world():
    tasks = config.read(EvalConfig, FOLDER / "tiny" / "eval.yaml")
    known = {"asr", "asr-voice", "asr-real", "tts", "intent", "manner", "pairs", "answers", "facts"}
    assert {Path(task.manifest).stem for task in (*tasks.tasks, *tasks.pairs)} == known


@pytest.mark.parametrize(
    ("name", "value"),
    [("beta1", -0.1), ("beta2", 1.0), ("eps", -1.0), ("weight_decay", -1.0), ("final_share", 2.0)],
)
def test_optimizer_settings_out_of_range_are_rejected(name, value):
    with pytest.raises(InputError, match=name):
        OptimizerConfig(**{name: value})
