"""Predict whether a run fits on a TPU slice, and estimate its speed, without a TPU.

The training step of a config, or the engine's decoding step, is compiled by the TPU compiler, which
does not need a TPU (pip install 'jax[tpu]'). Times are the compiler's estimates, not measurements.

    spirit-jax plan --config configs/7b-v5e-256.yaml
    spirit-jax plan --config configs/7b-v5e-256.yaml --slices 2
    spirit-jax plan --config configs/7b-v5e-256.yaml --search
    spirit-jax plan --decode --topology v5e:1x1 --rows 8 --slots 2048 --quantization int8
"""

import dataclasses
import importlib.util
import itertools
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import typer
from rich.console import Console
from rich.table import Table

from spirit_jax import config as config_lib
from spirit_jax import files, sharding
from spirit_jax.cli.running import describe_missing, run
from spirit_jax.errors import InputError
from spirit_jax.generation.config import QUANTIZATIONS
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.training.lm.config import LmRunConfig
from spirit_jax.training.lm.recipe import LmRecipe, make_model, token_flops
from spirit_jax.vocab import HUBERT_UNITS, Vocab

from . import decode
from .estimate import CHIPS, GIB, MAX_CHIPS, Chip, estimate

SEARCHED_REMAT = ("save_dots", "save_qkv", "save_attention", "block")
SEARCHED_ROWS = (1, 2, 4, 8, 12)  # a device


def get_devices(topology: str, slices: int = 1) -> list[jax.Device]:
    """The devices of a slice such as "v5e:16x16", or of several, for compilation only."""
    name, _, size = topology.partition(":")
    sizes = re.fullmatch(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4}){1,2}", size)
    if name not in CHIPS or not sizes or math.prod(map(int, size.split("x"))) > MAX_CHIPS:
        raise InputError(
            f"The topology is '{topology}'; expected one like v5e:16x16, of the kinds "
            f"{', '.join(CHIPS)}, with at most {MAX_CHIPS} chips."
        )
    # A single chip is a part of a host's chips.
    parts: dict[str, Any] = {}
    if set(size.split("x")) == {"1"}:
        parts["chips_per_host_bounds"] = (1, 1, 1)
    if slices > 1:
        parts["num_slices"] = slices
    from jax.experimental import topologies

    # The compiler must not look for a TPU's metadata server, nor lock the library.
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu", **parts).devices)
    except Exception as error:
        reason = (
            f"The TPU's compiler does not know it ({files.describe(error)}); is jax[tpu] installed?"
        )
        raise files.unreadable(f"The topology '{topology}'", error, reason) from error


def compile_step(config: LmRunConfig, devices: list[jax.Device]) -> jax.stages.Compiled:
    """The compiled training step of a run on `devices`."""
    mesh = config.mesh.make(devices)
    rows = make_model(config).config.vocab_size  # the number of text tokens does not matter
    vocab = Vocab(text_size=rows - 2 - HUBERT_UNITS, padded_size=rows)
    recipe = LmRecipe(config, vocab=vocab)
    state = recipe.abstract_state(mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    shape = (config.data.batch_rows, config.data.seq_len)
    with jax.set_mesh(mesh):
        place = sharding.batch_sharding(shape, mesh)
        names = ("tokens", "segments", "positions", "sources", "weights")
        batch = {
            name: jax.ShapeDtypeStruct(
                shape, jnp.float32 if name == "weights" else jnp.int32, sharding=place
            )
            for name in names
        }
        return recipe.jit_step(recipe.gradients, places).lower(state, batch).compile()


def plan(config: LmRunConfig, topology: str, slices: int = 1) -> dict:
    """Compiles a training step of a run and estimates its memory and time.

    Args:
      config: of the run on a single slice.
      topology: the TPU slice, such as "v5e:16x16".
      slices: number of slices, each with the batch and the mesh of the config.

    Returns:
      JSON values by name. If "fits" is False, the others may be missing, with "reason" instead.

    Raises:
      InputError: the compiler is not installed, fails, or does not know the topology.
    """
    if slices < 1:
        raise InputError(f"--slices is {slices}; expected 1 or more.")
    if slices > 1:
        config = on_slices(config, slices)
    return _try(
        topology, lambda devices, chip: _plan_training(config, devices, chip, slices), slices
    )


def on_slices(config: LmRunConfig, slices: int) -> LmRunConfig:
    """A run on several slices, of which each has the batch and the mesh of a run's single slice."""
    mesh = dataclasses.replace(config.mesh, data=slices * config.mesh.data)
    data, rows = config.data, slices * config.data.batch_rows
    data = dataclasses.replace(data, batch_rows=rows, shards=slices * data.shards)
    return dataclasses.replace(config, mesh=mesh, data=data)


def plan_decoding(config: LmRunConfig | None, topology: str, decoding: decode.Decoding) -> dict:
    """Compiles the engine's decoding step and estimates its memory and time.

    Args:
      config: for the sizes of the model; those of Spirit LM 7B in bfloat16 if not given.
      topology: the TPU slice, such as "v5e:1x1".
      decoding: rows, slots and quantization.

    Returns:
      See `plan` and `tpu.decode.plan`.

    Raises:
      InputError: see `plan`; or the mesh does not fit the slice.
    """
    sizes = make_model(config).config if config else LlamaConfig()
    dtype = jnp.dtype(config.compute_dtype if config else "bfloat16")
    return _try(topology, lambda chips, chip: decode.plan(sizes, dtype, decoding, chips, chip))


def _try(topology: str, plan: Callable[[list[jax.Device], Chip], dict], slices: int = 1) -> dict:
    """What `plan` returns for the devices of slices, or why it does not fit."""
    devices = get_devices(topology, slices)
    chip = CHIPS[topology.split(":")[0]]
    result = {"topology": topology, "slices": slices, "devices": len(devices)}
    result["hbm_bytes"] = chip.hbm_bytes
    try:
        return result | plan(devices, chip)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return result | {"fits": False, "reason": str(error).splitlines()[0]}
        raise InputError(f"The TPU's compiler failed ({files.describe(error)}).") from error


def _plan_training(config: LmRunConfig, devices: list[jax.Device], chip: Chip, slices: int) -> dict:
    started = time.monotonic()
    compiled = compile_step(config, devices)
    memory = compiled.memory_analysis()
    tokens = config.data.batch_rows * config.data.seq_len
    kernels = kernel_flops(config) * tokens / len(devices)
    cfg = make_model(config).config
    flops = token_flops(cfg, config.data.seq_len) * tokens / len(devices)
    estimated = estimate(compiled.as_text(), chip, kernels, cfg.num_layers, slices)
    return {
        "fits": memory.peak_memory_in_bytes <= chip.hbm_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "resident_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.peak_memory_in_bytes - memory.argument_size_in_bytes,
        "step_seconds": estimated.seconds,
        "cycle_seconds": estimated.cycle_seconds,
        "kernel_seconds": estimated.kernel_seconds,
        "collective_seconds": estimated.collective_seconds,
        "dcn_seconds": estimated.dcn_seconds,
        "kernel_calls": estimated.kernel_calls,
        "tokens_per_step": tokens,
        "tokens_per_second": tokens / estimated.seconds,
        "mfu": flops / estimated.seconds / chip.peak_flops,
        "collectives": {k: dataclasses.asdict(v) for k, v in sorted(estimated.collectives.items())},
        "gathers_of_stacked_layers": estimated.stacked_gathers,
        "compile_seconds": time.monotonic() - started,
    }


def kernel_flops(config: LmRunConfig) -> float:
    """Floating-point operations of the attention kernels per token; 0 without kernels."""
    if config.attention != "splash":
        return 0.0
    cfg = make_model(config).config
    # Forward: two products of 2 x width x S / 2. Backward: the two kernels have seven of this size.
    forward = 2 * cfg.num_heads * cfg.head_dim * config.data.seq_len * cfg.num_layers
    return forward * (1 + 3.5 + (config.remat == "block"))


def search(config: LmRunConfig, topology: str) -> Iterator[tuple[dict, dict]]:
    """Yields (settings, plan) for different batches, remat policies and meshes."""
    count = len(get_devices(topology))
    too_large: set[tuple] = set()
    meshes = [size for size in (count, 64, 16) if count % size == 0 and size <= count]
    for fsdp, remat, rows in itertools.product(meshes, SEARCHED_REMAT, SEARCHED_ROWS):
        settings = {"fsdp": fsdp, "data": count // fsdp, "remat": remat, "rows_a_device": rows}
        if (fsdp, remat) in too_large:
            continue  # a smaller batch did not fit
        mesh = dataclasses.replace(config.mesh, data=count // fsdp, fsdp=fsdp, tensor=1)
        data = dataclasses.replace(config.data, batch_rows=rows * count, shards=rows * count)
        changed = dataclasses.replace(config, mesh=mesh, data=data, remat=remat)
        result = plan(changed, topology)
        if not result["fits"]:
            too_large.add((fsdp, remat))
        yield settings, result


def main(
    run_config: Annotated[
        Path | None,
        typer.Option("--config", help="Run config, YAML; with --decode 7B if not given"),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as remat=block")
    ] = None,
    topology: Annotated[
        str | None, typer.Option(help="Such as v5e:16x16; the config's if not given")
    ] = None,
    slices: Annotated[
        int, typer.Option(help="Number of slices, each with the config's batch and mesh")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
    is_search: Annotated[
        bool, typer.Option("--search", help="Try batch, remat and mesh; rank them")
    ] = False,
    is_decode: Annotated[
        bool, typer.Option("--decode", help="Plan the engine's decoding step instead")
    ] = False,
    rows: Annotated[int, typer.Option(help="With --decode: rows of the batch")] = 8,
    slots: Annotated[int, typer.Option(help="With --decode: tokens of a row, all filled")] = 2048,
    quantization: Annotated[
        Literal[*QUANTIZATIONS] | None,
        typer.Option(help="With --decode: round to int8 weights, cache, or both with int8"),
    ] = None,
    data: Annotated[
        int, typer.Option(help="With --decode: copies of the model, each on a part of the slice")
    ] = 1,
) -> None:
    """Runs the command that the module's docstring describes."""
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(describe_missing(["libtpu"], "tpu"))  # it compiles without a TPU too
    decoding = decode.Decoding(rows, slots, quantization, data)
    if not is_decode and decoding != decode.Decoding():
        raise InputError("--rows, --slots, --quantization and --data need --decode.")
    if slices != 1 and (is_decode or is_search):
        raise InputError("--slices is for the plan of a training step on several slices.")
    if is_decode and is_search:
        raise InputError("--search plans training steps; leave out --decode.")
    if run_config is None and (overrides or not is_decode):
        raise InputError("Give --config RUN.yaml; only --decode plans without it.")
    config = config_lib.read(LmRunConfig, run_config, overrides or []) if run_config else None
    topology = topology or (config.topology if config else None)
    if not topology:
        raise InputError(f"{run_config or '--decode'}: no topology; give --topology v5e:16x16.")
    if is_search:
        _print_search(search(config, topology), as_json)
    elif is_decode:
        _print_plan(plan_decoding(config, topology, decoding), as_json)
    else:
        _print_plan(plan(config, topology, slices), as_json)


def _print_plan(result: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=2))
        return
    name = (
        result["topology"]
        if result["slices"] == 1
        else f"{result['slices']} x {result['topology']}"
    )
    print(f"{name}: {result['devices']} devices")
    if "reason" in result:
        print(f"does not fit: {result['reason']}")
        return
    if "floor_seconds" in result:
        decode.print_plan(result)
        return
    peak, hbm = result["peak_bytes"] / GIB, result["hbm_bytes"] / GIB
    print(
        f"memory a device: {peak:.1f} of {hbm:.1f} GiB{'' if result['fits'] else ': does not fit'}"
    )
    resident, temporary = result["resident_bytes"] / GIB, result["temporary_bytes"] / GIB
    print(f"  resident {resident:.1f}, temporary {temporary:.1f}")
    rate = f"{result['tokens_per_second']:,.0f} tokens/s, MFU {result['mfu']:.1%}"
    print(f"step, estimated: {result['step_seconds']:.3f} s, {rate}")
    parts = {
        "operations": "cycle",
        "attention kernels": "kernel",
        "collectives waited for": "collective",
    }
    if result["slices"] > 1:
        parts["data centre network"] = "dcn"
    print(
        "  " + ", ".join(f"{name} {result[f'{key}_seconds']:.3f} s" for name, key in parts.items())
    )
    for kind, moved in result["collectives"].items():
        print(f"  {kind}: {moved['calls']} calls, {moved['bytes'] / 1e9:.2f} GB")


def _print_search(plans: Iterator[tuple[dict, dict]], as_json: bool) -> None:
    results = []
    for settings, planned in plans:
        line = f"mfu {planned['mfu']:.3f}" if planned["fits"] else "does not fit"
        print(f"{settings}: {line}", file=sys.stderr, flush=True)
        results.append(settings | planned)
    results = sorted((r for r in results if r["fits"]), key=lambda r: -r["mfu"])
    if as_json:
        print(json.dumps(results, indent=2))
        return
    columns = ("data", "fsdp", "remat", "rows_a_device", "mfu", "step_seconds", "peak_bytes")
    table = Table(*columns)
    for result in results:
        result |= {"mfu": f"{result['mfu']:.1%}", "step_seconds": f"{result['step_seconds']:.3f}"}
        result["peak_bytes"] = f"{result['peak_bytes'] / GIB:.1f} GiB"
        table.add_row(*(str(result[name]) for name in columns))
    Console().print(table)


if __name__ == "__main__":
    run(main)
