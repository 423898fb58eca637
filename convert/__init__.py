"""Scripts that turn PyTorch checkpoints into model folders, and back."""

import importlib.util
import sys

if importlib.util.find_spec("torch") is None or importlib.util.find_spec("safetensors") is None:
    sys.exit("error: conversion needs torch and safetensors: pip install -e '.[convert]'")
