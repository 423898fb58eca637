"""The table of docs/spirit-tiny.md: figures of models by task, and their training cost.

    python -m evaluators.table --config configs/tiny/eval.yaml --output runs/tiny/eval \\
        base=spirit-tiny-base:runs/tiny/lm-base:runs/tiny/lm-base2 thirds=runs/thirds

Evaluates each model as `spirit-jax eval` does, into OUTPUT/NAME, and prints a table in Markdown.
Existing figures are reused if neither they, the model nor the config have changed. A model is
NAME=FOLDER, or NAME=FOLDER:RUN_DIR[:RUN_DIR...] with the runs that trained it, for their cost.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spirit_jax import checksums, config, files, model_folder
from spirit_jax.cli.running import Output, run
from spirit_jax.errors import InputError
from spirit_jax.evaluation.configs import EvalConfig

FIGURES = "figures.json"
HIDDEN = "items", "commonest"  # figures without a row
Figures = dict[str, dict[str, float]]


def main(
    models: Annotated[list[str], typer.Argument(metavar="NAME=FOLDER[:RUN_DIR...]...")],
    tasks: Annotated[Path, typer.Option("--config", help="Tasks, as of spirit-jax eval")],
    output: Output,
) -> None:
    """Runs the command that the module's docstring describes."""
    settings, columns = config.read(EvalConfig, tasks), {}
    for model in models:
        name, _, place = model.partition("=")
        folder, *run_dirs = place.split(":")
        if not name or not folder or Path(name).name != name:
            raise InputError(f"'{model}' is no NAME=FOLDER or NAME=FOLDER:RUN_DIR.")
        cost = read_cost([Path(run_dir) for run_dir in run_dirs]) if run_dirs else {}
        columns[name] = cost | _evaluate(folder, settings, output / name)
    print(markdown(columns))


def _evaluate(folder: str, tasks: EvalConfig, output: Path) -> Figures:
    place = model_folder.find_model(folder)
    paths = (path for path in sorted(place.rglob("*")) if path.is_file())
    inputs = {
        "config": dataclasses.asdict(tasks),
        "files": {str(path.relative_to(place)): path.stat().st_mtime_ns for path in paths},
    }
    inputs = json.loads(json.dumps(inputs))
    note, figures = output / "table.json", output / FIGURES
    # Another evaluation into this folder, even one that was killed, changes the figures.
    known = files.read_json(note) if note.exists() and figures.exists() else None
    if known != inputs | {FIGURES: checksums.of_file(figures) if known else ""}:
        from spirit_jax.evaluation.run import evaluate
        from spirit_jax.spiritlm import SpiritLM

        evaluate(SpiritLM.from_pretrained(folder), tasks, output, Console(stderr=True))
        config.write(inputs | {FIGURES: checksums.of_file(figures)}, note)
    return files.read_json(figures)


def read_cost(run_dirs: list[Path]) -> Figures:
    """Total steps, millions of tokens and minutes of runs, from their metrics.jsonl."""
    steps, rows = 0, []
    for run_dir in run_dirs:
        if not (run_dir / "metrics.jsonl").is_file():
            raise InputError(f"{run_dir}: is not the folder of a training (no metrics.jsonl).")
        metrics = files.read_json_objects(run_dir / "metrics.jsonl")
        steps += metrics[-1]["step"] if metrics else 0
        rows += metrics
    cost = {
        "steps": steps,
        "million tokens": sum(row["tokens"] for row in rows) / 1e6,
        "minutes": sum(row["seconds"] for row in rows) / 60,
    }
    return {"training": cost}


def markdown(columns: dict[str, Figures]) -> str:
    """A table of figures with a column for each model; "-" where a model has none.

    The number of a task's items follows its name.
    """
    labels = list(
        dict.fromkeys(
            (task, figure)
            for figures in columns.values()
            for task, values in figures.items()
            for figure in values
            if figure not in HIDDEN
        )
    )
    lines = [f"| task | figure | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for task, figure in labels:
        by_model = [figures.get(task, {}) for figures in columns.values()]
        items = max(values.get("items", 0) for values in by_model)
        name = f"{task} ({items:.0f})" if items else task
        cells = " | ".join(_show(values.get(figure)) for values in by_model)
        lines.append(f"| {name} | {figure} | {cells} |")
    return "\n".join(lines)


def _show(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"


if __name__ == "__main__":
    run(main)
