"""Runs an evaluation: scores of all tasks, and files with every answer."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from spirit_jax import checksums, files, model_folder
from spirit_jax import config as config_lib
from spirit_jax.data.manifest import source_checksum
from spirit_jax.evaluation.configs import EvalConfig
from spirit_jax.evaluation.pairs import check_pairs, run_pairs
from spirit_jax.evaluation.tasks import TaskConfig, UnitStrings, check_audio, check_task, run_task
from spirit_jax.files import lock
from spirit_jax.spiritlm import SpiritLM

FIGURES = "figures.json"
LOCK = "eval.lock"
INPUTS = "inputs.json"  # the model, config and manifests of the results in a folder
FORMER_INPUTS = "made_of.json"  # as earlier versions of this package named it


def evaluate(
    lm: SpiritLM, config: EvalConfig, output: str | Path, console: Console
) -> dict[str, dict[str, float]]:
    """Runs all tasks and pairs; scores are written after each.

    All inputs are checked before the folder is created. Results of the same evaluation are
    overwritten. Results of another model, config or manifest are moved to a subfolder `earlier-N`.

    Args:
      lm: the model.
      config: tasks and pairs.
      output: folder for figures.json, NAME.jsonl with every answer, and NAME/ID.wav.
      console: for progress bars.

    Returns:
      Scores by name, for each task, with the number of items as "items".

    Raises:
      InputError: there are no tasks, a name is duplicate or not a file name, a manifest, item or
        judge cannot be used, or another process writes to the folder.
    """
    config.check_names()
    output = files.as_path(output)
    inputs = _list_inputs(lm, config)
    for task in config.tasks:
        check_task(lm, task, output / task.name, config.seed)
    for pairs in config.pairs:
        check_pairs(lm, pairs, check_audio)
    with lock.hold(output, LOCK, choice="output folder") as output_lock:
        _write_inputs(output, inputs)
        return _run(lm, config, output, output_lock, console)


def _run(
    lm: SpiritLM, config: EvalConfig, output: Path, output_lock: lock.Lock, console: Console
) -> dict[str, dict[str, float]]:
    figures: dict[str, dict[str, float]] = {}
    encode = UnitStrings(lm)
    for part in (*config.tasks, *config.pairs):
        if isinstance(part, TaskConfig):
            scores, rows = run_task(lm, part, output / part.name, encode, config.seed, console)
        else:
            scores, rows = run_pairs(lm, part, encode, console)
        output_lock.check()
        figures[part.name] = scores | {"items": len(rows)}
        files.write_json_lines(output / f"{part.name}.jsonl", rows)
        config_lib.write(figures, output / FIGURES)
    return figures


def table(figures: dict[str, dict[str, float]]) -> Table:
    """The scores as a table with a row for each task."""
    rows = Table("task", "items", "figures", box=None, pad_edge=False)
    for name, scores in figures.items():
        values = (f"{key} {value:.1f}" for key, value in scores.items() if key != "items")
        rows.add_row(name, str(scores["items"]), "  ".join(values))
    return rows


def _list_inputs(lm: SpiritLM, config: EvalConfig) -> dict[str, Any]:
    """Everything that the results of an evaluation depend on, as JSON values by name."""
    sources = [part.manifest for part in (*config.tasks, *config.pairs)]
    sources += [task.examples for task in config.tasks if task.examples]
    contents = {f"content of {source}": source_checksum(source) for source in sources}
    model = {"model": model_folder.fingerprint(lm.folder)}
    return model | json.loads(json.dumps(dataclasses.asdict(config))) | contents


def _write_inputs(output: Path, inputs: dict[str, Any]) -> None:
    """Writes the inputs of the results; results with other inputs are moved away first."""
    path, former = output / INPUTS, output / FORMER_INPUTS
    known = path if path.is_file() or not former.is_file() else former
    try:
        earlier = checksums.read_json(known) if known.is_file() else {}
        if earlier != inputs and (known.is_file() or (output / FIGURES).is_file()):
            _move_earlier(output, earlier, inputs)
        checksums.write_json(path, inputs)
        former.unlink(missing_ok=True)
    except OSError as error:
        raise files.unwritable(output, error) from error


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _move_earlier(output: Path, before: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Moves the results of another evaluation to a subfolder, and prints a notice.

    The list of inputs is moved last, so a process that is killed meanwhile resumes: files that are
    moved already are in the subfolder, and the others still fit into it.
    """
    names = {part["name"] for part in (*before.get("tasks", ()), *before.get("pairs", ()))}
    if (output / FIGURES).is_file():
        names |= {name for name in files.read_json(output / FIGURES) if Path(name).name == name}
    results = [*sorted(names), *(f"{name}.jsonl" for name in sorted(names)), FIGURES]
    present = [file for file in (*results, FORMER_INPUTS, INPUTS) if _is_there(output / file)]
    folders = (output / f"earlier-{number}" for number in itertools.count(1))
    earlier = next(
        folder for folder in folders if not any(_is_there(folder / file) for file in present)
    )
    earlier.mkdir(exist_ok=True)
    for file in present:
        (output / file).rename(earlier / file)
    differ = sorted(
        name for name in before.keys() | inputs.keys() if before.get(name) != inputs.get(name)
    )
    print(
        f"notice: the results in {output} were of another evaluation ({', '.join(differ)} differ); "
        f"they are in {earlier} now.",
        file=sys.stderr,
    )
