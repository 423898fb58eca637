"""Reads the centroids of a scikit-learn k-means that joblib or pickle wrote.

A pickle names functions that are called while it is read, so it can run any code. The reader here
knows a few names and refuses all others. None of them is imported: numpy arrays are rebuilt from
their bytes, and every object of scikit-learn or of numpy's random generators becomes a stub that
keeps its attributes. Neither joblib nor scikit-learn is needed.
"""

import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from spirit_jax import files
from spirit_jax.errors import InputError

KMEANS = re.compile(r"sklearn\.cluster\.\w+ (?:MiniBatch|Bisecting)?KMeans")
GENERATORS = re.compile(r"numpy\.random\.\w+ (?:\w*_ctor|MT19937|PCG64|RandomState)")
MAX_BYTES = 1 << 28


class Stub:
    """Any object of scikit-learn: only its attributes matter."""

    def __init__(self, *args: Any):
        """The arguments are ignored."""

    def __setstate__(self, state: Any) -> None:
        """Keeps the attributes."""
        self.__dict__.update(state if isinstance(state, dict) else {})


class _Dtype:
    """`numpy.dtype`, of plain numbers only."""

    def __init__(self, name: Any, *_: Any):
        self._name, self._order = name, "="

    def __setstate__(self, state: Any) -> None:
        self._order = state[1]

    def read(self, data: bytes, shape: Any, by_columns: bool) -> np.ndarray:
        """The array of these bytes."""
        dtype = np.dtype(self._name).newbyteorder(self._order)
        if dtype.kind not in "biuf":
            raise ValueError(f"an array of {dtype}")
        order = "F" if by_columns else "C"
        return np.frombuffer(data, dtype).reshape([int(size) for size in shape], order=order)

    def size_of(self, shape: Any) -> int:
        """Number of bytes of an array."""
        values = 1
        for size in shape:
            values *= int(size)
        return values * np.dtype(self._name).itemsize


class _Array:
    """A `numpy.ndarray` of a pickle; its arguments come from `_reconstruct`."""

    def __init__(self, *_: Any):
        self.array = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, data = state
        self.array = dtype.read(
            data.encode("latin1") if isinstance(data, str) else data, shape, by_columns
        )


class _JoblibArray:
    """joblib's `NumpyArrayWrapper`: the bytes of the array follow it in the file."""

    def read(self, file: BinaryIO) -> np.ndarray:
        """The array, from the current position of the file."""
        if getattr(self, "numpy_array_alignment_bytes", None) is not None:
            file.read(file.read(1)[0])  # padding
        size = self.dtype.size_of(self.shape)
        if not 0 <= size <= MAX_BYTES:
            raise ValueError("an array of an impossible size")
        return self.dtype.read(file.read(size), self.shape, self.order == "F")


def _from_buffer(data: Any, dtype: _Dtype, shape: Any, order: str) -> np.ndarray:
    return dtype.read(bytes(data), shape, order == "F")


def _scalar(dtype: _Dtype, data: Any) -> np.ndarray:
    return dtype.read(data.encode("latin1") if isinstance(data, str) else data, (), False)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError("an unknown encoding")
    return text.encode(encoding)


KNOWN = {
    "numpy ndarray": _Array,
    "numpy dtype": _Dtype,
    "multiarray _reconstruct": _Array,
    "multiarray scalar": _scalar,
    "numeric _frombuffer": _from_buffer,
    "_codecs encode": _encode,
    "joblib.numpy_pickle NumpyArrayWrapper": _JoblibArray,
}


class _Refused(Exception):
    """A name that is not known."""


class _Unpickler(pickle._Unpickler):  # in Python, as joblib's: arrays are between its opcodes
    dispatch = pickle._Unpickler.dispatch.copy()

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        short = re.sub(r"numpy\._?core\.(?=(?:multiarray|numeric)$)", "", module)
        short = short.removeprefix("sklearn.externals.")
        full = f"{short} {name}"
        if full in KNOWN:
            return KNOWN[full]
        if KMEANS.fullmatch(full) or GENERATORS.fullmatch(full):
            return Stub
        raise _Refused(f"{module}.{name}")

    def load_build(self) -> None:
        """Reads the array that follows joblib's description of it."""
        pickle._Unpickler.load_build(self)
        if isinstance(self.stack[-1], _JoblibArray):
            self.stack[-1] = self.stack[-1].read(self._file)

    dispatch[pickle.BUILD[0]] = load_build


def read_centroids(path: str | Path) -> np.ndarray:
    """The attribute `cluster_centers_` of a k-means, (clusters, channels).

    Args:
      path: a file that `joblib.dump` (without compression) or `pickle.dump` wrote.

    Raises:
      InputError: the file is damaged, compressed or something else, or it has a name that is not
        known, which might run code.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: is too large for centroids.")
        with path.open("rb") as file:
            if file.read(1) != pickle.PROTO:
                raise InputError(
                    f"{path}: is no pickle of a k-means; write it with joblib.dump(kmeans, path) "
                    "without compression."
                )
            file.seek(0)
            kmeans = _Unpickler(file).load()
    except InputError:
        raise
    except _Refused as error:
        raise InputError(
            f"{path}: has the name {str(error)[:80]}, which is no part of a k-means and could run "
            "code; it was not read."
        ) from error
    except Exception as error:  # the unpickler raises many kinds for a damaged file
        raise files.unreadable(path, error, "is not a whole pickle of a k-means.") from error
    centroids = getattr(kmeans, "cluster_centers_", None)
    centroids = centroids.array if isinstance(centroids, _Array) else centroids
    if not isinstance(centroids, np.ndarray) or centroids.ndim != 2 or not centroids.size:
        raise InputError(f"{path}: has no cluster_centers_; is it a k-means of scikit-learn?")
    return centroids
