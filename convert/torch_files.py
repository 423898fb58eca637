"""Reads PyTorch's `.pt` and `.bin` files, without unrestricted pickle.

They are opened memory-mapped and with `weights_only=True`. In `convert/`, only functions that read
or write PyTorch's files import torch; `weights` reads safetensors without it.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from spirit_jax import files
from spirit_jax.errors import InputError

from .table import show

if TYPE_CHECKING:
    import torch

FLOATS = ("float32", "float16", "bfloat16", "float64")
MAX_REPEATED = 1 << 24  # largest size of a tensor with fewer values in the file (a broadcast view)
INCOMPLETE = "is not a whole PyTorch checkpoint (incomplete copy?)."


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
    torch = import_torch(f"{path}: is no safetensors file, so it is read")
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
    except Exception as error:  # the unpickler raises errors of many types for a damaged file
        raise files.unreadable(path, error, INCOMPLETE) from error


def import_torch(what: str) -> Any:
    """The module torch.

    Args:
      what: what needs it, such as "FILE: is read".

    Raises:
      InputError: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{what} by torch, which is not installed; install the extra convert "
            "(pip install 'spirit-jax[convert]')."
        ) from error
    return torch


def _refuse_compressed(path: Path) -> None:
    """Raises `InputError` for compressed parts, which PyTorch never writes and which may expand."""
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
    with np.errstate(over="ignore"):  # `table.run` reports numbers that are not finite
        return {
            name: np.asarray(to_numpy(tensor, f"{path}: {show(name)}"), np.float32)
            for name, tensor in state.items()
        }


def to_numpy(tensor: "torch.Tensor", where: str = "a tensor") -> np.ndarray:
    """A copy of a tensor as numpy; bfloat16 stays bfloat16.

    Args:
      tensor: a dense floating-point tensor with any strides.
      where: its name, for messages.

    Raises:
      InputError: another kind, such as a sparse, quantised, integer or complex tensor.
    """
    import torch

    if not torch.is_tensor(tensor):
        raise InputError(f"{where} is not a tensor.")
    problem, dtype = None, str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided:
        problem = "sparse"
    elif tensor.is_quantized:
        problem = "quantised"
    elif tensor.is_meta:
        problem = "without values (on the meta device)"
    elif dtype not in FLOATS:
        problem = f"of type {dtype}"
    if problem:
        raise InputError(f"{where} is {problem}; expected a dense tensor of {', '.join(FLOATS)}.")
    stored = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.numel() > max(stored, MAX_REPEATED):
        raise InputError(f"{where} has {tensor.numel()} values, but the file has {stored} of them.")
    tensor = tensor.detach().resolve_neg().clone(memory_format=torch.contiguous_format)
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def read_tensors(path: str | Path) -> dict[str, "torch.Tensor"]:
    """The tensors of a `.pt` or `.bin` file.

    Raises:
      InputError: the file is damaged, or is no mapping of names to tensors.
    """
    state = load_pickle(path)
    import torch

    if not isinstance(state, dict) or not all(
        isinstance(name, str) and torch.is_tensor(value) for name, value in state.items()
    ):
        raise InputError(f"{path}: expected a mapping of names to tensors.")
    return state


def read_arrays(path: str | Path) -> list[np.ndarray]:
    """The tensors of a `.pt` or `.bin` file, as numpy arrays.

    The file has one tensor, or a mapping, whose values other than tensors are left out.
    """
    saved = load_pickle(path)
    import torch

    values = saved if isinstance(saved, dict) else {"the tensor": saved}
    return [
        to_numpy(value, f"{path}: {show(name)}")
        for name, value in values.items()
        if torch.is_tensor(value)
    ]
