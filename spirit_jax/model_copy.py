"""Copies of model folders whose arrays are in another form; see `network_folder`."""

import dataclasses
from pathlib import Path

from spirit_jax import checkpoint, checksums, config, files, model_folder, network_folder
from spirit_jax.errors import InputError


def copy_model(folder: str | Path, output: str | Path, form: str) -> None:
    """Writes a copy, whole or not at all; networks of other folders that it shares are copied too.

    Args:
      folder: a model, a speech tokenizer or a network, by folder or name.
      output: the folder to create.
      form: one of `network_folder.FORMS`.

    Raises:
      InputError: there is no such folder, it has no networks or damaged ones, or `output` exists.
    """
    folder = model_folder.find_model(folder)
    network_folder.check_form(form)
    _refuse_others(folder)
    with files.whole_folder(output) as unfinished:
        if not _copy(folder, unfinished, form):
            raise InputError(f"{folder}: has no network in it.")


def _refuse_others(folder: Path) -> None:
    """Raises `InputError` for a folder of Hugging Face, which may have a model.safetensors too."""
    path = folder / "config.json"
    if path.is_file() and "model_type" in config.read_mapping(path):
        raise InputError(
            f"{folder}: looks like a folder of Hugging Face, which is converted by "
            f"spirit-jax convert llama --checkpoint {folder} --output MODEL_DIR."
        )


def _copy(folder: Path, output: Path, form: str) -> int:
    """Copies a folder and what is in it; returns the number of networks."""
    if network_folder.has_arrays(folder):
        checkpoint.copy_network(folder, output, form)
        return 1
    output.mkdir(exist_ok=True)
    count, shared = 0, {}
    if (folder / model_folder.CONFIG_NAME).is_file():
        tokenizer_config = config.read(
            model_folder.SpeechTokenizerConfig, folder / model_folder.CONFIG_NAME
        )
        shared = {name: model_folder.find_network(folder, name) for name in tokenizer_config.hashes}
    for name, path in ({path.name: path for path in folder.iterdir()} | shared).items():
        if path.is_dir():
            count += _copy(path, output / name, form)
        else:
            files.copy_file(path, output / name)
    if shared and tokenizer_config.shared:
        config.write(
            dataclasses.replace(tokenizer_config, shared=""), output / model_folder.CONFIG_NAME
        )
        checksums.list_files(output, [model_folder.CONFIG_NAME])
    return count
