"""Arrays in a safetensors file, written part by part and read slice by slice.

An array is divided into tiles, small blocks with a checksum each. `checksums.json` beside the file
has the checksums of the tiles and of the file's header. A read takes whole tiles and checks them,
so a host reads little more than its shards.

The format: https://huggingface.co/docs/safetensors. The names of arrays are their `a/b/c` paths in
the parameter tree.
"""

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import ml_dtypes  # safetensors reads bfloat16 only after this import
import numpy as np
from safetensors import safe_open

from spirit_jax import checksums, files
from spirit_jax.errors import InputError
from spirit_jax.tensor_ranges import TensorRanges

TILE_BYTES = 1 << 18  # largest size of a tile
HEADER_ROOM = 1 << 18  # bytes left for a header whose arrays are not known at first
DTYPES = {  # the names in the header
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Range = tuple[int, int]  # first index of an axis, and the one after the last


def write(path: str | Path, parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Writes arrays with `files.whole_file`.

    Args:
      path: the file to write.
      parts: arrays by `a/b/c` name, in parts with different names. If they are a list, the header
        takes only the space that it needs.

    Returns:
      The checksums of the header and of the tiles, for `checksums.list_arrays`.

    Raises:
      InputError: the file cannot be written, or safetensors has no such dtype.
    """
    room = HEADER_ROOM
    if isinstance(parts, list):
        room = len(_make_header(_entries(item for part in parts for item in part.items())))
    entries: dict[str, Any] = {}
    tiles: dict[str, Any] = {}
    with files.whole_file(path) as unfinished:
        with open(unfinished, "wb") as file:
            file.seek(room)
            for name, leaf in (item for part in parts for item in part.items()):
                array = np.ascontiguousarray(leaf).reshape(np.shape(leaf))  # rank 0 stays
                entries |= _entries([(name, array)], file.tell() - room)
                tiles[name] = _describe_tiles(array)
                file.write(_as_bytes(array))
            header = _make_header(entries, room)
            if len(header) == room:
                file.seek(0)
                file.write(header)
        if len(header) > room:
            _move_data(unfinished, room, header)
    return {"header": checksums.of_bytes(header), "tensors": tiles}


def read_shapes(path: str | Path) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and dtypes of a file's arrays by name; only the header is read.

    Raises:
      InputError: the file is missing or damaged, or has a dtype that numpy has not.
    """
    path = files.as_path(path)
    _check_header(path)
    shapes = {}
    with _open(path) as file:
        for name in file.keys():
            stored = file.get_slice(name)
            if stored.get_dtype() not in DTYPES:
                raise InputError(f"{path}: '{name[:80]}' has dtype {stored.get_dtype()}.")
            dtype = DTYPES[stored.get_dtype()]
            shapes[name] = jax.ShapeDtypeStruct(tuple(stored.get_shape()), dtype)
    return shapes


def load(path: str | Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Reads and checks arrays.

    Args:
      path: the file.
      wanted: shapes and dtypes by name. With a sharding, only the tiles of this process's shards
        are read.

    Returns:
      By name, JAX arrays with the shardings of `wanted`, or numpy arrays.

    Raises:
      InputError: the file cannot be read, or an array is damaged.
    """
    path = files.as_path(path)
    tiles = checksums.read_arrays(path).get("tensors", {})

    def load_one(item: tuple[str, Any]) -> Any:
        name, leaf = item
        read = _Reader(path, file, name, tiles.get(name), leaf.dtype)
        if getattr(leaf, "sharding", None) is None:
            return read(tuple(slice(size) for size in leaf.shape))
        return jax.make_array_from_callback(tuple(leaf.shape), leaf.sharding, read)

    with _open(path) as file, ThreadPoolExecutor(checksums.THREADS) as pool:
        return dict(zip(wanted, pool.map(load_one, wanted.items()), strict=True))


class _Reader:
    """Reads slices of one array; equal slices, of replicas, are read once."""

    def __init__(self, path: Path, file: Any, name: str, tiles: Any, dtype: Any):
        self._path, self._file, self._name = path, file, name
        self._tiles, self._dtype = tiles, dtype
        self._read: dict[tuple[Range, ...], np.ndarray] = {}

    def __call__(self, index: tuple[slice, ...]) -> np.ndarray:
        stored = self._file.get_slice(self._name)
        shape = tuple(stored.get_shape())
        wanted = tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
        if wanted not in self._read:
            self._read[wanted] = self._load(stored, shape, wanted).astype(self._dtype, copy=False)
        return self._read[wanted]

    def _load(self, stored: Any, shape: tuple[int, ...], wanted: tuple[Range, ...]) -> np.ndarray:
        tile = self._tiles["tile"] if self._tiles else (1,) * len(shape)
        grown = [  # to whole tiles
            (start // step * step, min(size, -(-stop // step) * step))
            for (start, stop), size, step in zip(wanted, shape, tile, strict=True)
        ]
        array = _read_region(self._path, self._file, stored, self._name, shape, grown)
        if self._tiles:
            self._check(array, shape, tile, grown)
        inner = (
            slice(start - first, stop - first)
            for (start, stop), (first, _) in zip(wanted, grown, strict=True)
        )
        return array[(*inner, ...)]  # of rank 0 too, not a scalar

    def _check(self, array: np.ndarray, shape, tile, region) -> None:
        counts = [-(-size // step) for size, step in zip(shape, tile, strict=True)]
        listed = self._tiles["checksums"]
        for place, part in _split(shape, tile, region):
            number = 0
            for axis, count in zip(place, counts, strict=True):
                number = number * count + axis
            if checksums.of_bytes(_as_bytes(array[part])) != listed[32 * number : 32 * number + 32]:
                raise InputError(
                    f"{self._path}: the parameter '{self._name}' is damaged (its checksum "
                    "differs); copy the file again."
                )


def _read_region(path: Path, file, stored, name: str, shape, region: list[Range]) -> np.ndarray:
    """A part of an array, which safetensors copies out of the mapped file."""
    try:
        if 0 in shape or not shape:  # safetensors cannot slice these
            return file.get_tensor(name)
        return stored[tuple(slice(*bounds) for bounds in region)]
    except Exception as error:  # the library does not document its errors
        raise files.unreadable(path, error, f"'{name}' cannot be read.") from error


def tile_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The shape of an array's tiles: axes are halved in turn, as a mesh splits them.

    Args:
      shape: of the array.
      itemsize: bytes of an element.
    """
    tile, halvings = list(shape), [0] * len(shape)
    while np.prod(tile, dtype=np.int64) * itemsize > TILE_BYTES:
        axis = min((i for i, size in enumerate(tile) if size > 1), key=lambda i: halvings[i])
        tile[axis] = -(-tile[axis] // 2)
        halvings[axis] += 1
    return tuple(max(1, size) for size in tile)


def _describe_tiles(array: np.ndarray) -> dict[str, Any]:
    """The shape of an array's tiles, and their checksums in row-major order as one string."""
    tile = tile_shape(array.shape, array.dtype.itemsize)
    whole = [(0, size) for size in array.shape]
    sums = [checksums.of_bytes(_as_bytes(array[p])) for _, p in _split(array.shape, tile, whole)]
    return {"tile": list(tile), "checksums": "".join(sums)}


def _split(shape, tile, region) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """(place of a tile in the grid, its slices relative to the region) of each tile in a region."""
    axes = [
        [
            (start // step, slice(start - first, min(start + step, size) - first))
            for start in range(first, stop, step)
        ]
        for size, step, (first, stop) in zip(shape, tile, region, strict=True)
    ]
    for parts in itertools.product(*axes):
        yield tuple(place for place, _ in parts), tuple(part for _, part in parts)


def _as_bytes(array: np.ndarray) -> Any:
    """The bytes of an array in row-major order, as a buffer."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.size else b""


def _entries(items: Iterable[tuple[str, Any]], offset: int = 0) -> dict[str, Any]:
    """The entries of the header for arrays that are stored one after another from an offset."""
    entries = {}
    for name, array in items:
        dtype = np.dtype(array.dtype)
        if dtype not in _NAMES:
            raise InputError(f"The parameter '{name}' is {dtype}, which safetensors has not.")
        stop = offset + int(np.prod(array.shape, dtype=np.int64)) * dtype.itemsize
        entries[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    return entries


def _make_header(entries: Mapping[str, Any], size: int = 0) -> bytes:
    """The header of a file, filled with spaces to `size` bytes or else to a multiple of 8."""
    text = json.dumps(dict(entries), separators=(",", ":")).encode()
    length = max(-(-(8 + len(text)) // 8) * 8, size)
    return (length - 8).to_bytes(8, "little") + text.ljust(length - 8)


def _move_data(path: Path, room: int, header: bytes) -> None:
    """Rewrites a file with a header that does not fit into its room."""
    with tempfile.TemporaryFile(dir=path.parent) as moved, open(path, "rb+") as file:
        file.seek(room)
        shutil.copyfileobj(file, moved, checksums.BLOCK)
        moved.seek(0)
        file.seek(0)
        file.write(header)
        shutil.copyfileobj(moved, file, checksums.BLOCK)


def _check_header(path: Path) -> None:
    known = checksums.read_arrays(path)
    if known:
        size = int.from_bytes(files.read_bytes(path, 8), "little")
        if checksums.of_file(path, 0, 8 + size) != known["header"]:
            raise InputError(
                f"{path}: is damaged or was replaced (the checksum of its header differs); copy it "
                f"again, or remove {path.with_name(checksums.LIST)} if you replaced it yourself."
            )


def _open(path: Path) -> Any:
    try:
        if files.is_bucket(path):
            return TensorRanges(path, DTYPES)
        return safe_open(path, framework="np")
    except Exception as error:  # the library does not document its errors
        reason = "is not a whole safetensors file (incompletely copied or damaged)."
        raise files.unreadable(path, error, reason) from error
