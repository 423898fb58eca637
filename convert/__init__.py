"""Scripts that turn PyTorch checkpoints into model folders, and back."""

import importlib.util
import sys

_missing = [name for name in ("torch", "safetensors") if importlib.util.find_spec(name) is None]
if _missing and sys.argv[0] == "-m":  # true while Python looks for the module of `python -m`
    sys.exit(
        f"error: {' and '.join(_missing)} cannot be imported: conversion needs the extra convert "
        "(pip install -e '.[convert]')."
    )
