"""Draws metrics of a run, step by step.

python -m benchmarks.curve RUN_DIR PICTURE.png METRIC [METRIC ...]
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from spirit_jax.files import read_json_objects


def main() -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0]
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("metrics", nargs="+")
    args = parser.parse_args()
    lines = read_json_objects(args.run_dir / "metrics.jsonl")
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for name in args.metrics:
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 50 else None)
    axes.set(xlabel="step", ylabel="nats a token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(args.picture, dpi=100)


if __name__ == "__main__":
    main()
