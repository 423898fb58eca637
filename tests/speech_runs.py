"""Trainings of speech networks, for tests.

A test module that names this one in `pytest_plugins` has a fixture `config`, a short run with
`run_dir` FOLDER/whole, and a fixture `recipe`, the recipe of that run.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from spirit_jax.models.wav2vec2 import TrunkConfig
from spirit_jax.training import loop
from spirit_jax.training.export import export, newest_state
from spirit_jax.training.recipe import Recipe

TRUNK = TrunkConfig(  # of 25 frames a second, with an inner layer
    conv_layers=((16, 40, 20), (16, 32, 32)),
    conv_pos=8,
    conv_pos_groups=2,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    ffn_size=32,
)


@pytest.fixture(scope="module")
def whole(recipe) -> list:
    """The metrics of a run from its first step to its last."""
    return run(recipe)


@pytest.fixture(scope="module")
def final_state(recipe, whole) -> Any:
    """The state after the last step, in NumPy arrays."""
    return jax.tree.map(np.asarray, load_state(recipe))


@pytest.fixture(scope="module")
def exported(recipe, whole) -> Path:
    """The folder of the networks that the run exported."""
    folder = Path(recipe.config.run_dir) / "exported"
    assert export(recipe, folder) == recipe.config.steps
    return folder


def changed(config: Any, name: str, **changes: Any) -> Any:
    """The same run but for some changes, in a folder beside that of the run `whole`."""
    run_dir = config.run_dir.replace("whole", name)
    return dataclasses.replace(config, run_dir=run_dir, **changes)


def without_evaluation(config: Any) -> Any:
    """The same run without held-out data."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, held_out=()))


_STEPS: dict = {}  # jitted steps


def _jit_step(recipe: Recipe, gradients: Any, places: Any) -> Any:
    """The jitted step of a recipe; runs of equal settings share it, and compile it once."""
    settings = dataclasses.replace(without_evaluation(recipe.config), run_dir="any")
    leaves, structure = jax.tree.flatten(places)
    key = type(recipe), repr(settings), gradients.__name__, tuple(leaves), structure
    if key not in _STEPS:
        _STEPS[key] = type(recipe).jit_step(recipe, gradients, places)
    return _STEPS[key]


def run(recipe: Recipe, devices: int = 1, stop_after: int | None = None) -> list:
    """The metrics of the steps of a run, to its end or to where it is stopped."""
    recipe.jit_step = functools.partial(_jit_step, recipe)
    steps, lines = loop.train(recipe, jax.devices()[:devices]), []
    for line in steps:
        lines.append(line)
        if len(lines) == stop_after:
            steps.close()
            break
    return lines


def load_state(recipe: Recipe) -> Any:
    """The state of a run's newest checkpoint."""
    return newest_state(recipe, jax.devices()[:1], with_optimizer=True)


def losses(lines: list) -> list[float]:
    """The losses of the steps of a run."""
    return [line["loss"] for line in lines]
