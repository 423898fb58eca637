"""Checksums of the arrays in a `params/` folder, to detect flipped bits.

Orbax stores arrays as chunks of a Zarr 3 store in an OCDBT database, which has checksums for its
nodes but not for the chunks. `checksums.json` lists the location and checksum of every chunk. A
read only checks the chunks that it needs, so a host reads no more than its shards.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorstore

from spirit_jax import checksums, files
from spirit_jax.errors import InputError

DATABASE = "state"  # the folder of Orbax's OCDBT database
METADATA = "zarr.json"  # suffix of the key with an array's shape, dtype and chunk shape


def write(path: str | Path) -> None:
    """Writes the checksums of a complete `params/` folder.

    Raises:
      ValueError: it is not such a folder. TensorStore may raise other errors.
    """
    path = files.as_path(path)
    arrays: dict[str, Any] = {}
    for key, location in _list_values(path).items():
        prefix, _, rest = key.partition("/")
        array = arrays.setdefault(prefix.replace(".", "/"), {"chunks": {}})
        if rest == METADATA:
            metadata = json.loads(_open(path).read(key).result().value)
            array["chunk_shape"] = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        elif location is not None:
            file, offset, length = location
            checksum = checksums.of_file(path / file, offset, length)
            array["chunks"][rest] = [file, offset, length, checksum]
    chunk_files = {chunk[0] for array in arrays.values() for chunk in array["chunks"].values()}
    names = (file.relative_to(path).as_posix() for file in files.walk(path))
    names = sorted(set(names) - chunk_files - {checksums.LIST})
    listed = dict(zip(names, checksums.of_files(path / name for name in names), strict=True))
    checksums.write_json(path / checksums.LIST, {"files": listed, "arrays": arrays})


def check_metadata(path: str | Path) -> None:
    """Checks the files of a `params/` folder that contain no chunks of arrays.

    A folder of an earlier version, without checksums, is not checked.

    Raises:
      InputError: a file is missing or damaged.
    """
    path = files.as_path(path)
    for name, checksum in _read_checksums(path)["files"].items():
        if checksums.of_file(path / name) != checksum:
            raise InputError(f"{path / name}: is damaged (its checksum differs); copy it again.")


def check_arrays(path: str | Path, wanted: Mapping[str, Any]) -> None:
    """Checks the chunks that this process reads.

    Args:
      path: the `params/` folder.
      wanted: the arrays to read, by `a/b/c` name; objects with a `shape`. If one has a `sharding`,
        only the chunks of this process's shards are checked.

    Raises:
      InputError: a chunk is damaged; the message names the parameter.
    """
    path, arrays = files.as_path(path), _read_checksums(files.as_path(path))["arrays"]

    def check(job: tuple[str, list]) -> None:
        name, (file, offset, length, checksum) = job
        if checksums.of_file(path / file, offset, length) != checksum:
            raise InputError(
                f"{path}: the parameter '{name}' is damaged (the checksum of {file} differs); copy "
                "the folder again."
            )

    jobs = (
        (name, chunk)
        for name, leaf in wanted.items()
        if name in arrays
        for chunk in _find_chunks(arrays[name], leaf)
    )
    with ThreadPoolExecutor(checksums.THREADS) as pool:
        for _ in pool.map(check, jobs):
            pass


def _find_chunks(array: Mapping[str, Any], leaf: Any) -> Iterator[list]:
    """The chunks of an array that this process reads."""
    chunks, shape = array["chunks"], tuple(leaf.shape)
    if getattr(leaf, "sharding", None) is None:
        yield from chunks.values()
        return
    indices = set()
    for shard in leaf.sharding.addressable_devices_indices_map(shape).values():
        axes = []
        for part, size, chunk_size in zip(shard, shape, array["chunk_shape"], strict=True):
            start, stop, _ = part.indices(size)
            axes.append(range(start // chunk_size, -(-stop // chunk_size)))
        indices |= set(itertools.product(*axes))
    for index in sorted(indices):
        key = "/".join(["c", *map(str, index)])
        if key in chunks:  # small chunks are stored in the nodes, which have checksums
            yield chunks[key]


def _read_checksums(path: Path) -> dict[str, Any]:
    """The checksums of a folder; empty for a folder without checksums."""
    if not (path / checksums.LIST).is_file():
        return {"files": {}, "arrays": {}}
    lists = checksums.read_json(path / checksums.LIST)
    if not {"files", "arrays"} <= lists.keys():
        raise InputError(f"{path / checksums.LIST}: has no checksums of files and arrays.")
    return lists


def _list_values(path: Path) -> dict[str, tuple[str, int, int] | None]:
    """(file, offset, length) of each value by key; None for values that are stored in a node."""
    base = tensorstore.KvStore.open(_url(path)).result()
    root = tensorstore.ocdbt.dump(base).result()["versions"][-1]
    if root["root_height"]:  # Orbax's nodes hold up to 100 MB of keys
        raise ValueError("the database has more keys than one node holds")
    values: dict[str, tuple[str, int, int] | None] = {}
    for entry in tensorstore.ocdbt.dump(base, root["root"]["location"]).result()["entries"]:
        location = None
        if "indirect_value" in entry:
            _, folder, file, offset, length = entry["indirect_value"].split(":")
            location = (f"{DATABASE}/{folder}{file}", int(offset), int(length))
        values[entry["key"].decode()] = location
    return values


def _url(path: Path) -> str:
    """The database as TensorStore names it."""
    database = path / DATABASE
    return f"{database}/" if files.is_bucket(path) else f"file://{database.absolute()}/"


def _open(path: Path):
    spec = {"driver": "ocdbt", "base": _url(path)}
    return tensorstore.KvStore.open(spec).result()
