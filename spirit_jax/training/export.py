"""From a run's newest checkpoint to a model folder for generation."""

import dataclasses
import operator
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spirit_jax import checkpoint, files, folders, speech_tokenizer, transcription
from spirit_jax.models import llama
from spirit_jax.training import lm, lora, run_folder
from spirit_jax.training.checkpoints import abstract_state
from spirit_jax.training.step import merge


def export(
    config: lm.RunConfig, output: str | Path, half: bool = False, allow_changes: bool = False
) -> int:
    """Writes a model folder, whole or not at all: the run's language model, the rest as it was.

    Args:
      config: of the run; `model` is where vocabulary, text and speech tokenizer are copied from.
      output: a folder that is not there yet.
      half: stores the language model in float16, at half the size.
      allow_changes: the config may differ from what the run was trained with.

    Returns:
      The step of the checkpoint.

    Raises:
      InputError: the run has no checkpoint, `output` exists, or the config is not that of the run.
    """
    output, source = Path(output), folders.find_language_model(config.model)
    files.refuse_existing(output)
    model = lm.make_model(config)
    step, params = load_params(config, model, allow_changes=allow_changes)
    with files.whole_folder(output) as folder:
        own = speech_tokenizer.FOLDER
        without = shutil.ignore_patterns("llama", own, transcription.CONFIG_NAME)
        shutil.copytree(source, folder, ignore=without, dirs_exist_ok=True)
        transcription.copy_config(source, folder)
        if (source / own).is_dir():
            speech_tokenizer.copy_whole(source / own, folder / own)
        parts = _by_layer(params, model.config.num_layers)
        if half:
            parts = (jax.tree.map(checkpoint.halve, part) for part in parts)
        checkpoint.save_network(folder / "llama", _with_length(model.config, config), parts)
    return step


def _with_length(sizes: llama.LlamaConfig, config: lm.RunConfig) -> llama.LlamaConfig:
    """The sizes, with the longest sequence of training; unknown if that of the start is."""
    if not config.random_init and not sizes.trained_positions:
        return sizes
    start = 0 if config.random_init else sizes.trained_positions
    return dataclasses.replace(sizes, trained_positions=max(start, config.data.seq_len))


def load_params(
    config: lm.RunConfig,
    model: llama.Llama,
    devices: list[jax.Device] | None = None,
    allow_changes: bool = False,
) -> tuple[int, Any]:
    """(step, parameters of the plain model) of a run's newest whole checkpoint.

    Args:
      config: of the run.
      model: what `lm.make_model` gives.
      devices: to place them on; all by default.
      allow_changes: see `export`.
    """
    mesh = config.mesh.make(jax.devices() if devices is None else devices)
    optimizer = lm.make_optimizers(config, lm.read_vocab(config))
    shapes, places = lm.abstract_train_state(config, model, optimizer, mesh)
    wanted = abstract_state(shapes, places)
    without_moments = jax.tree.map(lambda _: ..., wanted.opt_state)  # these are not read
    wanted = wanted.replace(opt_state=without_moments)
    now = lm.describe(config, with_data=False)
    state = run_folder.read_newest(config, now, wanted, allow_changes).state
    params = merge(state.params, state.frozen)
    if config.lora.rank:
        params = lora.merge_products(params, config.lora)
    return int(state.step), params


def _by_layer(params: Any, num_layers: int) -> Iterator[Any]:
    """The parameters in parts on the host, a layer at a time, stacked layers taken apart."""
    yield jax.tree.map(np.asarray, {name: params[name] for name in params if name != "layers"})
    layers = params["layers"]
    for number in range(num_layers):
        own = layers.get(str(number))
        if own is None:
            own = jax.tree.map(operator.itemgetter(number), layers)
        yield {"layers": {str(number): jax.tree.map(np.asarray, own)}}
