"""The plans of all pod configs on one and on two slices, as the table of docs/pods.md.

    python -m benchmarks.plans
    python -m benchmarks.plans configs/7b-v5e-256.yaml --slices 4

Needs the TPU compiler (pip install 'jax[tpu]'), but no TPU. A 7B config takes minutes.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from spirit_jax import config as config_lib
from spirit_jax.cli.running import run
from spirit_jax.training.lm.config import LmRunConfig
from tpu import plan
from tpu.estimate import DCN, GIB

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
COLUMNS = ("config", "slices", "chips", "memory per chip", "step", "over slices", "MFU")


def main(
    configs: Annotated[
        list[Path] | None, typer.Argument(help="Run configs; all with a topology if not given")
    ] = None,
    slices: Annotated[list[int] | None, typer.Option(help="Numbers of slices; 1 and 2")] = None,
) -> None:
    """Runs the command that the module's docstring describes."""
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for path in configs or CONFIGS:
        config = config_lib.read(LmRunConfig, path, [])
        if not config.topology:
            continue
        for count in slices or (1, 2):
            print(f"{path.stem} on {count} slices", file=sys.stderr)
            print(_row(path.stem, plan.plan(config, config.topology, count)), flush=True)


def _row(name: str, planned: dict) -> str:
    if not planned["fits"]:
        parts = ["does not fit", "", "", ""]
    else:
        sent = planned["collectives"].get(DCN, {"bytes": 0})["bytes"]
        parts = [
            f"{planned['peak_bytes'] / GIB:.1f} of {planned['hbm_bytes'] / GIB:.1f} GiB",
            f"{planned['step_seconds']:.2f} s",
            f"{sent / 1e6:.0f} MB, {planned['dcn_seconds']:.3f} s" if sent else "",
            f"{planned['mfu']:.0%}",
        ]
    return f"| {name} | {planned['slices']} | {planned['devices']} | {' | '.join(parts)} |"


if __name__ == "__main__":
    run(main)
