"""The table of docs/spirit-tiny.md: models by tasks, and what they cost.

    python -m corpora.table --config configs/tiny/eval.yaml --output runs/tiny/eval \\
        base=spirit-tiny-base:runs/tiny/lm-base:runs/tiny/lm-base2 thirds=runs/thirds

Evaluates each model as `spirit-jax eval` does, into OUTPUT/NAME, unless its figures are there and
neither the model nor the config has changed since, and prints a table in Markdown. A model is
NAME=FOLDER, or NAME=FOLDER:RUN_DIR to tell of its training, in one run or in several.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from rich.console import Console

from spirit_jax import SpiritLM, config, files, model_folder
from spirit_jax.errors import InputError
from spirit_jax.evaluation.run import EvalConfig, evaluate

HIDDEN = "items", "commonest"  # figures that are no row of their own
Figures = dict[str, dict[str, float]]


def main() -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__spec__.name}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER[:RUN_DIR...]")
    parser.add_argument("--config", type=Path, required=True, help="tasks, as of spirit-jax eval")
    parser.add_argument("--output", type=Path, required=True, help="folder for answers and figures")
    given = parser.parse_args()
    try:
        tasks, columns = config.read(EvalConfig, given.config), {}
        for model in given.models:
            name, _, place = model.partition("=")
            folder, *run_dirs = place.split(":")
            if not name or not folder or Path(name).name != name:
                raise InputError(f"'{model}' is no NAME=FOLDER or NAME=FOLDER:RUN_DIR.")
            cost = read_cost([Path(run_dir) for run_dir in run_dirs]) if run_dirs else {}
            figures = _evaluate(folder, tasks, given.output / name)
            columns[name] = cost | figures
        print(markdown(columns))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _evaluate(folder: str, tasks: EvalConfig, output: Path) -> Figures:
    place = model_folder.find_model(folder)
    paths = (path for path in sorted(place.rglob("*")) if path.is_file())
    made_of = {
        "config": dataclasses.asdict(tasks),
        "files": {str(path.relative_to(place)): path.stat().st_mtime_ns for path in paths},
    }
    made_of = json.loads(json.dumps(made_of))
    note = output / "table.json"  # written last; evaluate has a note of its own
    if not note.exists() or files.read_json(note) != made_of:
        evaluate(SpiritLM.from_pretrained(folder), tasks, output, Console(stderr=True))
        config.write(made_of, note)
    return files.read_json(output / "figures.json")


def read_cost(run_dirs: list[Path]) -> Figures:
    """Steps, millions of tokens, and minutes of runs together, from their metrics.jsonl."""
    steps, rows = 0, []
    for run_dir in run_dirs:
        if not (run_dir / "metrics.jsonl").is_file():
            raise InputError(f"{run_dir}: is not the folder of a training (no metrics.jsonl).")
        own = files.read_json_objects(run_dir / "metrics.jsonl")
        steps += own[-1]["step"] if own else 0
        rows += own
    cost = {
        "steps": steps,
        "million tokens": sum(row["tokens"] for row in rows) / 1e6,
        "minutes": sum(row["seconds"] for row in rows) / 60,
    }
    return {"training": cost}


def markdown(columns: dict[str, Figures]) -> str:
    """A table of figures, a column for each model; "-" where a model has none.

    A task's row tells how many items it has.
    """
    labels = list(
        dict.fromkeys(
            (task, figure)
            for figures in columns.values()
            for task, found in figures.items()
            for figure in found
            if figure not in HIDDEN
        )
    )
    lines = [f"| task | figure | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for task, figure in labels:
        found = [figures.get(task, {}) for figures in columns.values()]
        items = max(one.get("items", 0) for one in found)
        name = f"{task} ({items:.0f})" if items else task
        shown = " | ".join(_show(one.get(figure)) for one in found)
        lines.append(f"| {name} | {figure} | {shown} |")
    return "\n".join(lines)


def _show(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"


if __name__ == "__main__":
    main()
