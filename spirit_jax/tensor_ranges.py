"""Reads the arrays of a safetensors file in a bucket, by ranges of bytes.

safetensors maps a local file into memory. `TensorRanges` has the part of its interface that
`tensor_file` uses, and reads little more than what is asked for.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spirit_jax import files

SPAN = 32 << 20  # bytes that are read at once although only a part is needed


class TensorRanges:
    """An open safetensors file of a bucket."""

    def __init__(self, path: files.BucketPath, dtypes: Mapping[str, np.dtype]):
        """Reads the header.

        Args:
          path: the file.
          dtypes: numpy's types by name in the header.

        Raises:
          OSError, InputError, ValueError, KeyError, TypeError: it cannot be read, or is damaged.
        """
        size = path.stat().st_size
        length = int.from_bytes(path.read_range(0, min(8, size)), "little")
        if size < 8 + length:
            raise ValueError("the header is longer than the file")
        header = files.parse_json(path.read_range(8, 8 + length).decode())
        self._entries = {name: about for name, about in header.items() if name != "__metadata__"}
        ends = [about["data_offsets"][1] for about in self._entries.values()]
        if size != 8 + length + max(ends, default=0):
            raise ValueError("the file has another size than its header says")
        self._path, self._start, self._dtypes = path, 8 + length, dtypes

    def __enter__(self) -> "TensorRanges":
        return self

    def __exit__(self, *_) -> None:
        pass

    def keys(self) -> list[str]:
        """The names of the arrays."""
        return list(self._entries)

    def get_slice(self, name: str) -> "TensorSlice":
        """An array that is read when it is indexed."""
        about = self._entries[name]
        start = self._start + about["data_offsets"][0]
        return TensorSlice(self._path, start, about, self._dtypes)

    def get_tensor(self, name: str) -> np.ndarray:
        """All of an array."""
        part = self.get_slice(name)
        return part[tuple(slice(size) for size in part.get_shape())]


class TensorSlice:
    """An array of a file; indexing reads a part of it."""

    def __init__(self, path, start: int, about: Mapping[str, Any], dtypes):
        self._path, self._start, self._about, self._dtypes = path, start, about, dtypes

    def get_shape(self) -> list[int]:
        """The sizes of the axes."""
        return self._about["shape"]

    def get_dtype(self) -> str:
        """The name of the type in the header."""
        return self._about["dtype"]

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """A part of the array, by slices without steps."""
        shape = tuple(self._about["shape"])
        region = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
        return self._read(self._start, shape, region)

    def _read(self, start: int, shape: tuple[int, ...], region: Sequence) -> np.ndarray:
        dtype = self._dtypes[self._about["dtype"]]
        if not shape or 0 in shape:
            data = self._path.read_range(start, start + math.prod(shape) * dtype.itemsize)
            return np.frombuffer(data, dtype).reshape(shape)
        (first, stop), rest = region[0], region[1:]
        row = math.prod(shape[1:]) * dtype.itemsize
        is_whole = all(bounds == (0, size) for bounds, size in zip(rest, shape[1:], strict=True))
        if is_whole or (stop - first) * row <= SPAN:
            data = self._path.read_range(start + first * row, start + stop * row)
            array = np.frombuffer(data, dtype).reshape(stop - first, *shape[1:])
            return array[(slice(None), *itertools.starmap(slice, rest))]
        rows = (self._read(start + i * row, shape[1:], rest) for i in range(first, stop))
        return np.stack(list(rows))
