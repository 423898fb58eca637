"""Predicts whether a run fits on a TPU slice, and estimates its speed, without a TPU.

The training step of a config is compiled by the TPU compiler, which does not need a TPU (pip
install -e '.[tpu]'). Times are the compiler's estimates, not measurements.

    python -m tpu.plan --config configs/7b-v5e-256.yaml
    python -m tpu.plan --config configs/7b-v5e-256.yaml --search
    python -m tpu.plan --config configs/7b-v5e-256.yaml --topology v5e:2x4 --decode 96 \\
        mesh.data=1 mesh.fsdp=1 mesh.tensor=8
"""

import dataclasses
import importlib.util
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import typer
from rich.console import Console
from rich.table import Table

from spirit_jax import config as config_lib
from spirit_jax import files, sharding
from spirit_jax.cli.running import run
from spirit_jax.errors import InputError
from spirit_jax.models import llama
from spirit_jax.training.lm.config import LmRunConfig
from spirit_jax.training.lm.recipe import LmRecipe, make_model, token_flops
from spirit_jax.vocab import HUBERT_UNITS, Vocab
from tpu.estimate import CHIPS, GIB, estimate

SEARCHED_REMAT = ("save_dots", "save_qkv", "save_attention", "block")
SEARCHED_ROWS = (1, 2, 4, 8, 12)  # a device


def get_devices(topology: str) -> list[jax.Device]:
    """The devices of a slice such as "v5e:16x16", for compilation only."""
    if topology.split(":")[0] not in CHIPS:
        raise InputError(f"The topology is '{topology}'; expected one like v5e:16x16.")
    from jax.experimental import topologies

    # The compiler must not look for a TPU's metadata server, nor lock the library.
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu").devices)
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


def compile_decode(
    config: LmRunConfig, devices: list[jax.Device], rows: int
) -> jax.stages.Compiled:
    """The compiled decoding step of a batch of `rows`, with a cache of `seq_len` tokens."""
    mesh = config.mesh.make(devices)
    dtype = jnp.dtype(config.compute_dtype)
    model = llama.Llama(make_model(config).config, dtype, dtype)
    boxed = llama.abstract_params(model, boxed=True)
    params = _placed(llama.abstract_params(model), sharding.param_shardings(boxed, mesh))
    slots = config.data.seq_len

    def step(params, cache, last_b):
        tokens_b1 = last_b[:, None]
        positions_b1 = cache.lengths_b[:, None]
        logits_btv, cache = model.apply(
            {"params": params}, tokens_b1, jnp.ones_like(tokens_b1), positions_b1, cache
        )
        return jnp.argmax(logits_btv[:, -1], axis=-1), cache

    with jax.set_mesh(mesh):
        cache = jax.eval_shape(lambda: llama.init_cache(model, rows, slots))
        layers = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=sharding.cache_sharding(leaf.shape, mesh)
            ),
            cache.layers,
        )
        place = sharding.batch_sharding((rows,), mesh)
        ids_b = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=place)
        cache = cache.replace(layers=layers, lengths_b=ids_b)
        compiled = jax.jit(step, donate_argnums=1, compiler_options=config.compiler_options or None)
        return compiled.lower(params, cache, ids_b).compile()


def plan(config: LmRunConfig, topology: str, decode_rows: int = 0) -> dict:
    """Compiles a step of a run and estimates its memory and time.

    Args:
      config: of the run.
      topology: the TPU slice, such as "v5e:16x16".
      decode_rows: rows of a decoding step; 0 for a training step.

    Returns:
      JSON values by name. If "fits" is False, the others may be missing, with "reason" instead.

    Raises:
      InputError: the compiler is not installed, fails, or does not know the topology.
    """
    devices = get_devices(topology)
    chip = CHIPS[topology.split(":")[0]]
    result = {"topology": topology, "devices": len(devices), "hbm_bytes": chip.hbm_bytes}
    started = time.monotonic()
    try:
        if decode_rows:
            compiled = compile_decode(config, devices, decode_rows)
        else:
            compiled = compile_step(config, devices)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return result | {"fits": False, "reason": str(error).splitlines()[0]}
        raise InputError(f"The TPU's compiler failed ({files.describe(error)}).") from error
    memory = compiled.memory_analysis()
    tokens = decode_rows or config.data.batch_rows * config.data.seq_len
    kernels = 0.0 if decode_rows else kernel_flops(config) * tokens / len(devices)
    cfg = make_model(config).config
    estimated = estimate(compiled.as_text(), chip, kernels, cfg.num_layers)
    result |= {
        "fits": memory.peak_memory_in_bytes <= chip.hbm_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "resident_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.peak_memory_in_bytes - memory.argument_size_in_bytes,
        "step_seconds": estimated.seconds,
        "cycle_seconds": estimated.cycle_seconds,
        "kernel_seconds": estimated.kernel_seconds,
        "collective_seconds": estimated.collective_seconds,
        "kernel_calls": estimated.kernel_calls,
        "tokens_per_step": tokens,
        "tokens_per_second": tokens / estimated.seconds,
        "collectives": {k: dataclasses.asdict(v) for k, v in sorted(estimated.collectives.items())},
        "gathers_of_stacked_layers": estimated.stacked_gathers,
        "compile_seconds": time.monotonic() - started,
    }
    if not decode_rows:
        flops = token_flops(cfg, config.data.seq_len) * tokens / len(devices)
        result["mfu"] = flops / estimated.seconds / chip.peak_flops
    return result


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
    run_config: Annotated[Path, typer.Option("--config", help="Run config, YAML")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as remat=block")
    ] = None,
    topology: Annotated[
        str | None, typer.Option(help="Such as v5e:16x16; the config's if not given")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
    is_search: Annotated[
        bool, typer.Option("--search", help="Try batch, remat and mesh; rank them")
    ] = False,
    decode: Annotated[
        int, typer.Option(metavar="ROWS", help="Plan a step of decoding instead")
    ] = 0,
) -> None:
    """The command; see the module."""
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            "The TPU's compiler is not installed: pip install -e '.[tpu]'. It needs no TPU."
        )
    config = config_lib.read(LmRunConfig, run_config, overrides or [])
    topology = topology or config.topology
    if not topology:
        raise InputError(f"{run_config}: names no topology; give --topology v5e:16x16.")
    if is_search:
        _print_search(search(config, topology), as_json)
    else:
        _print_plan(plan(config, topology, decode), as_json)


def _print_plan(result: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['topology']}: {result['devices']} devices")
    if "reason" in result:
        print(f"does not fit: {result['reason']}")
        return
    peak, hbm = result["peak_bytes"] / GIB, result["hbm_bytes"] / GIB
    print(
        f"memory a device: {peak:.1f} of {hbm:.1f} GiB{'' if result['fits'] else ': does not fit'}"
    )
    resident, temporary = result["resident_bytes"] / GIB, result["temporary_bytes"] / GIB
    print(f"  resident {resident:.1f}, temporary {temporary:.1f}")
    mfu = f", MFU {result['mfu']:.1%}" if "mfu" in result else ""
    rate = f"{result['tokens_per_second']:,.0f} tokens/s{mfu}"
    print(f"step, estimated: {result['step_seconds']:.3f} s, {rate}")
    parts = {
        "operations": "cycle",
        "attention kernels": "kernel",
        "collectives waited for": "collective",
    }
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


def _placed(shapes, places):
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        places,
    )


if __name__ == "__main__":
    run(main)
