"""Trainings, by the name that a run config's `recipe` gives."""

import importlib
from types import ModuleType

from spirit_jax.errors import InputError

RECIPES = ("lm", "units", "quantizer", "pitch", "style", "vocoder")


def find_recipe(name: str) -> ModuleType:
    """The module of a training: it has `RunConfig`, `train` and `export`.

    Raises:
      InputError: there is none of that name.
    """
    if name not in RECIPES:
        raise InputError(f"recipe is '{name}', expected one of {', '.join(RECIPES)}.")
    return importlib.import_module(f"spirit_jax.training.{name}")
