"""The weights of checkpoint folders, tensor by tensor; safetensors are read without torch.

A sharded checkpoint is one mapping. If a folder has several weight files, the one is read that
`transformers` 5 would read.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  safetensors reads bfloat16 as numpy only after this import
import numpy as np
from safetensors import safe_open

from spirit_jax import config, files
from spirit_jax.errors import InputError

from . import torch_files
from .table import show

# In the order in which transformers 5 looks for them.
WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
FLOATS = ("F64", "F32", "F16", "BF16")  # of the safetensors format


class SafetensorsFile(Mapping[str, np.ndarray]):
    """A safetensors file; every tensor is read from the disk when it is asked for."""

    def __init__(self, path: str | Path):
        """Reads the header; raises `InputError` if the file is damaged or cut off."""
        self._path = Path(path)
        with self._open() as file:
            self._names = list(file.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor; raises `InputError` for another type than 16-, 32- and 64-bit floats."""
        with self._open() as file:
            dtype = file.get_slice(name).get_dtype()
            if dtype not in FLOATS:
                raise InputError(
                    f"{self._path}: {show(name)} is of type {dtype}; expected a tensor of "
                    f"{', '.join(FLOATS)}."
                )
            try:
                return file.get_tensor(name)
            except Exception as error:  # the library does not document its exceptions
                reason = f"{show(name)} cannot be read."
                raise files.unreadable(self._path, error, reason) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _open(self):
        try:
            return safe_open(self._path, framework="np")
        except Exception as error:
            reason = "is not a whole safetensors file (incomplete copy?)."
            raise files.unreadable(self._path, error, reason) from error


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of one or several checkpoint files, read lazily.

    A file is opened for every read and closed after it, so that the memory-mapped pages of earlier
    reads are released.
    """

    def __init__(self, files: Mapping[str, Path]):
        """`files` maps the name of each tensor to its file."""
        self._files = dict(files)
        safetensors = {path for path in self._files.values() if path.suffix == ".safetensors"}
        self._headers = {path: SafetensorsFile(path) for path in safetensors}

    def __getitem__(self, name: str) -> np.ndarray:
        path = self._files[name]
        if path in self._headers:
            return self._headers[path][name]
        return torch_files.to_numpy(torch_files.load_pickle(path)[name], f"{path}: {show(name)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def open_folder(folder: str | Path) -> Tensors:
    """The weights of a Hugging Face folder, from the file that transformers 5 would read.

    This is `transformers_weights` of its `config.json`, or else the first of `WEIGHT_NAMES`. Other
    files, such as older shards, are ignored.

    Raises:
      InputError: the folder has no weights, or an index names a missing file or tensor.
    """
    folder = Path(folder)
    weights = None
    if (folder / "config.json").is_file():
        weights = config.read_mapping(folder / "config.json").get("transformers_weights")
    names = WEIGHT_NAMES
    if weights is not None:
        _check_name(folder / "config.json", weights)
        names = (weights,)
    for name in names:
        path = folder / name
        if path.is_file() and name.endswith(".index.json"):
            return _open_index(folder, path)
        if path.is_file():
            return Tensors(dict.fromkeys(tensor_names(path), path))
    raise InputError(f"{folder}: has no weights; expected {' or '.join(names)}.")


def tensor_names(path: Path) -> list[str]:
    """The names of the tensors in a weight file."""
    if path.suffix == ".safetensors":
        return list(SafetensorsFile(path))
    return list(torch_files.read_tensors(path))


def _open_index(folder: Path, index: Path) -> Tensors:
    weight_map = config.read_mapping(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: is not a weight index; it has no weight_map.")
    shards: dict[str, Path] = {}
    for name in weight_map.values():
        _check_name(index, name)
    for name in sorted(set(weight_map.values())):
        path = folder / name
        if not path.is_file():
            raise InputError(f"{index}: names {name}, which is not in the folder.")
        # As in transformers: all tensors of a shard are used, and later shards override earlier.
        shards |= dict.fromkeys(tensor_names(path), path)
    for tensor, name in weight_map.items():
        if tensor not in shards:
            raise InputError(f"{folder / name}: lacks {show(tensor)}, which the index lists.")
    return Tensors(shards)


def _check_name(path: Path, name: Any) -> None:
    """Raises `InputError` unless `name`, from the file `path`, is the name of a weight file."""
    known = (".safetensors", ".bin", ".safetensors.index.json")
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(known):
        raise InputError(
            f"{path}: names the weight file {show(name)}; expected a name in the folder that ends "
            f"in {', '.join(known)}."
        )
