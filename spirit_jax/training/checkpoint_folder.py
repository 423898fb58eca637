"""A checkpoint of a run: reading its arrays, metadata and checksums.

The state of the data stream, the record of the run and array shapes are Orbax metadata. Each
process writes a list of the checksums of the files that it wrote (`checksums/*.json`).
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint.experimental.v1 as ocp

from spirit_jax import checksums, files
from spirit_jax.errors import InputError

CHECKSUMS = "checksums"
PROCESS_FOLDER = "ocdbt.process_"  # prefix of the folder that one process writes


class Damaged(Exception):
    """A checkpoint cannot be read; the message says why."""


def write_checksums(folder: Path) -> None:
    """Writes the checksums of this process's files of a checkpoint."""
    names = [path.relative_to(folder).as_posix() for path in files.walk(folder)]
    # Other processes may be writing their lists now.
    names = [name for name in names if not name.startswith(f"{CHECKSUMS}/")]
    process = jax.process_index()
    written = sorted(name for name in names if _writer(name) == process)
    sums = dict(zip(written, checksums.of_files(folder / n for n in written), strict=True))
    checksums.write_json(folder / CHECKSUMS / f"{process}.json", {"files": sums})


def _writer(name: str) -> int:
    """The process that wrote a file of a checkpoint; found from the file's name."""
    for part in name.split("/"):
        number = part.removeprefix(PROCESS_FOLDER)
        if number != part and number.isdigit():
            return int(number)
    return 0


def verify_checksums(folder: Path) -> None:
    """Compares checksums; raises `Damaged` if any differs. Each process checks some files.

    Checkpoints of earlier versions have no checksums.
    """
    known: dict[str, str] = {}
    for path in sorted((folder / CHECKSUMS).glob("*.json")):
        known |= checksums.read_json(path).get("files", {})
    names = sorted(known)[jax.process_index() :: jax.process_count()]
    for name, checksum in zip(names, checksums.of_files(folder / n for n in names), strict=True):
        if checksum != known[name]:
            raise Damaged(f"the checksum of {name} differs")


def read_metadata(folder: Path) -> dict[str, Any]:
    """The metadata of a checkpoint; raises `Damaged` if it is not complete."""
    try:
        metadata = ocp.metadata(folder).custom_metadata
    except Exception as error:  # libraries raise all kinds for a damaged file
        lack = files.find_resource_error(error)
        if lack:
            raise InputError(f"{folder}: cannot be read ({lack}).") from error
        raise Damaged(files.describe(error)) from error
    if not isinstance(metadata, dict) or not isinstance(metadata.get("stream"), dict):
        raise Damaged("it has no metadata")
    return metadata


def load(folder: Path, abstract: Any) -> Any:
    """Reads the arrays of a checkpoint.

    Processes do not wait for each other, since another may have failed.

    Args:
      folder: the checkpoint.
      abstract: shapes, dtypes and shardings of the state; `...` for arrays not to read.
    """
    context = ocp.Context()
    if jax.process_count() > 1:
        process = jax.process_index()
        context.multiprocessing_options.primary_host = process
        context.multiprocessing_options.active_processes = {process}
        context.multiprocessing_options.barrier_sync_key_prefix = f"process{process}"
    with context:
        return ocp.load(folder, abstract)


def describe_arrays(tree: Any) -> dict[str, list]:
    """[shape, dtype] of every array (or `jax.ShapeDtypeStruct`) by path; [] for `...`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            [] if leaf is ... else [list(leaf.shape), str(jnp.dtype(leaf.dtype))]
        )
        for path, leaf in leaves
    }


def check_shapes(folder: Path, stored: Any, wanted: dict[str, list]) -> None:
    """Raises `InputError` if a checkpoint has other arrays than the network has now.

    Args:
      folder: the checkpoint, for the message.
      stored: what `describe_arrays` returned for the saved state; None in earlier versions.
      wanted: the same for the state to restore.
    """
    if not isinstance(stored, dict):
        return  # written by an earlier version
    for name in dict.fromkeys((*wanted, *stored)):
        have, want = stored.get(name), wanted.get(name)
        if have != want and want != []:
            raise InputError(
                f"{folder}: does not fit this network: '{name}' is {_shape(have)} in the "
                f"checkpoint and {_shape(want)} in the network, so it cannot be resumed from."
            )


def _shape(shape_and_dtype: list | None) -> str:
    return (
        "absent" if shape_and_dtype is None else f"{shape_and_dtype[1]} {tuple(shape_and_dtype[0])}"
    )
