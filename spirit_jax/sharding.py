"""The device mesh, and the table from logical axes to mesh axes.

Parameters and activations have logical axes (`embed`, `heads`, ...); the table maps them to mesh
axes. Only this module creates a `PartitionSpec`.

Mesh axes: `data` (replicas, across slices), `fsdp` (parameters and batch), `tensor` (heads, MLP and
vocabulary).
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spirit_jax.errors import InputError, InputWarning

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. An axis that is not listed is not sharded.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
}


CACHE_AXES = ("batch", "kv_heads", None, None)  # of keys and values: rows, heads, slots, width


def make_mesh(
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
    slices: int = 0,
) -> Mesh:
    """A mesh of `data` x `fsdp` x `tensor` devices.

    On several slices, which are connected by the slower data centre network, only `data` crosses
    the slices.

    Args:
      data, fsdp, tensor: number of devices along each axis.
      devices: to use; all devices by default.
      slices: number of slices, of equal numbers of consecutive devices; 0 for what TPUs report.

    Raises:
      InputError: a size is not a positive integer, their product is not the number of devices, or
        `data` is not a multiple of the number of slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = (data, fsdp, tensor)
    if any(type(size) is not int or size < 1 for size in shape):
        raise InputError(f"The sizes of a mesh are whole numbers from 1, not {shape}.")
    if math.prod(shape) != len(devices):
        raise InputError(
            f"A mesh of data={data} x fsdp={fsdp} x tensor={tensor} needs {math.prod(shape)} "
            f"devices, but there are {len(devices)}."
        )
    parts = _split_slices(devices, slices)
    if data % len(parts):
        raise InputError(
            f"A mesh with data={data} does not fit {len(parts)} slices; data must be a multiple of "
            "the number of slices, since fsdp and tensor must stay within a slice."
        )
    of_slice = (data // len(parts), fsdp, tensor)
    # A mesh axis may be a part of a physical axis: 4 x 64 on a slice of 16 x 16.
    laid_out = [
        mesh_utils.create_device_mesh(of_slice, part, allow_split_physical_axes=True)
        for part in parts
    ]
    return Mesh(np.concatenate(laid_out), MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))


def _split_slices(devices: list[jax.Device], slices: int) -> list[list[jax.Device]]:
    """The devices of each slice."""
    if slices:
        if type(slices) is not int or slices < 1 or len(devices) % slices:
            raise InputError(f"{len(devices)} devices cannot be {slices} slices of equal size.")
        size = len(devices) // slices
        return [devices[start : start + size] for start in range(0, len(devices), size)]
    parts: dict[int, list[jax.Device]] = {}
    for device in devices:
        # Only on TPUs is this the slice; some GPUs report their host.
        number = getattr(device, "slice_index", 0) if device.platform == "tpu" else 0
        parts.setdefault(number or 0, []).append(device)
    if len({len(part) for part in parts.values()}) > 1:
        sizes = ", ".join(str(len(part)) for part in parts.values())
        raise InputError(f"The slices have different numbers of devices: {sizes}.")
    return [parts[number] for number in sorted(parts)]


def as_auto(mesh: Mesh) -> Mesh:
    """The same mesh with all axes of type Auto, which this package needs.

    Raises:
      InputError: it is not a mesh, or has an axis that is not in the table.
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
    """Number of shards of a batch; rows are padded to a multiple of it."""
    if mesh is None:
        return 1
    return math.prod(mesh.shape.get(axis, 1) for axis in RULES["batch"])


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
    """The sharding of every parameter of a tree with logical axes.

    A dimension that the mesh does not divide is not sharded, with an `InputWarning`.

    Args:
      boxed: result of `jax.eval_shape(module.init, ...)`; leaves that can be sharded are boxed by
        `nn.with_logical_partitioning`.
      mesh: the device mesh.
    """

    undivided: dict[tuple[str, int], int] = {}  # (axis, its size): bytes a device has more

    def place(leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nn.LogicallyPartitioned):
            return NamedSharding(mesh, PartitionSpec())
        value = leaf.value
        spec = _spec(value.shape, leaf.names, mesh.shape)
        for size, axis in zip(value.shape, leaf.names, strict=True):
            parts = _parts(axis, mesh.shape)
            if size % parts:
                whole = value.size * value.dtype.itemsize
                more = whole - whole // parts
                undivided[axis, size] = undivided.get((axis, size), 0) + more
        return NamedSharding(mesh, spec)

    placed = jax.tree.map(place, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    for (axis, size), more in undivided.items():
        warnings.warn(
            f"The mesh does not divide the axis '{axis}' of size {size} by "
            f"{_parts(axis, mesh.shape)}, so each device has {more / 2**20:.1f} MiB of parameters "
            "more.",
            InputWarning,
            stacklevel=2,
        )
    return placed


def abstract_arrays(shapes: Any, shardings: Any) -> Any:
    """Adds shardings to a tree of `jax.ShapeDtypeStruct`."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings,
    )


def default_sharding() -> jax.sharding.Sharding:
    """The first device, which is used without a mesh."""
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device of the mesh."""
    return NamedSharding(mesh, PartitionSpec())


def stacked(single: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """The sharding of arrays stacked along a new first axis, which is not sharded."""
    if not isinstance(single, NamedSharding):
        return single
    return NamedSharding(single.mesh, PartitionSpec(None, *single.spec))


def place_batch(array: np.ndarray, mesh: Mesh | None) -> jax.Array:
    """Puts a host array on the mesh, sharded as a batch; without a mesh on the default device."""
    if mesh is None:
        return jax.numpy.asarray(array)
    return jax.device_put(array, batch_sharding(array.shape, mesh))


class DataParallel:
    """A jitted function on all devices of a list; each computes a part of the rows of a batch.

    Attributes:
      devices: number of devices.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        params: Any,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Puts the parameters on the devices.

        Args:
          function: jitted, of (params, *batch); rows do not depend on each other.
          params: its parameters.
          devices: of this process; the default device if not given.
        """
        self._function, self.devices = function, len(devices or [None])
        self._mesh = make_mesh(data=len(devices), devices=devices) if self.devices > 1 else None
        place = devices[0] if devices and self._mesh is None else None
        self.params = jax.device_put(params, replicated(self._mesh) if self._mesh else place)

    def __call__(self, *batch: np.ndarray) -> Any:
        """The result for arrays whose first axis is the rows, a multiple of `devices`."""
        if self._mesh is not None:
            batch = tuple(place_batch(array, self._mesh) for array in batch)
        return self._function(self.params, *batch)


def local_rows(batch_rows: int, mesh: Mesh) -> list[int]:
    """Indices of the rows of a batch on devices of this process, ascending."""
    shape = (batch_rows,)
    parts = batch_sharding(shape, mesh).addressable_devices_indices_map(shape).values()
    return sorted({row for (part,) in parts for row in range(*part.indices(batch_rows))})


def place_rows(array: np.ndarray, rows: Sequence[int], batch_rows: int, mesh: Mesh) -> jax.Array:
    """A batch on the mesh, from the rows of each process.

    Args:
      array: (rows, ...), the rows of this process.
      rows: their indices, from `local_rows`.
      batch_rows: rows of the batch.
      mesh: the device mesh.

    Returns:
      (batch_rows, ...).
    """
    place_of = {row: place for place, row in enumerate(rows)}
    shape = (batch_rows, *array.shape[1:])

    def part(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(batch_rows)
        return array[place_of[start] : place_of[start] + stop - start]

    return jax.make_array_from_callback(shape, batch_sharding(shape, mesh), part)


def batch_sharding(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """The sharding of a batch of this shape."""
    spec = _spec(shape, ("batch",) + (None,) * (len(shape) - 1), mesh.shape)
    return NamedSharding(mesh, spec)


def constrain(array: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains the sharding of an activation by logical axes; does nothing without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return array
    return jax.lax.with_sharding_constraint(array, _spec(array.shape, axes, mesh.shape))


def parts_of(axis: str, size: int) -> int:
    """Number of shards of a dimension of `size` on the current mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    return math.prod(mesh.shape[name] for name in _mesh_axes(size, axis, mesh.shape))


def cache_sharding(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """The sharding of keys or values of a cache, (b, g, s, k), or of their scales, (b, g, s)."""
    return NamedSharding(mesh, _spec(shape, CACHE_AXES[: len(shape)], mesh.shape))


def per_device(
    function: Callable[..., jax.Array],
    arrays: Sequence[jax.Array],
    axes: Sequence[tuple[str | None, ...]],
    out_axes: tuple[str | None, ...],
) -> jax.Array:
    """Calls a kernel on each device's shards; without a mesh on the whole arrays.

    Args:
      function: the kernel.
      arrays: its arguments.
      axes: logical axes of each argument.
      out_axes: logical axes of the result.

    Returns:
      An array with the shape of the first argument.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(*arrays)
    specs = tuple(
        _spec(array.shape, names, mesh.shape) for array, names in zip(arrays, axes, strict=True)
    )
    out_spec = _spec(arrays[0].shape, out_axes, mesh.shape)
    # Kernels have no information on how results vary over the mesh, so this is not checked.
    return jax.shard_map(function, in_specs=specs, out_specs=out_spec, check_vma=False)(*arrays)


def sum_over_rows(function: Callable[..., Any], rows: Sequence[jax.Array], whole: Any) -> Any:
    """Calls a function on each device's rows, and sums the results over devices.

    The gradient with respect to `whole` is then summed over devices once, and not in every
    iteration of a loop of the function.

    Args:
      function: of (*rows, whole); returns sums.
      rows: arrays with the batch as first axis.
      whole: replicated arrays.

    Returns:
      The sums.
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
    """Maps logical axes to mesh axes; a dimension that they do not divide is not sharded."""
    parts = (_mesh_axes(size, axis, mesh_shape) for size, axis in zip(shape, axes, strict=True))
    return PartitionSpec(*(names or None for names in parts))


def _mesh_axes(size: int, axis: str | None, mesh_shape: dict[str, int]) -> tuple[str, ...]:
    names = tuple(name for name in RULES.get(axis, ()) if name in mesh_shape)
    return names if size % _parts(axis, mesh_shape) == 0 else ()


def _parts(axis: str | None, mesh_shape: dict[str, int]) -> int:
    """Number of parts that a mesh has for a logical axis."""
    return math.prod(mesh_shape.get(name, 1) for name in RULES.get(axis, ()))
