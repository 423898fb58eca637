"""Network folders: `config.json`, and `params/` with arrays, stored with Orbax.

Arrays are stored under their path in the parameter tree. Folders are written under a temporary
name and then renamed, so a folder is whole or absent.
"""

import hashlib
import logging
import shutil
import sys
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


class _NotOrbax(logging.Filter):
    """Drops log messages of Orbax, whose errors are raised too."""

    def filter(self, log: logging.LogRecord) -> bool:
        return "orbax" not in Path(log.pathname).parts


class _Unraisable:
    """A hook for errors that cannot be raised; it drops those of Orbax's event loops.

    After an error the remaining writers of TensorStore report to a loop that is closed.
    """

    def __init__(self):
        self._hook = sys.unraisablehook

    def __call__(self, unraisable) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self._hook(unraisable)


def hide_orbax_logs() -> None:
    """Hides the tracebacks that threads of Orbax print, such as for a full disk."""
    for logger in (logging.getLogger("absl"), logging.getLogger()):
        if not any(isinstance(known, _NotOrbax) for known in logger.filters):
            logger.addFilter(_NotOrbax())
    if not isinstance(sys.unraisablehook, _Unraisable):
        sys.unraisablehook = _Unraisable()


def save_params(path: str | Path, parts: Params | Iterable[Params]) -> None:
    """Writes a parameter tree.

    Args:
      path: the folder to create.
      parts: the tree, or disjoint parts of it. Parts are written one by one, so a network that is
        larger than memory can be written.

    Raises:
      InputError: something exists at `path` already, or it cannot be written.
    """
    path = Path(path).absolute()
    refuse_existing(path)
    hide_orbax_logs()
    unfinished = path.with_name(path.name + files.UNFINISHED)
    partial = unfinished.with_name(unfinished.name + ".partial_save")  # the name that Orbax uses
    for leftover in (unfinished, partial):  # of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for part in [parts] if isinstance(parts, Mapping) else parts:
            ocp.partial.save(unfinished, part)
        ocp.partial.finalize(unfinished)
        # This file has the temporary path, and is not needed on a local disk.
        (unfinished / "commit_success.txt").unlink(missing_ok=True)
        array_checks.write(unfinished)
        unfinished.rename(path)
    except InputError:
        raise
    except Exception as error:  # Orbax has no common error class for disk errors
        raise InputError(f"{path}: cannot be written ({files.describe(error)}).") from error
    finally:
        for leftover in (unfinished, partial):
            shutil.rmtree(leftover, ignore_errors=True)


def read_shapes(path: str | Path) -> Params:
    """The tree of `jax.ShapeDtypeStruct` of a `params/` folder, without reading arrays."""
    path = Path(path).absolute()
    array_checks.check_metadata(path)
    try:
        tree = ocp.metadata(path).metadata
    except Exception as error:
        reason = "is not a whole parameter folder (missing, half copied or damaged)."
        raise files.unreadable(path, error, reason) from error
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def load_params(path: str | Path, abstract: Params | None = None) -> Params:
    """Reads a parameter tree.

    Args:
      path: a `params/` folder.
      abstract: a tree of `jax.ShapeDtypeStruct`; with shardings, each array is read directly onto
        its shards. Only parameters in this tree are read. None reads all.

    Returns:
      numpy arrays, or JAX arrays with the shardings of `abstract`.

    Raises:
      InputError: the folder is missing or damaged, or has other parameters than `abstract`.
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
    """Writes the config and parameters of a network to a folder.

    Args:
      folder: gets `config.json` and `params/`.
      config: a dataclass.
      params: see `save_params`.

    Raises:
      InputError: the folder has parameters already, or cannot be written.
    """
    folder = Path(folder)
    save_params(folder / "params", params)
    config_lib.write(config, folder / "config.json")
    checksums.list_files(folder, ["config.json"])


def load_network(folder: str | Path, config_cls: type[T]) -> tuple[T, Params]:
    """Reads the config and parameters (numpy arrays) of a network; float16 becomes float32."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; a converted network was expected.")
    params = widen(load_params(folder / "params"))
    return config_lib.read(config_cls, folder / "config.json"), params


def halve(array: np.ndarray) -> np.ndarray:
    """Converts float32 to float16; raises `InputError` for values that are too large."""
    if array.dtype != np.float32:
        return array
    with np.errstate(over="ignore"):
        halved = array.astype(np.float16)
    if not np.isfinite(halved).all():
        raise InputError("A parameter is too large for float16; store it without --half.")
    return halved


def widen(params: Params) -> Params:
    """Converts float16 parameters, as stored in small folders, to float32."""
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
    """Flattens a nested mapping to `a/b/c` names."""
    leaves = {}
    for name, value in tree.items():
        path = f"{prefix}/{name}" if prefix else str(name)
        leaves.update(flatten(value, path) if isinstance(value, Mapping) else {path: value})
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
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
            raise InputError(f"{path}: has no parameter '{name}', which the config needs.")
        if tuple(have[name].shape) != tuple(leaf.shape):
            raise InputError(
                f"{path}: parameter '{name}' has shape {tuple(have[name].shape)}, and the config "
                f"needs {tuple(leaf.shape)}."
            )
