"""Arrays in a folder of Orbax, written part by part and read onto shards."""

import logging
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from spirit_jax import array_checks, files
from spirit_jax.errors import InputError
from spirit_jax.files import refuse_existing

COMMITTED = "commit_success.txt"  # Orbax writes it last, if it cannot rename a folder
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


def write(path: str | Path, parts: Iterable[Params]) -> None:
    """Writes a parameter tree.

    Args:
      path: the folder to create.
      parts: disjoint parts of the tree, which are written one by one.

    Raises:
      InputError: something exists at `path` already, or it cannot be written.
    """
    path = files.as_path(path).absolute()
    refuse_existing(path)
    if files.is_bucket(path):
        raise InputError(
            f"{path}: the form orbax is written to a local folder, and then copied to the bucket."
        )
    hide_orbax_logs()
    unfinished = path.with_name(path.name + files.UNFINISHED)
    partial = unfinished.with_name(unfinished.name + ".partial_save")  # the name that Orbax uses
    for leftover in (unfinished, partial):  # of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for part in parts:
            ocp.partial.save(unfinished, part)
        ocp.partial.finalize(unfinished)
        # Orbax asks for this file in a copy in a bucket; its content is the temporary path.
        (unfinished / COMMITTED).write_bytes(b"")
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
    """The tree of `jax.ShapeDtypeStruct` of a folder, without reading arrays."""
    path = files.as_path(path).absolute()
    array_checks.check_metadata(path)
    try:
        tree = ocp.metadata(path).metadata
    except Exception as error:
        reason = "is not a whole parameter folder (missing, incompletely copied or damaged)."
        raise files.unreadable(path, error, reason) from error
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def load(path: str | Path, abstract: Params, names: Mapping[str, Any]) -> Params:
    """Reads and checks a parameter tree.

    Args:
      path: the folder.
      abstract: a tree of `jax.ShapeDtypeStruct`; only parameters in it are read. Those without a
        sharding become numpy arrays.
      names: the same, by `a/b/c` name.

    Raises:
      InputError: the folder is damaged.
    """
    array_checks.check_arrays(path, names)
    wanted = jax.tree.map(
        lambda leaf: np.empty(leaf.shape, leaf.dtype) if leaf.sharding is None else leaf, abstract
    )
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    try:
        with context:
            return ocp.load(path, wanted)
    except Exception as error:
        reason = "its arrays cannot be read (incompletely copied or damaged)."
        raise files.unreadable(path, error, reason) from error
