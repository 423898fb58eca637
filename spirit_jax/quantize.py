"""Writes a model folder with int8 weights, a quarter of the size of float32."""

from pathlib import Path

import jax
import numpy as np

from spirit_jax import checkpoint, config, files, model_folder
from spirit_jax.models import llama_weights
from spirit_jax.models.llama_config import LlamaConfig


def quantize_model(model: str | Path, output: str | Path) -> LlamaConfig:
    """Copies a model folder, with the matrices of the language model rounded to int8.

    Args:
      model: a model folder, or the name of a packaged model.
      output: the folder to write.

    Returns:
      The config of the written language model.

    Raises:
      InputError: the model cannot be read, has int8 weights already, or `output` exists.
    """
    folder = model_folder.find_language_model(model)
    cfg = config.read(LlamaConfig, folder / "llama" / "config.json")
    cfg.check_float(folder)
    params = checkpoint.load_params(folder / "llama")
    cfg, params = llama_weights.quantize_weights(cfg, params)
    with files.whole_folder(output) as unfinished:
        for path in folder.iterdir():
            if path.name == "llama":
                continue
            copy = files.copy_tree if path.is_dir() else files.copy_file
            copy(path, unfinished / path.name)
        checkpoint.save_network(unfinished / "llama", cfg, jax.tree.map(np.asarray, params))
    return cfg
