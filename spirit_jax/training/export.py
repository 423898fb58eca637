"""From a run's newest checkpoint to a network or model folder."""

from pathlib import Path

import jax

from spirit_jax import files
from spirit_jax.training import run_folder
from spirit_jax.training.recipe import Recipe
from spirit_jax.training.step import TrainState


def export(recipe: Recipe, output: str | Path, allow_changes: bool = False) -> int:
    """Writes the result of a run, whole or not at all; the run may still be going.

    Args:
      recipe: of the run.
      output: a folder that is not there yet.
      allow_changes: the config may differ from what the run was trained with.

    Returns:
      The step of the checkpoint.

    Raises:
      InputError: the run has no checkpoint, `output` exists, or the config is not that of the run.
    """
    files.refuse_existing(output)
    state = newest_state(recipe, allow_changes=allow_changes)
    with files.whole_folder(Path(output)) as folder:
        recipe.write(state, folder)
    return int(state.step)


def newest_state(
    recipe: Recipe,
    devices: list[jax.Device] | None = None,
    allow_changes: bool = False,
    with_optimizer: bool = False,
) -> TrainState:
    """The state of a run's newest whole checkpoint; nothing is changed in the run's folder.

    Args:
      recipe: of the run.
      devices: to place it on; all by default.
      allow_changes: see `export`.
      with_optimizer: reads the optimizer's state too.

    Raises:
      InputError: there is none, or the config is not that of the run.
    """
    config = recipe.config
    mesh = config.mesh.make(jax.devices() if devices is None else devices)
    abstract = recipe.abstract_state(mesh)
    if not with_optimizer:  # `...` in place of an array: it is not read
        abstract = abstract.replace(opt_state=jax.tree.map(lambda _: ..., abstract.opt_state))
    now = recipe.describe(with_data=False)
    return run_folder.read_newest(config, now, abstract, allow_changes).state
