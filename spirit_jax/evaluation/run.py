"""A model through a list of tasks: figures, and every answer to look at."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from spirit_jax import config as config_lib
from spirit_jax.evaluation.configs import EvalConfig
from spirit_jax.evaluation.pairs import run_pairs
from spirit_jax.evaluation.tasks import Hearing, TaskConfig, run_task
from spirit_jax.spiritlm import SpiritLM


def evaluate(
    lm: SpiritLM, config: EvalConfig, output: str | Path, console: Console
) -> dict[str, dict[str, float]]:
    """Runs all tasks and pairs; figures are written after each.

    Args:
      lm: the model.
      config: what to run.
      output: a folder for figures.json, NAME.jsonl with every answer, and NAME/ID.wav.
      console: for progress bars.

    Returns:
      Figures by task, with the number of items as "items".

    Raises:
      InputError: nothing to run, names that are no folder's or there twice, a manifest, item or
        judge that cannot be used.
    """
    config.check_names()
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    figures: dict[str, dict[str, float]] = {}
    hear = Hearing(lm)
    for one in (*config.tasks, *config.pairs):
        if isinstance(one, TaskConfig):
            found, rows = run_task(lm, one, output / one.name, hear, config.seed, console)
        else:
            found, rows = run_pairs(lm, one, hear, console)
        figures[one.name] = found | {"items": len(rows)}
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (output / f"{one.name}.jsonl").write_text(lines, encoding="utf-8")
        config_lib.write(figures, output / "figures.json")
    return figures


def table(figures: dict[str, dict[str, float]]) -> Table:
    """A line for each task."""
    shown = Table("task", "items", "figures", box=None, pad_edge=False)
    for name, found in figures.items():
        values = (f"{key} {value:.1f}" for key, value in found.items() if key != "items")
        shown.add_row(name, str(found["items"]), "  ".join(values))
    return shown
