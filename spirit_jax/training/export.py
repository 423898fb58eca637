"""Exports the newest checkpoint of a run as a network folder or model folder."""

from pathlib import Path

import jax

from spirit_jax import files
from spirit_jax.training import run_folder
from spirit_jax.training.recipe import Recipe
from spirit_jax.training.step import TrainState


def export(recipe: Recipe, output: str | Path, allow_changes: bool = False) -> int:
    """Writes the trained network of a run, whole or not at all; the run may still be training.

    Args:
      recipe: of the run.
      output: the folder to create.
      allow_changes: accepts a config that differs from the one of the training.

    Returns:
      The step of the checkpoint.

    Raises:
      InputError: the run has no checkpoint, `output` exists, or the config differs.
    """
    files.refuse_existing(output)
    state = newest_state(recipe, allow_changes=allow_changes)
    with files.whole_folder(files.as_path(output)) as folder:
        recipe.write(state, folder)
    return int(state.step)


def newest_state(
    recipe: Recipe,
    devices: list[jax.Device] | None = None,
    allow_changes: bool = False,
    with_optimizer: bool = False,
) -> TrainState:
    """Reads the newest readable checkpoint of a run; the run's folder is not changed.

    Args:
      recipe: of the run.
      devices: to place it on; all by default.
      allow_changes: see `export`.
      with_optimizer: also reads the state of the optimizer.

    Returns:
      The state, on the devices.

    Raises:
      InputError: there is no checkpoint, or the config differs from the one of the training.
    """
    config = recipe.config
    mesh = config.mesh.make(jax.devices() if devices is None else devices)
    abstract = recipe.abstract_state(mesh)
    if not with_optimizer:  # an array that is `...` is not read
        abstract = abstract.replace(opt_state=jax.tree.map(lambda _: ..., abstract.opt_state))
    now = recipe.describe(with_data=False)
    restored = run_folder.read_newest(config, now, recipe.saved_part(abstract), allow_changes)
    return recipe.complete(restored.state, mesh)
