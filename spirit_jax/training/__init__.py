"""Training: each network has a recipe, which `recipe` in a run config selects.

The code of a recipe is a folder with `config.py` (its run config), `recipe.py` (a subclass of
`training.recipe.Recipe`) and further modules. See docs/add-a-network.md. Importing this module does
not import JAX.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spirit_jax.errors import InputError

if TYPE_CHECKING:
    from spirit_jax.training.configs import LoopConfig
    from spirit_jax.training.recipe import Recipe

# Name of the folder: (class in its recipe.py, run config in its config.py).
RECIPES = {
    "lm": ("LmRecipe", "LmRunConfig"),
    "hubert": ("HubertRecipe", "HubertRunConfig"),
    "quantizer": ("QuantizerRecipe", "QuantizerRunConfig"),
    "pitch": ("PitchRecipe", "PitchRunConfig"),
    "style": ("StyleRecipe", "StyleRunConfig"),
    "vocoder": ("VocoderRecipe", "VocoderRunConfig"),
}


def find_recipe(name: str) -> "type[Recipe]":
    """The recipe class of this name.

    Raises:
      InputError: there is no recipe of that name.
    """
    return _find(name, "recipe", 0)


def find_config(name: str) -> "type[LoopConfig]":
    """The run config class of a recipe; imports neither JAX nor the recipe.

    Raises:
      InputError: there is no recipe of that name.
    """
    return _find(name, "config", 1)


def read_run_config(path: str | Path, overrides: Sequence[str] = ()) -> "LoopConfig":
    """Reads a run config; `recipe` in the file or an override selects its class.

    Args:
      path: a JSON or YAML file.
      overrides: strings "KEY=VALUE"; see `config.override`.

    Raises:
      InputError: the file or an override cannot be used, or the recipe has no such setting.
    """
    from spirit_jax import config

    values = config.override(config.read_mapping(path), overrides)
    return config.from_dict(find_config(values.get("recipe", "lm")), values, source=str(path))


def _find(name: object, module: str, index: int) -> type:
    """The class at an index of `RECIPES[name]`, from a module of the recipe's folder."""
    if name not in RECIPES:
        raise InputError(f"recipe is '{name}', expected one of {', '.join(RECIPES)}.")
    return getattr(
        importlib.import_module(f"spirit_jax.training.{name}.{module}"), RECIPES[name][index]
    )
