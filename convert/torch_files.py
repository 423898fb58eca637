"""Reads PyTorch checkpoints tensor by tensor, without unrestricted pickle.

`.pt` and `.bin` files are opened memory-mapped and with `weights_only=True`, safetensors with their
own library. A sharded checkpoint is one mapping. If a folder has several weight files, the one is
read that `transformers` 5 would read.
"""

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from safetensors import safe_open

from spirit_jax import config, files
from spirit_jax.errors import InputError

from .table import show

# In the order in which transformers 5 looks for them.
WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_REPEATED = 1 << 24  # most values of a broadcast view, whose storage is smaller
HALF_COPIED = "is not a whole PyTorch checkpoint (half copied?)."


def load_pickle(path: str | Path) -> Any:
    """The object in a `.pt` or `.bin` file, with memory-mapped tensors.

    Files of PyTorch before version 1.6 are supported, without memory-mapping.

    Raises:
      InputError: the file is missing, truncated, not a checkpoint, or contains anything other than
        tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _refuse_compressed(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        reason = (
            "is damaged, or has objects other than tensors and plain containers, which could run "
            "code; it was not read."
        )
        raise files.unreadable(path, error, reason) from error
    except Exception as error:  # the unpickler raises many kinds for a damaged file
        raise files.unreadable(path, error, HALF_COPIED) from error


def _refuse_compressed(path: Path) -> None:
    """Raises `InputError` for compressed parts: PyTorch never writes them, and they may be huge."""
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED:
                raise InputError(f"{path}: has compressed parts, which no PyTorch checkpoint has.")


def load_parts(path: str | Path, *parts: str) -> dict[str, Any]:
    """The mapping in a `.pt` file; `InputError` unless each of `parts` is a mapping in it."""
    saved = load_pickle(path)
    for part in parts:
        if not isinstance(saved, Mapping) or not isinstance(saved.get(part), Mapping):
            raise InputError(f"{path}: expected a mapping with '{part}' in it.")
    return saved


def check_plain(value: Any, path: str | Path, depth: int = 4) -> None:
    """Raises `InputError` unless a value of a pickled config is small and plain.

    A pickle can have a list that contains itself, or that is huge when written out.

    Args:
      value: to check.
      path: the file, for messages.
      depth: largest nesting of lists and mappings.

    Raises:
      InputError: the value is nested too deeply, too large, or of another type.
    """
    if isinstance(value, str | int | float | None) and len(str(value)[:10_001]) <= 10_000:
        return
    if isinstance(value, Mapping | list | tuple) and depth and len(value) <= 10_000:
        for part in value.values() if isinstance(value, Mapping) else value:
            check_plain(part, path, depth - 1)
        return
    raise InputError(f"{path}: its config has {show(value)}; expected numbers, names and lists.")


def as_float32(state: Mapping[str, Any], path: str | Path) -> dict[str, np.ndarray]:
    """A mapping of tensors as float32 numpy; raises `InputError` for other values."""
    with np.errstate(over="ignore"):  # `table.run` names what is not finite
        return {
            name: np.asarray(to_numpy(tensor, f"{path}: {show(name)}"), np.float32)
            for name, tensor in state.items()
        }


def to_numpy(tensor: torch.Tensor, where: str = "a tensor") -> np.ndarray:
    """A copy of a tensor as numpy; bfloat16 stays bfloat16.

    Args:
      tensor: a dense floating-point tensor with any strides.
      where: its name, for messages.

    Raises:
      InputError: another kind, such as a sparse, quantised, integer or complex tensor.
    """
    if not torch.is_tensor(tensor):
        raise InputError(f"{where} is not a tensor.")
    kind = None
    if tensor.layout != torch.strided:
        kind = "sparse"
    elif tensor.is_quantized:
        kind = "quantised"
    elif tensor.is_meta:
        kind = "without values (on the meta device)"
    elif tensor.dtype not in FLOATS:
        kind = f"of type {str(tensor.dtype).removeprefix('torch.')}"
    if kind:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        raise InputError(f"{where} is {kind}; expected a dense tensor of {names}.")
    stored = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.numel() > max(stored, MAX_REPEATED):
        raise InputError(f"{where} has {tensor.numel()} values, but the file has {stored} of them.")
    tensor = tensor.detach().resolve_neg().clone(memory_format=torch.contiguous_format)
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
    """The tensors of one or several checkpoint files, read lazily.

    A file is opened for every read and closed after it, so that the memory-mapped pages of earlier
    reads are released.
    """

    def __init__(self, files: Mapping[str, Path]):
        """`files` maps the name of each tensor to its file."""
        self._files = dict(files)

    def __getitem__(self, name: str) -> np.ndarray:
        path = self._files[name]
        where = f"{path}: {show(name)}"
        if path.suffix == ".safetensors":
            with _open_safetensors(path) as file:
                try:
                    tensor = file.get_tensor(name)
                except Exception as error:  # neither library documents its exceptions
                    raise files.unreadable(path, error, f"{show(name)} cannot be read.") from error
            return to_numpy(tensor, where)
        return to_numpy(load_pickle(path)[name], where)

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
        with _open_safetensors(path) as file:
            return list(file.keys())
    state = load_pickle(path)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and torch.is_tensor(value) for name, value in state.items()
    ):
        raise InputError(f"{path}: expected a mapping of names to tensors.")
    return list(state)


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


def _open_safetensors(path: Path):
    try:
        return safe_open(path, framework="pt")
    except Exception as error:
        reason = "is not a whole safetensors file (half copied?)."
        raise files.unreadable(path, error, reason) from error
