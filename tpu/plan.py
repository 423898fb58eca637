"""Says before a pod is rented whether a run fits it, and about how fast it will go.

The training step of a config is compiled for a TPU slice by the TPU compiler itself, which needs no
TPU (`pip install -e '.[tpu]'`).

    python -m tpu.plan --config configs/7b-v5e-256.yaml
"""

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from spirit_jax import config as config_lib
from spirit_jax import sharding
from spirit_jax.errors import InputError
from spirit_jax.training import lm
from spirit_jax.training.step import Objective
from spirit_jax.vocab import HUBERT_UNITS, Vocab
from tpu.estimate import CHIPS, estimate


def get_devices(topology: str) -> list:
    """The devices of a slice that is not there, such as "v5e:16x16"."""
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
        reason = str(error).splitlines()[0]
        raise InputError(
            f"No TPU compiler for the topology '{topology}' ({reason}); is it as in v5e:16x16, and "
            "is jax[tpu] installed?"
        ) from error


def compile_step(config: lm.RunConfig, devices: list):
    """The compiled training step of a run on `devices`."""
    mesh = config.mesh.make(devices)
    model = lm.make_model(config)
    rows = model.config.vocab_size  # the numbers of text pieces and units change no program
    vocab = Vocab(text_size=rows - 2 - HUBERT_UNITS, padded_size=rows)
    optimizer = lm.make_optimizers(config, vocab)
    objective = Objective(model, vocab, config.step, ("data",))
    shape = (config.data.batch_rows, config.data.seq_len)
    shapes, places = lm.abstract_train_state(config, model, optimizer, mesh)
    with jax.set_mesh(mesh):
        state = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            places,
        )
        place = sharding.batch_sharding(shape, mesh)
        batch = {
            name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=place)
            for name in ("tokens", "segments", "positions", "sources")
        }
        batch["weights"] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)
        return lm.jit_step(config, objective, optimizer, places).lower(state, batch).compile()


def plan(config: lm.RunConfig, topology: str) -> dict:
    """What the compiler says of a run, as plain values; `fits` is False where memory does not do."""
    chip = CHIPS[topology.split(":")[0]]
    devices = get_devices(topology)
    started = time.monotonic()
    result = {"topology": topology, "devices": len(devices), "hbm_bytes": chip.hbm_bytes}
    try:
        compiled = compile_step(config, devices)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return result | {"fits": False, "reason": str(error).splitlines()[0]}
    memory = compiled.memory_analysis()
    hlo = compiled.as_text()
    if path := os.environ.get("DUMP_HLO"):
        Path(path).write_text(hlo)
    cfg = lm.make_model(config).config
    tokens = config.data.batch_rows * config.data.seq_len
    width = cfg.num_heads * cfg.head_dim
    # Of causal attention, a token forward: 2 products of S / 2 x D x 2; backward 2.5 times that.
    forward = 2 * width * config.data.seq_len * cfg.num_layers * tokens / len(devices)
    again = config.remat == "block"
    told = estimate(hlo, chip, forward * (1 + 2.5 + again))
    flops = lm.token_flops(cfg, config.data.seq_len) * tokens / len(devices)
    return result | {
        "fits": memory.peak_memory_in_bytes <= chip.hbm_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "resident_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.peak_memory_in_bytes - memory.argument_size_in_bytes,
        "step_seconds": told.seconds,
        "cycle_seconds": told.cycle_seconds,
        "kernel_seconds": told.kernel_seconds,
        "collective_seconds": told.collective_seconds,
        "kernel_calls": told.kernel_calls,
        "mfu": flops / told.seconds / chip.peak_flops,
        "tokens_per_step": tokens,
        "tokens_per_second": tokens / told.seconds,
        "collectives": {k: dataclasses.asdict(v) for k, v in sorted(told.collectives.items())},
        "compile_seconds": time.monotonic() - started,
    }


def main() -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--topology")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    config = config_lib.read(lm.RunConfig, args.config, args.overrides)
    print(json.dumps(plan(config, args.topology or config.topology), indent=2))


if __name__ == "__main__":
    main()
