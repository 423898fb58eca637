"""The trainings, by the name in a run config's `recipe`. Importing this does not import JAX.

Each training is a folder with `config.py` (its run config), `recipe.py` (a subclass of
`recipe.Recipe`) and further modules. See docs/add-a-network.md.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spirit_jax.errors import InputError

if TYPE_CHECKING:
    from spirit_jax.training.configs import LoopConfig
    from spirit_jax.training.recipe import Recipe

RECIPES = {  # by folder: the class in its recipe.py, and its run config in config.py
    "lm": ("LmRecipe", "LmRunConfig"),
    "hubert": ("HubertRecipe", "HubertRunConfig"),
    "quantizer": ("QuantizerRecipe", "QuantizerRunConfig"),
    "pitch": ("PitchRecipe", "PitchRunConfig"),
    "style": ("StyleRecipe", "StyleRunConfig"),
    "vocoder": ("VocoderRecipe", "VocoderRunConfig"),
}


def find_recipe(name: str) -> "type[Recipe]":
    """The recipe class of a training.

    Raises:
      InputError: there is no training of that name.
    """
    return _find(name, "recipe", 0)


def find_config(name: str) -> "type[LoopConfig]":
    """The run config class of a training; imports neither JAX nor the recipe.

    Raises:
      InputError: there is no training of that name.
    """
    return _find(name, "config", 1)


def read_run_config(path: str | Path, overrides: Sequence[str] = ()) -> "LoopConfig":
    """Reads the config of a run; its class follows from `recipe` in the file or an override.

    Args:
      path: a JSON or YAML file.
      overrides: "KEY=VALUE" each; see `config.override`.

    Raises:
      InputError: the file or an override cannot be used, or the recipe has no such setting.
    """
    from spirit_jax import config

    values = config.override(config.read_mapping(path), overrides)
    return config.from_dict(find_config(values.get("recipe", "lm")), values, source=str(path))


def _find(name: object, module: str, place: int) -> type:
    if name not in RECIPES:
        raise InputError(f"recipe is '{name}', expected one of {', '.join(RECIPES)}.")
    return getattr(
        importlib.import_module(f"spirit_jax.training.{name}.{module}"), RECIPES[name][place]
    )
