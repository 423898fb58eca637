"""A model through a list of tasks: figures, and every answer to look at."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from spirit_jax import checksums, files, lock, model_folder
from spirit_jax import config as config_lib
from spirit_jax.data.manifest import source_checksum
from spirit_jax.errors import InputError
from spirit_jax.evaluation.configs import EvalConfig
from spirit_jax.evaluation.pairs import check_pairs, run_pairs
from spirit_jax.evaluation.tasks import Hearing, TaskConfig, check_audio, check_task, run_task
from spirit_jax.spiritlm import SpiritLM

FIGURES = "figures.json"
LOCK = "eval.lock"
NOTE = "made_of.json"  # what the results in a folder come from


def evaluate(
    lm: SpiritLM, config: EvalConfig, output: str | Path, console: Console
) -> dict[str, dict[str, float]]:
    """Runs all tasks and pairs; figures are written after each.

    All inputs are checked before the folder is made.

    Results of the same evaluation in the folder are written again. Those of another model, config
    or manifest are moved to a folder `earlier-N` in it: results are never mixed.

    Args:
      lm: the model.
      config: what to run.
      output: a folder for figures.json, NAME.jsonl with every answer, and NAME/ID.wav.
      console: for progress bars.

    Returns:
      Figures by task, with the number of items as "items".

    Raises:
      InputError: nothing to run, names that are no folder's or there twice, a manifest, item or
        judge that cannot be used, or a folder that another process evaluates into.
    """
    config.check_names()
    output = Path(output)
    made_of = _describe(lm, config)
    for part in config.tasks:
        check_task(lm, part, output / part.name, config.seed)
    for part in config.pairs:
        check_pairs(lm, part, check_audio)
    with lock.hold(output, LOCK, choice="output folder") as held:
        _begin(output, made_of)
        return _run(lm, config, output, held, console)


def _run(
    lm: SpiritLM, config: EvalConfig, output: Path, held: lock.Lock, console: Console
) -> dict[str, dict[str, float]]:
    figures: dict[str, dict[str, float]] = {}
    hear = Hearing(lm)
    for part in (*config.tasks, *config.pairs):
        if isinstance(part, TaskConfig):
            scores, rows = run_task(lm, part, output / part.name, hear, config.seed, console)
        else:
            scores, rows = run_pairs(lm, part, hear, console)
        held.check()
        figures[part.name] = scores | {"items": len(rows)}
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        files.write_text(output / f"{part.name}.jsonl", lines)
        config_lib.write(figures, output / FIGURES)
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
    model = {"model": model_folder.fingerprint(lm.folder)}
    return model | json.loads(json.dumps(dataclasses.asdict(config))) | contents


def _begin(output: Path, made_of: dict[str, Any]) -> None:
    """Notes what a folder of results is made of; results of something else are set aside first."""
    note = output / NOTE
    try:
        before = checksums.read_json(note) if note.is_file() else {}
        if before != made_of and (note.is_file() or (output / FIGURES).is_file()):
            _set_aside(output, before, made_of)
        checksums.write_json(note, made_of)
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({files.describe(error)}).") from error


def _set_aside(output: Path, before: dict[str, Any], made_of: dict[str, Any]) -> None:
    """Moves results to a folder of their own, and says so."""
    names = {one["name"] for one in (*before.get("tasks", ()), *before.get("pairs", ()))}
    if (output / FIGURES).is_file():
        names |= {name for name in files.read_json(output / FIGURES) if Path(name).name == name}
    number = next(n for n in itertools.count(1) if not (output / f"earlier-{n}").exists())
    earlier = output / f"earlier-{number}"
    earlier.mkdir()
    for file in [*sorted(names), *(f"{name}.jsonl" for name in names), FIGURES, NOTE]:
        if (output / file).exists():
            (output / file).rename(earlier / file)
    differ = sorted(
        name for name in before.keys() | made_of.keys() if before.get(name) != made_of.get(name)
    )
    print(
        f"notice: the results in {output} are of another evaluation ({', '.join(differ)} differ); "
        f"they are in {earlier} now.",
        file=sys.stderr,
    )
