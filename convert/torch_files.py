"""Reads PyTorch checkpoints tensor by tensor, without unrestricted pickle and without loading them.

`.pt` and `.bin` files are opened memory-mapped and with `weights_only=True`; safetensors through
their own library. Sharded checkpoints are one mapping too.
"""

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from spirit_jax.errors import InputError

INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_NAMES = ("model.safetensors", "pytorch_model.bin")


def load_pickle(path: str | Path) -> Any:
    """The object in a `.pt` or `.bin` file, its tensors memory-mapped.

    Raises:
      InputError: the file is missing, truncated, not a checkpoint, or holds anything but tensors
        and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds something other than tensors and plain containers, which could run "
            "code when it is read, or is damaged; it was not read."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: is not a whole PyTorch checkpoint (half copied?).") from error


def load_parts(path: str | Path, *parts: str) -> dict[str, Any]:
    """The mapping in a `.pt` file; `InputError` unless each of `parts` is a mapping in it."""
    saved = load_pickle(path)
    for part in parts:
        if not isinstance(saved, Mapping) or not isinstance(saved.get(part), Mapping):
            raise InputError(f"{path}: expected a mapping with '{part}' in it.")
    return saved


def as_float32(state: Mapping[str, Any], path: str | Path) -> dict[str, np.ndarray]:
    """A mapping of tensors as float32 numpy; raises `InputError` for a value that is none."""
    for name, tensor in state.items():
        if not torch.is_tensor(tensor):
            raise InputError(f"{path}: '{name}' is not a tensor.")
    return {name: np.asarray(to_numpy(tensor), np.float32) for name, tensor in state.items()}


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A copy of a tensor as numpy; bfloat16 stays bfloat16."""
    tensor = tensor.detach().clone().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def to_torch(array: np.ndarray) -> torch.Tensor:
    """The inverse of `to_numpy`."""
    array = np.ascontiguousarray(array)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of one or several checkpoint files, each read when it is asked for.

    A file is opened anew for every read and closed after it, so memory holds one tensor, not the
    pages of all that was read before.
    """

    def __init__(self, files: Mapping[str, Path]):
        """`files`: the file that holds each tensor, by the tensor's name."""
        self._files = dict(files)

    def __getitem__(self, name: str) -> np.ndarray:
        path = self._files[name]
        if path.suffix == ".safetensors":
            with _open_safetensors(path) as file:
                return to_numpy(file.get_tensor(name))
        return to_numpy(load_pickle(path)[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def open_folder(folder: str | Path) -> Tensors:
    """The weights of a Hugging Face folder: one file or shards, safetensors or pickles.

    Raises:
      InputError: the folder holds no weights, or an index names a file or tensor that is absent.
    """
    folder = Path(folder)
    for name in INDEX_NAMES:
        if (folder / name).is_file():
            return _open_index(folder, folder / name)
    for name in SINGLE_NAMES:
        if (folder / name).is_file():
            return Tensors({tensor: folder / name for tensor in tensor_names(folder / name)})
    raise InputError(
        f"{folder}: holds no weights; expected one of {', '.join(INDEX_NAMES + SINGLE_NAMES)}."
    )


def tensor_names(path: Path) -> list[str]:
    """The names of the tensors in one file of weights."""
    if path.suffix == ".safetensors":
        with _open_safetensors(path) as file:
            return list(file.keys())
    state = load_pickle(path)
    if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
        raise InputError(f"{path}: expected a mapping of names to tensors.")
    return list(state)


def _open_index(folder: Path, index: Path) -> Tensors:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{index}: is not a weight index.") from error
    for name in sorted(set(weight_map.values())):
        if not (folder / name).is_file():
            raise InputError(f"{index}: names {name}, which is not in the folder.")
        held = set(tensor_names(folder / name))
        absent = [t for t, file in weight_map.items() if file == name and t not in held]
        if absent:
            raise InputError(f"{folder / name}: lacks '{absent[0]}', which the index promises.")
    return Tensors({tensor: folder / name for tensor, name in weight_map.items()})


def _open_safetensors(path: Path):
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: is not a whole safetensors file (half copied?).") from error
