"""Network folders: `config.json` beside `params/`, arrays that are written through Orbax.

Arrays are stored one by one under their path in the parameter tree. What is written goes to a
temporary name first, so a folder is whole or absent.
"""

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from spirit_jax import array_checks, checksums, files
from spirit_jax import config as config_lib
from spirit_jax.errors import InputError
from spirit_jax.files import refuse_existing

T = TypeVar("T")
Params = Mapping[str, Any]


def save_params(path: str | Path, parts: Params | Iterable[Params]) -> None:
    """Writes one parameter tree, given whole or as disjoint parts that are written in turn.

    Memory holds one part at a time, so a network larger than the memory can be written.

    Raises:
      InputError: something exists at `path` already, or it cannot be written.
    """
    path = Path(path).absolute()
    refuse_existing(path)
    unfinished = path.with_name(path.name + files.UNFINISHED)
    partial = unfinished.with_name(unfinished.name + ".partial_save")  # the name Orbax gives it
    for left in (unfinished, partial):  # by a killed process
        shutil.rmtree(left, ignore_errors=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for part in [parts] if isinstance(parts, Mapping) else parts:
            ocp.partial.save(unfinished, part)
        ocp.partial.finalize(unfinished)
        # It names the folder that was written to, which on a disk nothing needs.
        (unfinished / "commit_success.txt").unlink(missing_ok=True)
        array_checks.write(unfinished)
        unfinished.rename(path)
    except InputError:
        raise
    except Exception as error:  # the library has no single kind for what a disk does
        raise InputError(f"{path}: cannot be written ({files.describe(error)}).") from error
    finally:
        for left in (unfinished, partial):
            shutil.rmtree(left, ignore_errors=True)


def read_shapes(path: str | Path) -> Params:
    """The tree of `jax.ShapeDtypeStruct` that a `params/` folder holds; reads no array."""
    path = Path(path).absolute()
    array_checks.check_metadata(path)
    try:
        tree = ocp.metadata(path).metadata
    except Exception as error:
        reason = "is not a whole parameter folder (missing, half copied or damaged)."
        raise files.unreadable(path, error, reason) from error
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def load_params(path: str | Path, abstract: Params | None = None) -> Params:
    """Reads a parameter tree: numpy arrays, or arrays placed as `abstract` says.

    Args:
      path: a `params/` folder.
      abstract: a tree of `jax.ShapeDtypeStruct`; with shardings, every array goes straight onto
        its shards of the mesh. Parts of the stored tree that are not in it are not read.

    Raises:
      InputError: the folder is missing or damaged, or does not hold what `abstract` asks for.
    """
    path = Path(path).absolute()
    stored = read_shapes(path)
    if abstract is None:
        abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), stored)
    else:
        _check_shapes(path, stored, abstract)
    array_checks.check_arrays(path, flatten(abstract))
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    try:
        with context:
            return ocp.load(path, abstract)
    except Exception as error:
        reason = "its arrays cannot be read (half copied or damaged)."
        raise files.unreadable(path, error, reason) from error


def save_network(folder: str | Path, config: Any, params: Params | Iterable[Params]) -> None:
    """Writes a network: its config as `config.json`, its arrays as `params/`."""
    folder = Path(folder)
    save_params(folder / "params", params)
    config_lib.write(config, folder / "config.json")
    checksums.list_files(folder, ["config.json"])


def load_network(folder: str | Path, config_cls: type[T]) -> tuple[T, Params]:
    """The config and the numpy parameters of a network's folder; float16 comes as float32."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; a converted network was expected.")
    params = widen(load_params(folder / "params"))
    return config_lib.read(config_cls, folder / "config.json"), params


def halve(array: np.ndarray) -> np.ndarray:
    """float32 as float16, other types as they are; raises `InputError` for what is too large."""
    if array.dtype != np.float32:
        return array
    with np.errstate(over="ignore"):
        halved = array.astype(np.float16)
    if not np.isfinite(halved).all():
        raise InputError("A parameter is too large for float16; store it without --half.")
    return halved


def widen(params: Params) -> Params:
    """Parameters that are stored as float16, to save room, as the float32 that is computed with."""
    return jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float16 else x, params)


def hash_params(params: Params) -> str:
    """A SHA-256 over the names, shapes, dtypes and values of a parameter tree."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(params).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path} {array.shape} {array.dtype}\n".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


def flatten(tree: Params, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level of `a/b/c` names."""
    leaves = {}
    for name, value in tree.items():
        path = f"{prefix}/{name}" if prefix else str(name)
        leaves.update(flatten(value, path) if isinstance(value, Mapping) else {path: value})
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested mapping that `flatten` came from."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def _check_shapes(path: Path, stored: Params, abstract: Params) -> None:
    have, want = flatten(stored), flatten(abstract)
    for name, leaf in want.items():
        if name not in have:
            raise InputError(f"{path}: holds no parameter '{name}', which the config asks for.")
        if tuple(have[name].shape) != tuple(leaf.shape):
            raise InputError(
                f"{path}: parameter '{name}' has shape {tuple(have[name].shape)}, and the config "
                f"asks for {tuple(leaf.shape)}."
            )
