"""A model through a list of tasks: figures, and every answer to look at."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from spirit_jax import checkpoint, checksums, files
from spirit_jax import config as config_lib
from spirit_jax.data.prepare import source_checksum
from spirit_jax.errors import InputError
from spirit_jax.evaluation.configs import EvalConfig
from spirit_jax.evaluation.pairs import run_pairs
from spirit_jax.evaluation.tasks import Hearing, TaskConfig, run_task
from spirit_jax.spiritlm import SpiritLM

NOTE = "made_of.json"  # what the results in a folder come from


def evaluate(
    lm: SpiritLM, config: EvalConfig, output: str | Path, console: Console
) -> dict[str, dict[str, float]]:
    """Runs all tasks and pairs; figures are written after each.

    A folder with results of the same evaluation is written again, one with others is refused: its
    results are never mixed.

    Args:
      lm: the model.
      config: what to run.
      output: a folder for figures.json, NAME.jsonl with every answer, and NAME/ID.wav.
      console: for progress bars.

    Returns:
      Figures by task, with the number of items as "items".

    Raises:
      InputError: nothing to run, names that are no folder's or there twice, a manifest, item or
        judge that cannot be used, or `output` has results of another model, config or manifest.
    """
    config.check_names()
    output = Path(output)
    _begin(output, _describe(lm, config))
    figures: dict[str, dict[str, float]] = {}
    hear = Hearing(lm)
    for one in (*config.tasks, *config.pairs):
        if isinstance(one, TaskConfig):
            found, rows = run_task(lm, one, output / one.name, hear, config.seed, console)
        else:
            found, rows = run_pairs(lm, one, hear, console)
        figures[one.name] = found | {"items": len(rows)}
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        files.write_text(output / f"{one.name}.jsonl", lines)
        config_lib.write(figures, output / "figures.json")
    return figures


def table(figures: dict[str, dict[str, float]]) -> Table:
    """A line for each task."""
    shown = Table("task", "items", "figures", box=None, pad_edge=False)
    for name, found in figures.items():
        values = (f"{key} {value:.1f}" for key, value in found.items() if key != "items")
        shown.add_row(name, str(found["items"]), "  ".join(values))
    return shown


def _describe(lm: SpiritLM, config: EvalConfig) -> dict[str, Any]:
    """What the results of an evaluation depend on, by name, as JSON has it."""
    sources = [one.manifest for one in (*config.tasks, *config.pairs)]
    sources += [task.examples for task in config.tasks if task.examples]
    contents = {f"content of {source}": source_checksum(source) for source in sources}
    model = {"model": checkpoint.fingerprint(lm.folder)}
    return model | json.loads(json.dumps(dataclasses.asdict(config))) | contents


def _begin(output: Path, made_of: dict[str, Any]) -> None:
    """Notes what a folder of results is made of; `InputError` for one made of something else."""
    note = output / NOTE
    if not note.is_file():
        if (output / "figures.json").exists():
            raise InputError(f"{output}: has results of an unknown model; take another folder.")
        checksums.write_json(note, made_of)
        return
    before = checksums.read_json(note)
    for name in sorted(before.keys() | made_of.keys()):
        old, new = before.get(name), made_of.get(name)
        if old != new:
            raise InputError(
                f"{output}: has results with {name} {_shorten(old)}, and now it is "
                f"{_shorten(new)}; take another folder, or remove this one."
            )


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}..."
