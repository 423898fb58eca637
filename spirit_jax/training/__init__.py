"""Trainings, by the name that a run config's `recipe` gives. Importing this is cheap."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from spirit_jax.errors import InputError

if TYPE_CHECKING:
    from spirit_jax.training.configs import LoopConfig

RECIPES = ("lm", "units", "quantizer", "pitch", "style", "vocoder")


def find_recipe(name: str) -> ModuleType:
    """The module of a training: it has `RunConfig`, `train` and `export`.

    Raises:
      InputError: there is none of that name.
    """
    _check_name(name)
    return importlib.import_module(f"spirit_jax.training.{name}")


def read_run_config(path: str | Path, overrides: Sequence[str] = ()) -> "LoopConfig":
    """The config of a run, of the recipe that the file or an override names.

    Imports neither JAX nor the recipe.

    Args:
      path: a JSON or YAML file.
      overrides: "KEY=VALUE" each; see `config.override`.

    Raises:
      InputError: the file or an override cannot be used, or the recipe has no such setting.
    """
    from spirit_jax import config
    from spirit_jax.training import run_configs

    values = config.override(config.read_mapping(path), overrides)
    name = values.get("recipe", "lm")
    _check_name(name)
    return config.from_dict(run_configs.BY_RECIPE[name], values, source=str(path))


def _check_name(name: object) -> None:
    if name not in RECIPES:
        raise InputError(f"recipe is '{name}', expected one of {', '.join(RECIPES)}.")
