"""Network folders: `config.json`, and the arrays in one of the forms of `network_folder`.

Arrays are stored under their path in the parameter tree. They are written under a temporary name,
which is then renamed, so they are whole or absent.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from spirit_jax import checksums, files, network_folder, tensor_file
from spirit_jax import config as config_lib
from spirit_jax.errors import InputError

T = TypeVar("T")
Params = Mapping[str, Any]
COPY_BYTES = 1 << 30  # of arrays that are in memory together while a network is copied


def save_params(
    folder: str | Path, parts: Params | Iterable[Params], form: str = network_folder.DEFAULT_FORM
) -> None:
    """Writes the parameter tree of a network folder.

    Args:
      folder: gets `model.safetensors` or `params/`; it is created if it does not exist.
      parts: the tree, or disjoint parts of it. Parts are written one by one, so a network that is
        larger than memory can be written.
      form: one of `network_folder.FORMS`.

    Raises:
      InputError: the folder has parameters already, or cannot be written.
    """
    folder = files.as_path(folder).absolute()
    path = folder / network_folder.FORMS[network_folder.check_form(form)]
    for name in network_folder.FORMS.values():
        files.refuse_existing(folder / name)
    is_new = not folder.exists()
    parts = [parts] if isinstance(parts, Mapping) else parts
    try:
        if form == "orbax":
            from spirit_jax import orbax_folder  # slow to import, and seldom needed

            orbax_folder.write(path, parts)
        else:
            flat = map(flatten, parts)
            known = tensor_file.write(path, list(flat) if isinstance(parts, list) else flat)
            checksums.list_arrays(path, known)
    except BaseException:
        if is_new:
            files.remove_tree(folder)
        raise


def read_shapes(folder: str | Path) -> Params:
    """The tree of `jax.ShapeDtypeStruct` of a network folder, without reading arrays.

    Raises:
      InputError: the folder has no arrays, or is damaged.
    """
    form, path = network_folder.find_arrays(folder)
    if form == "orbax":
        from spirit_jax import orbax_folder

        return orbax_folder.read_shapes(path)
    return unflatten(tensor_file.read_shapes(path), path)


def load_params(folder: str | Path, abstract: Params | None = None) -> Params:
    """Reads a parameter tree.

    Args:
      folder: a network folder.
      abstract: a tree of `jax.ShapeDtypeStruct`; with shardings, each array is read directly onto
        its shards. Only parameters in this tree are read. None reads all.

    Returns:
      JAX arrays with the shardings of `abstract`, or numpy arrays where it has none.

    Raises:
      InputError: the folder is missing or damaged, or has other parameters than `abstract`.
    """
    form, path = network_folder.find_arrays(folder)
    stored = read_shapes(folder)
    if abstract is None:
        abstract = stored
    else:
        _check_shapes(path, stored, abstract)
    if form == "orbax":
        from spirit_jax import orbax_folder

        return orbax_folder.load(path, abstract, flatten(abstract))
    return unflatten(tensor_file.load(path, flatten(abstract)), path)


def copy_network(folder: str | Path, output: str | Path, form: str) -> None:
    """Copies a network folder, with its arrays in another form.

    Args:
      folder: the network folder.
      output: the folder to create. Only a part of the arrays is in memory at a time.
      form: one of `network_folder.FORMS`.

    Raises:
      InputError: the folder cannot be read, or `output` has parameters already.
    """
    folder, output = files.as_path(folder), files.as_path(output)
    shapes = flatten(read_shapes(folder))
    parts = (load_params(folder, unflatten(part)) for part in _batches(shapes))
    if sum(map(_count_bytes, shapes.values())) <= COPY_BYTES:
        parts = list(parts)
    save_params(output, parts, form)
    for path in folder.iterdir():  # such as config.json
        if path.is_file() and path.name not in {*network_folder.FORMS.values(), checksums.LIST}:
            files.copy_file(path, output / path.name)
            checksums.list_files(output, [path.name])


def _batches(shapes: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The parameters in groups of `COPY_BYTES`."""
    batch: dict[str, Any] = {}
    for name, leaf in shapes.items():
        if batch and sum(map(_count_bytes, [*batch.values(), leaf])) > COPY_BYTES:
            yield batch
            batch = {}
        batch[name] = leaf
    yield batch


def _count_bytes(leaf: Any) -> int:
    return int(np.prod(leaf.shape, dtype=np.int64)) * leaf.dtype.itemsize


def save_network(
    folder: str | Path,
    config: Any,
    params: Params | Iterable[Params],
    form: str = network_folder.DEFAULT_FORM,
) -> None:
    """Writes the config and parameters of a network to a folder.

    Args:
      folder: gets `config.json`, and the parameters; see `network_folder`.
      config: a dataclass.
      params, form: see `save_params`.

    Raises:
      InputError: the folder has parameters already, or cannot be written.
    """
    folder = files.as_path(folder)
    save_params(folder, params, form)
    config_lib.write(config, folder / "config.json")
    checksums.list_files(folder, ["config.json"])


def load_network(folder: str | Path, config_cls: type[T]) -> tuple[T, Params]:
    """Reads the config and parameters (numpy arrays) of a network; float16 becomes float32."""
    folder = files.as_path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; a converted network was expected.")
    params = widen(load_params(folder))
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


def unflatten(leaves: Mapping[str, Any], where: str | Path = "The parameters") -> dict[str, Any]:
    """The inverse of `flatten`.

    Args:
      leaves: by `a/b/c` name.
      where: they are from, for messages.

    Raises:
      InputError: a name is that of an array and of a group of arrays.
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or isinstance(node.get(name), dict):
            raise InputError(f"{where}: '{path[:80]}' is an array and also a group of arrays.")
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
