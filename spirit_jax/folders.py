"""Model folders, by path or by the name of a packaged model. Importing this is cheap."""

import difflib
import os
from pathlib import Path

from spirit_jax import files
from spirit_jax.errors import InputError

ASSETS = Path(__file__).parent / "assets"
SPEECH_TOKENIZER = "speech_tokenizer"  # folder of a model, and with .json the name of its config


def packaged_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.name for path in ASSETS.iterdir() if path.is_dir())


def find_model(name: str | Path) -> Path:
    """The folder at that path or, where there is none, the packaged model of that name.

    Raises:
      InputError: there is neither; lists the packaged models, the nearest name first.
    """
    if not isinstance(name, str | os.PathLike):
        raise InputError(f"A model is a folder or a name, not {type(name).__name__}.")
    folder = Path(name)
    try:
        is_folder, exists = folder.is_dir(), folder.exists()
    except OSError as error:  # such as a name of too many letters
        raise InputError(f"{str(name)[:80]}: no such folder ({files.describe(error)}).") from error
    if is_folder:
        return folder
    if exists:
        raise InputError(f"{name}: is a file; the folder or the name of a model was expected.")
    names = packaged_names()
    if len(folder.parts) == 1 and folder.name in names:
        return ASSETS / folder.name
    near = difflib.get_close_matches(folder.name, names, 1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise InputError(
        f"{name}: there is no such folder, and no packaged model of that name. {hint}"
        f"Packaged models are {', '.join(names)}."
    )


def find_language_model(name: str | Path) -> Path:
    """The folder of a model with a language model; raises `InputError` where there is none."""
    folder = find_model(name)
    if not (folder / "vocab.json").is_file() and (folder / "config.json").is_file():
        raise InputError(
            f"{folder}: is no model folder but looks like one of Hugging Face; convert it with "
            f"python -m convert.llama --checkpoint {folder} --output MODEL_DIR."
        )
    if not (folder / "vocab.json").is_file():
        raise InputError(
            f"{folder}: is no model folder (vocab.json is not there). The PyTorch release is "
            "converted by python -m convert.release."
        )
    return folder


def find_speech_tokenizer(name: str | Path) -> Path:
    """The folder of a speech tokenizer, given itself or a model that has one.

    Raises:
      InputError: there is no such folder or model, or it has no speech tokenizer.
    """
    folder = find_model(name)
    if (folder / SPEECH_TOKENIZER).is_dir():
        folder = folder / SPEECH_TOKENIZER
    if not (folder / f"{SPEECH_TOKENIZER}.json").is_file():
        raise InputError(
            f"{folder}: holds no speech tokenizer ({SPEECH_TOKENIZER}.json is not there)."
        )
    return folder


def find_aligner(name: str | Path) -> Path:
    """The folder of a CTC network, which finds when words are spoken.

    Raises:
      InputError: there is no such folder, or it holds something else; says what.
    """
    folder = find_model(name)
    about = files.read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if not isinstance(about, dict):
        about = {}
    if (folder / "params").is_dir() and "labels" in about:
        return folder
    if (folder / "vocab.json").is_file() and not about:
        kind = "is a Spirit LM"
    elif (folder / f"{SPEECH_TOKENIZER}.json").is_file():
        kind = "is a speech tokenizer"
    elif (folder / "params").is_dir():
        kind = "is another network"
    elif "model_type" in about:
        kind = f"looks like a {about['model_type']} of Hugging Face"
    else:
        kind = "has no network"
    raise InputError(
        f"{folder}: {kind}, no CTC aligner. Expected a folder that python -m convert.ctc writes."
    )


def find_network(folder: str | Path, name: str) -> Path:
    """The folder of a network.

    Args:
      folder: the network's, that of a set of networks that has it, or a model (by path or name).
      name: of the network in a set, such as "hubert".

    Raises:
      InputError: there is no such folder or model. The network itself may be missing.
    """
    folder = find_model(folder)
    if (folder / "params").is_dir():
        return folder
    if (folder / SPEECH_TOKENIZER).is_dir():
        folder /= SPEECH_TOKENIZER
    about, network = folder / f"{SPEECH_TOKENIZER}.json", folder / name
    if network.is_dir() or not about.is_file():
        return network
    values = files.read_json(about)
    shared = values.get("shared", "") if isinstance(values, dict) else ""
    if not isinstance(shared, str):
        raise InputError(f"{about}: shared is {shared!r}; expected the path of a folder.")
    return folder / shared / name
