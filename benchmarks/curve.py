"""Plot metrics of a run by step.

python -m benchmarks.curve RUN_DIR PICTURE.png METRIC [METRIC ...]
"""

from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure

from spirit_jax.cli.running import run
from spirit_jax.errors import InputError
from spirit_jax.files import read_json_objects, whole_file


def draw(
    run_dir: Path,
    picture: Annotated[Path, typer.Argument(help="Ends in .png, .svg or .pdf")],
    metrics: list[str],
) -> None:
    """Plot metrics of a run to an image file.

    Raises:
      InputError: the run has no such metrics, or the picture cannot be written.
    """
    lines = read_json_objects(run_dir / "metrics.jsonl")
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for name in metrics:
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        if not points:
            known = sorted({key for line in lines for key in line} - {"step"})
            raise InputError(f"{run_dir}: has no metric {name}; it has {', '.join(known)}.")
        axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 50 else None)
    axes.set(xlabel="step", ylabel="nats a token")
    axes.grid(alpha=0.3)
    axes.legend()
    if picture.suffix[1:].lower() not in figure.canvas.get_supported_filetypes():
        raise InputError(f"{picture}: give a name that ends in .png, .svg or .pdf.")
    with whole_file(picture) as unfinished:
        figure.savefig(unfinished, dpi=100, format=picture.suffix[1:].lower())


if __name__ == "__main__":
    run(draw)
