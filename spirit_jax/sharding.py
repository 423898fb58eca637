"""The device mesh, and the one table from logical axes to mesh axes.

Parameters and activations name their axes by meaning (`embed`, `heads`, ...); this table says which
mesh axis splits which. Only this file makes a `PartitionSpec`.

Mesh axes: `data` (replicas, across slices), `fsdp` (parameters and batch), `tensor` (heads, MLP and
vocabulary).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spirit_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. An axis that is not listed is not split.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
}


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of `data` x `fsdp` x `tensor` devices (all devices there are, unless given).

    Raises:
      InputError: sizes that are no whole numbers, or whose product is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = (data, fsdp, tensor)
    if any(type(size) is not int or size < 1 for size in shape):
        raise InputError(f"The sizes of a mesh are whole numbers from 1 on, not {shape}.")
    if math.prod(shape) != len(devices):
        raise InputError(
            f"A mesh of data={data} x fsdp={fsdp} x tensor={tensor} needs {math.prod(shape)} "
            f"devices, and there are {len(devices)}."
        )
    # A mesh axis may be part of an axis of the machine: 4 x 64 on a slice of 16 x 16.
    laid_out = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(laid_out, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))


def as_auto(mesh: Mesh) -> Mesh:
    """The same mesh with every axis of type Auto, which is how this package places arrays.

    Raises:
      InputError: no mesh, or it has an axis that the table does not know.
    """
    if not isinstance(mesh, Mesh):
        raise InputError(f"A mesh is what make_mesh gives, not {type(mesh).__name__}.")
    for name in mesh.axis_names:
        if name not in MESH_AXES:
            raise InputError(
                f"The mesh has an axis '{name}'; known are {', '.join(MESH_AXES)} (any of them)."
            )
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def batch_multiple(mesh: Mesh | None) -> int:
    """How many parts the mesh splits a batch into; rows are padded to a multiple of it."""
    if mesh is None:
        return 1
    return math.prod(mesh.shape.get(axis, 1) for axis in RULES["batch"])


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
    """The sharding of every parameter of a tree whose leaves carry logical axes.

    Args:
      boxed: the result of `jax.eval_shape(module.init, ...)`, leaves boxed by
        `nn.with_logical_partitioning` where they can be split.
      mesh: the mesh to place them on.
    """

    def place(leaf: Any) -> NamedSharding:
        if isinstance(leaf, nn.LogicallyPartitioned):
            return NamedSharding(mesh, _spec(leaf.value.shape, leaf.names, mesh.shape))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(place, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def default_sharding() -> jax.sharding.Sharding:
    """Everything on the first device: what is used without a mesh."""
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device of the mesh."""
    return NamedSharding(mesh, PartitionSpec())


def stacked(of_one: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """The sharding of many arrays stacked along a new first axis, which stays whole."""
    if not isinstance(of_one, NamedSharding):
        return of_one
    return NamedSharding(of_one.mesh, PartitionSpec(None, *of_one.spec))


def place_batch(array: np.ndarray, mesh: Mesh | None) -> jax.Array:
    """Puts a host array on the mesh, its first axis split as a batch (or on the default device)."""
    if mesh is None:
        return jax.numpy.asarray(array)
    return jax.device_put(array, batch_sharding(array.shape, mesh))


def local_rows(batch_rows: int, mesh: Mesh) -> list[int]:
    """The rows of a batch that lie on devices of this process, rising."""
    shape = (batch_rows,)
    parts = batch_sharding(shape, mesh).addressable_devices_indices_map(shape).values()
    return sorted({row for (part,) in parts for row in range(*part.indices(batch_rows))})


def place_rows(array: np.ndarray, rows: Sequence[int], batch_rows: int, mesh: Mesh) -> jax.Array:
    """A batch on the mesh, each process giving the rows that `local_rows` says are its own."""
    place_of = {row: place for place, row in enumerate(rows)}
    shape = (batch_rows, *array.shape[1:])

    def part(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(batch_rows)
        return array[place_of[start] : place_of[start] + stop - start]

    return jax.make_array_from_callback(shape, batch_sharding(shape, mesh), part)


def batch_sharding(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Where a batch of this shape lies."""
    spec = _spec(shape, ("batch",) + (None,) * (len(shape) - 1), mesh.shape)
    return NamedSharding(mesh, spec)


def constrain(array: jax.Array, *axes: str | None) -> jax.Array:
    """Asks the compiler to split an activation by its logical axes; a no-op without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return array
    return jax.lax.with_sharding_constraint(array, _spec(array.shape, axes, mesh.shape))


def parts_of(axis: str, size: int) -> int:
    """How many parts the mesh in use splits a dimension of `size` into."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    return math.prod(mesh.shape[name] for name in _mesh_axes(size, axis, mesh.shape))


def cache_sharding(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Where keys or values of a cache lie: (..., b, s, g, k), with or without stacked layers."""
    axes = (None,) * (len(shape) - 4) + ("batch", None, "kv_heads", None)
    return NamedSharding(mesh, _spec(shape, axes, mesh.shape))


def per_device(
    function: Callable[..., jax.Array],
    arrays: Sequence[jax.Array],
    axes: Sequence[tuple[str | None, ...]],
    out_axes: tuple[str | None, ...],
) -> jax.Array:
    """Calls a kernel once a device on the shards that it holds; once in all without a mesh.

    `axes` are the logical axes of each array, `out_axes` of the result, which has the first
    array's shape.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(*arrays)
    specs = tuple(
        _spec(array.shape, names, mesh.shape) for array, names in zip(arrays, axes, strict=True)
    )
    out_spec = _spec(arrays[0].shape, out_axes, mesh.shape)
    # The kernel says nothing of how its results vary over the mesh, so that is not checked.
    return jax.shard_map(function, in_specs=specs, out_specs=out_spec, check_vma=False)(*arrays)


def sum_over_rows(function: Callable[..., Any], rows: Sequence[jax.Array], whole: jax.Array) -> Any:
    """Sums of what `function(*rows, whole)` gives for the rows of each device.

    So the gradient of `whole`, which every device has, is added up over devices once, whatever
    loops the function has. `rows` are arrays whose first axis is the batch.
    """
    mesh = jax.sharding.get_abstract_mesh()
    names = () if mesh.empty else _mesh_axes(rows[0].shape[0], "batch", mesh.shape)
    if not names:
        return function(*rows, whole)

    def on_device(*arrays):
        return jax.tree.map(lambda part: jax.lax.psum(part, names), function(*arrays))

    specs = (PartitionSpec(names),) * len(rows) + (PartitionSpec(),)
    return jax.shard_map(
        on_device,
        in_specs=specs,
        out_specs=PartitionSpec(),
        axis_names=set(names),
        check_vma=False,
    )(*rows, whole)


def _spec(
    shape: Sequence[int], axes: Sequence[str | None], mesh_shape: dict[str, int]
) -> PartitionSpec:
    """Maps logical axes to mesh axes; a dimension that a mesh axis does not divide stays whole."""
    parts = (_mesh_axes(size, axis, mesh_shape) for size, axis in zip(shape, axes, strict=True))
    return PartitionSpec(*(names or None for names in parts))


def _mesh_axes(size: int, axis: str | None, mesh_shape: dict[str, int]) -> tuple[str, ...]:
    names = tuple(name for name in RULES.get(axis, ()) if name in mesh_shape)
    return names if size % math.prod(mesh_shape[name] for name in names) == 0 else ()
