"""Model folders: how they and their speech tokenizers are found, written, copied and hashed.

    MODEL_DIR/vocab.json, text_tokenizer/, llama/
    MODEL_DIR/speech_tokenizer/speech_tokenizer.json, hubert/, quantizer/, ...

Folders of single networks (config and arrays) are read and written by `checkpoint`. Importing this
does not import JAX.
"""

import dataclasses
import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spirit_jax import checksums, config, files, hub, network_folder
from spirit_jax.errors import InputError

ASSETS = Path(__file__).parent / "assets"  # with the packaged models
SPEECH_TOKENIZER = "speech_tokenizer"  # folder of a model
CONFIG_NAME = f"{SPEECH_TOKENIZER}.json"
NETWORKS = {  # of a speech tokenizer, by its kind
    "base": ("hubert", "quantizer", "hifigan"),
    "expressive": ("hubert", "quantizer", "pitch", "style", "fcpe", "hifigan"),
}
UNIT_NETWORKS = ("hubert", "quantizer", "pitch", "style")
OPTIONAL_NETWORKS = ("fcpe", "hifigan")  # may be missing
F0_METHODS = ("fcpe", "pyin")


@dataclasses.dataclass(frozen=True)
class SpeechTokenizerConfig:
    """The config of a speech tokenizer's folder.

    Attributes:
      kind: "base" (phonetic units) or "expressive" (with pitch and style).
      f0_method: "fcpe" or "pyin", for pitch units.
      chunk_seconds: longer audio is split into chunks of this length, which are encoded separately.
      shared: relative path of another speech tokenizer, which has the networks that are missing
        here; "" for none.
      hashes: SHA-256 of the parameters of each network, by folder name. They ensure that networks
        belong together, since a vocoder needs the units of its encoder and quantizer.
    """

    kind: str = "base"
    f0_method: str = "fcpe"
    chunk_seconds: float = 100.0
    shared: str = ""
    hashes: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.kind not in NETWORKS:
            raise InputError(f"kind is '{self.kind}', expected {' or '.join(NETWORKS)}.")
        if self.f0_method not in F0_METHODS:
            raise InputError(
                f"f0_method is '{self.f0_method}', expected {' or '.join(F0_METHODS)}."
            )
        if not 1 <= self.chunk_seconds <= 1000:
            raise InputError(f"chunk_seconds is {self.chunk_seconds}, expected 1 to 1000.")


def unit_hashes(tokenizer_config: SpeechTokenizerConfig) -> dict[str, str]:
    """The hashes of the networks that define units: all but the vocoder and the F0 network."""
    hashes = tokenizer_config.hashes
    return {name: hashes[name] for name in UNIT_NETWORKS if name in hashes}


def read_unit_hashes(folder: str | Path) -> dict[str, str]:
    """`unit_hashes` of a model folder's speech tokenizer; empty where it has none."""
    path = find_model(folder) / SPEECH_TOKENIZER / CONFIG_NAME
    return unit_hashes(config.read(SpeechTokenizerConfig, path)) if path.is_file() else {}


def packaged_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.name for path in ASSETS.iterdir() if path.is_dir())


def find_model(name: str | Path) -> Path:
    """The folder of a model, given its path, the name of a packaged model, or one of the hub.

    An existing folder comes first. `org/name` and `org/name@revision` are fetched by `hub.fetch`.

    Raises:
      InputError: there is none of them; the message lists the packaged models.
    """
    if not isinstance(name, str | os.PathLike):
        raise InputError(f"A model is a folder or a name, not {type(name).__name__}.")
    folder = files.as_path(name)
    try:
        is_folder, exists = folder.is_dir(), folder.exists()
    except OSError as error:  # such as a name that is too long
        raise InputError(f"{str(name)[:80]}: no such folder ({files.describe(error)}).") from error
    if is_folder:
        return folder
    files.refuse_unfinished(folder)
    if exists:
        raise InputError(f"{name}: is a file; the folder or the name of a model was expected.")
    if files.is_bucket(folder):
        raise InputError(f"{folder}: there is no such folder.")
    names = packaged_names()
    if len(folder.parts) == 1 and folder.name in names:
        return ASSETS / folder.name
    repository = hub.parse_name(name)
    if repository is not None:
        return hub.fetch(*repository)
    near = difflib.get_close_matches(folder.name, names, 1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise InputError(
        f"{name}: there is no such folder, and no packaged model of that name. {hint}"
        f"Packaged models are {', '.join(names)}."
    )


def find_language_model(name: str | Path) -> Path:
    """The folder of a model, like `find_model`; raises `InputError` without a language model."""
    folder = find_model(name)
    if not (folder / "vocab.json").is_file() and (folder / "config.json").is_file():
        raise InputError(
            f"{folder}: is not a model folder; it looks like one of Hugging Face. Convert it with "
            f"spirit-jax convert llama --checkpoint {folder} --output MODEL_DIR."
        )
    if not (folder / "vocab.json").is_file():
        raise InputError(
            f"{folder}: is not a model folder (vocab.json is not there). The PyTorch release is "
            "converted by spirit-jax convert release."
        )
    return folder


def find_speech_tokenizer(name: str | Path) -> Path:
    """The folder of a speech tokenizer, given this folder or a model.

    Raises:
      InputError: there is no such folder or model, or it has no speech tokenizer.
    """
    folder = find_model(name)
    if (folder / SPEECH_TOKENIZER).is_dir():
        folder = folder / SPEECH_TOKENIZER
    if not (folder / CONFIG_NAME).is_file():
        raise InputError(f"{folder}: has no speech tokenizer ({CONFIG_NAME} is missing).")
    return folder


def find_aligner(name: str | Path) -> Path:
    """The folder of a CTC network, for aligning words.

    Raises:
      InputError: there is no such folder, or it is something else; the message says what.
    """
    folder = find_model(name)
    path = folder / "config.json"
    hf_config = files.read_json(path) if path.is_file() else {}
    if not isinstance(hf_config, dict):
        hf_config = {}
    if network_folder.has_arrays(folder) and "labels" in hf_config:
        return folder
    if (folder / "vocab.json").is_file() and not hf_config:
        kind = "is a Spirit LM"
    elif (folder / CONFIG_NAME).is_file():
        kind = "is a speech tokenizer"
    elif "model_type" in hf_config:
        kind = f"looks like a {hf_config['model_type']} of Hugging Face"
    elif network_folder.has_arrays(folder):
        kind = "is another network"
    else:
        kind = "has no network"
    raise InputError(
        f"{folder}: {kind}, not a CTC aligner. Expected a folder that spirit-jax convert "
        "ctc writes."
    )


def find_network(folder: str | Path, name: str) -> Path:
    """The folder of a network, which may be missing.

    Args:
      folder: the network's folder, a speech tokenizer, or a model (by path or name).
      name: name of the network in a speech tokenizer, such as "hubert".

    Raises:
      InputError: there is no such folder or model.
    """
    folder = find_model(folder)
    if network_folder.has_arrays(folder):
        return folder
    if (folder / SPEECH_TOKENIZER).is_dir():
        folder /= SPEECH_TOKENIZER
    config_path, network = folder / CONFIG_NAME, folder / name
    if network.is_dir() or not config_path.is_file():
        return network
    values = files.read_json(config_path)
    shared = values.get("shared", "") if isinstance(values, dict) else ""
    if not isinstance(shared, str):
        raise InputError(f"{config_path}: shared is {shared!r}; expected the path of a folder.")
    return files.without_dots(folder / shared / name)


def fingerprint(folder: str | Path) -> str:
    """A checksum of the content of a folder, such as a model; 16 hex digits.

    It is computed from the checksum lists of arrays, the hashes in the config of a speech tokenizer
    (also for shared networks), and the bytes of all other files. Hidden files are ignored.

    Raises:
      InputError: a file cannot be read, or a network is missing.
    """
    folder = files.as_path(folder)
    tokenizers = [path.parent for path in folder.rglob(CONFIG_NAME)]
    apart = {*tokenizers, *(path.parent for path in folder.rglob(f"params/{checksums.LIST}"))}
    listed = {path for path in folder.rglob("*.safetensors") if checksums.read_arrays(path)}
    paths = [
        path
        for path in files.walk(folder)
        if path not in listed
        and not path.name.startswith(".")
        and set(tokenizers).isdisjoint(path.parents)
        and (path.name == checksums.LIST or apart.isdisjoint(path.parents))
    ]
    entries: list[tuple[Path, Any]] = [(path, _networks(path)) for path in tokenizers]
    entries += zip(paths, checksums.of_files(paths), strict=True)
    named = {path.relative_to(folder).as_posix(): content for path, content in entries}
    return checksums.of_value(named)[:16]


def _networks(tokenizer: Path) -> dict[str, Any]:
    """The config of a speech tokenizer, without `shared`, and checksums of network configs."""
    tokenizer_config = config.read(SpeechTokenizerConfig, tokenizer / CONFIG_NAME)
    paths = [
        find_network(tokenizer, name) / "config.json" for name in sorted(tokenizer_config.hashes)
    ]
    values = dataclasses.asdict(tokenizer_config) | {"shared": ""}
    return values | {"configs": checksums.of_files(paths)}


def list_texts(folder: str | Path) -> None:
    """Writes the checksums of a model folder's vocabulary and text tokenizer."""
    folder = files.as_path(folder)
    names = [file.relative_to(folder).as_posix() for file in folder.glob("text_tokenizer/*")]
    checksums.list_files(folder, ["vocab.json", *names])


def write_speech_tokenizer(
    folder: str | Path, kind: str, f0_method: str = "fcpe"
) -> SpeechTokenizerConfig:
    """Writes the config of a speech tokenizer, with the hashes of its networks.

    Args:
      folder: with the networks.
      kind: "base" or "expressive".
      f0_method: see `SpeechTokenizerConfig`.

    Returns:
      The config.

    Raises:
      InputError: a network cannot be read.
    """
    folder = files.as_path(folder)
    names = [name for name in NETWORKS[kind] if (folder / name).is_dir()]
    hashes = {name: _hash_network(folder / name) for name in names}
    tokenizer_config = SpeechTokenizerConfig(kind, f0_method, hashes=hashes)
    config.write(tokenizer_config, folder / CONFIG_NAME)
    checksums.list_files(folder, [CONFIG_NAME])
    return tokenizer_config


def add_hash(folder: str | Path, network: str) -> None:
    """Adds the hash of a new network to the config of a speech tokenizer."""
    folder = files.as_path(folder)
    tokenizer_config = config.read(SpeechTokenizerConfig, folder / CONFIG_NAME)
    hashes = tokenizer_config.hashes | {network: _hash_network(folder / network)}
    config.write(dataclasses.replace(tokenizer_config, hashes=hashes), folder / CONFIG_NAME)


def share_networks(folder: str | Path, other: str | Path, output: str | Path) -> None:
    """Removes networks that another speech tokenizer has, and refers to that one instead.

    Args:
      folder: the speech tokenizer from which networks are removed.
      other: the speech tokenizer that has them.
      output: the final path of `folder`; the reference is relative to it.
    """
    folder, other = files.as_path(folder), files.as_path(other)
    tokenizer_config = config.read(SpeechTokenizerConfig, folder / CONFIG_NAME)
    known = config.read(SpeechTokenizerConfig, other / CONFIG_NAME).hashes
    for name, sha in tokenizer_config.hashes.items():
        if known.get(name) == sha and (other / name).is_dir():
            files.remove_tree(folder / name)
    shared = os.path.relpath(other, output)
    config.write(dataclasses.replace(tokenizer_config, shared=shared), folder / CONFIG_NAME)


def copy_speech_tokenizer(folder: str | Path, output: str | Path) -> SpeechTokenizerConfig:
    """Copies a speech tokenizer, including shared networks.

    Args:
      folder: the speech tokenizer.
      output: the folder to create.

    Returns:
      The config of the copy.

    Raises:
      InputError: a network is missing.
    """
    folder, output = files.as_path(folder), files.as_path(output)
    tokenizer_config = config.read(SpeechTokenizerConfig, folder / CONFIG_NAME)
    files.copy_tree(folder, output)
    for name in tokenizer_config.hashes:
        network = find_network(folder, name)
        if not network.is_dir():
            raise InputError(f"{folder}: the network '{name}' is missing (incomplete copy?).")
        if not (output / name).is_dir():
            files.copy_tree(network, output / name)
    tokenizer_config = dataclasses.replace(tokenizer_config, shared="")
    config.write(tokenizer_config, output / CONFIG_NAME)
    return tokenizer_config


def _hash_network(folder: Path) -> str:
    from spirit_jax import checkpoint  # imports JAX

    params: Mapping[str, Any] = checkpoint.load_params(folder)
    return checkpoint.hash_params(checkpoint.widen(params))
