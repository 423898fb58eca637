"""Plans a decoding step of the generation engine on a TPU slice; see `tpu.plan`."""

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from spirit_jax import devices, sharding
from spirit_jax.errors import InputError
from spirit_jax.generation.config import int8_parts
from spirit_jax.generation.masks import Masks
from spirit_jax.generation.runner import Runner
from spirit_jax.models import llama, llama_weights
from spirit_jax.models.llama_config import LlamaConfig

from .estimate import GIB, MAX_CHIPS, Chip, estimate
from .traffic import bytes_read

MAX_ROWS, MAX_SLOTS = 4096, 1 << 20  # as of spirit-jax generate and bench


@dataclasses.dataclass(frozen=True)
class Decoding:
    """What is planned.

    Attributes:
      rows: sequences that decode together.
      slots: tokens of each row in the cache, all filled.
      quantization: a name in `generation.config.QUANTIZATIONS`; None for neither int8 weights nor
        an int8 cache.
      data: copies of the model; heads are split over the other devices.
    """

    rows: int = 8
    slots: int = 2048
    quantization: str | None = None
    data: int = 1

    def __post_init__(self):
        int8_parts(self.quantization, "--quantization")
        for name, maximum in (("rows", MAX_ROWS), ("slots", MAX_SLOTS), ("data", MAX_CHIPS)):
            if not 1 <= getattr(self, name) <= maximum:
                raise InputError(f"--{name} is {getattr(self, name)}; expected 1 to {maximum}.")


def make_runner(
    cfg: LlamaConfig, dtype: Any, decoding: Decoding, chips: list[jax.Device]
) -> Runner:
    """A runner on `chips` with shapes in place of parameters."""
    if len(chips) % decoding.data:
        raise InputError(f"--data {decoding.data} does not divide {len(chips)} devices.")
    mesh = sharding.make_mesh(decoding.data, tensor=len(chips) // decoding.data, devices=chips)
    int8_weights, int8_cache = int8_parts(decoding.quantization)
    if int8_weights:
        cfg = dataclasses.replace(cfg, int8_weights=True)
    model = llama.Llama(cfg, dtype, dtype, int8_cache=int8_cache)
    params = sharding.abstract_arrays(
        llama_weights.abstract_params(model),
        sharding.param_shardings(llama_weights.abstract_params(model, boxed=True), mesh),
    )
    model, params = llama_weights.lay_out_for_decoding(model, params, "tpu")
    shape = (6, cfg.vocab_size)  # as of `make_masks`
    masks = Masks(jax.ShapeDtypeStruct(shape, jnp.bool_), jax.ShapeDtypeStruct(shape, jnp.int32))
    return Runner(model, params, masks, jax.ShapeDtypeStruct((1,), jnp.int32), mesh)


def floor_bytes(runner: Runner, rows: int, slots: int) -> dict[str, int]:
    """Bytes that every device must read in a step: its weights once and its full cache once."""
    shard = jax.tree.map(_shard_bytes, runner.params)
    weights = sum(jax.tree.leaves(shard))
    if not runner.model.config.tie_embeddings:
        weights -= shard["embed"]["embedding"]  # a step reads few of its rows
    cache = jax.eval_shape(lambda: llama.init_cache(runner.model, rows, slots)).layers
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding.cache_sharding(leaf.shape, runner.mesh)
        ),
        cache,
    )
    return {
        "weight_bytes": weights,
        "cache_bytes": sum(_shard_bytes(leaf) for leaf in jax.tree.leaves(placed)),
    }


def plan(
    cfg: LlamaConfig, dtype: Any, decoding: Decoding, chips: list[jax.Device], chip: Chip
) -> dict[str, Any]:
    """Compiles the engine's decoding, and estimates the memory and time of a step on a device.

    Args:
      cfg: sizes of the model.
      dtype: of parameters, computation and cache that are not int8.
      decoding: rows, slots and quantization.
      chips: from `tpu.plan.get_devices`.
      chip: their numbers.

    Returns:
      JSON values by name.

    Raises:
      jax.errors.JaxRuntimeError: the compiler fails, or the program does not fit.
      InputError: the mesh does not fit the slice.
    """
    runner = make_runner(cfg, dtype, decoding, chips)
    floor = floor_bytes(runner, decoding.rows, decoding.slots)
    started = time.monotonic()
    compiled = runner.lower_decode(decoding.rows, decoding.slots).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    estimated = estimate(text, chip, 0.0, cfg.num_layers)
    necessary = sum(floor.values())
    read = bytes_read(text)
    bandwidth = devices.bandwidth(chips[0])
    copy_seconds = estimated.copied_bytes / bandwidth
    seconds = estimated.seconds + copy_seconds
    return dataclasses.asdict(decoding) | {
        "fits": memory.peak_memory_in_bytes <= chip.hbm_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "resident_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        **floor,
        "bytes_read": read,
        "bytes_read_to_floor": read / necessary,
        "floor_seconds": necessary / bandwidth,
        "step_seconds": seconds,
        "cycle_seconds": estimated.cycle_seconds,
        "copy_seconds": copy_seconds,
        "collective_seconds": estimated.collective_seconds,
        "tokens_per_second": decoding.rows / seconds,
        "compile_seconds": time.monotonic() - started,
    }


def print_plan(result: dict[str, Any]) -> None:
    """Prints what `plan` returns."""
    gib = {name: size / GIB for name, size in result.items() if name.endswith("_bytes")}
    verdict = "fits" if result["fits"] else "does not fit"
    print(
        f"memory a device: {gib['peak_bytes']:.2f} of {gib['hbm_bytes']:.2f} GiB: {verdict}\n"
        f"  arguments {gib['resident_bytes']:.2f} (weights {gib['weight_bytes']:.2f}, "
        f"cache {gib['cache_bytes']:.2f}), temporary {gib['temporary_bytes']:.2f}\n"
        f"read a step: {result['bytes_read'] / GIB:.2f} GiB, "
        f"{result['bytes_read_to_floor']:.2f} of weights and cache once\n"
        f"step, estimated: {1e3 * result['step_seconds']:.1f} ms, "
        f"{result['tokens_per_second']:,.0f} tokens/s; "
        f"floor by bandwidth: {1e3 * result['floor_seconds']:.1f} ms\n"
        f"  operations {1e3 * result['cycle_seconds']:.1f} ms, "
        f"writing to the cache {1e3 * result['copy_seconds']:.1f} ms, "
        f"collectives {1e3 * result['collective_seconds']:.1f} ms"
    )


def _shard_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
