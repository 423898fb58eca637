"""`spirit-jax eval`: evaluates a language model."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spirit_jax import files, model_folder
from spirit_jax.cli import checks
from spirit_jax.cli.options import ModelDir, Overwrite, RemoteModel


def evaluate(
    model: ModelDir,
    run: Annotated[Path, typer.Option("--config", help="YAML file of tasks; see docs/eval.md")],
    output: Annotated[Path, typer.Option(help="Folder for scores, answers and audio")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as seed=1")
    ] = None,
    overwrite: Overwrite = False,
    remote: RemoteModel = None,
) -> None:
    """Evaluate a language model by generated answers and by likelihoods of pairs.

    Prints a table of scores. OUTPUT gets figures.json, TASK.jsonl with every prompt and answer, and
    WAV files of generated speech. Speech recognisers or classifiers that judge generated speech are
    commands in the config.
    """
    from spirit_jax import config
    from spirit_jax.data.manifest import check_source
    from spirit_jax.evaluation.configs import EvalConfig, check_judge

    settings = config.read(EvalConfig, run, overrides or [])
    settings.check_names()
    model_folder.find_language_model(model)
    for task in settings.tasks:
        if task.voice:
            checks.voice(model, task.voice)
        for source in filter(None, (task.manifest, task.examples)):
            check_source(source)
        if task.judge:
            check_judge(task.judge)
    for pairs in settings.pairs:
        checks.existing_file(files.as_path(pairs.manifest))
    checks.output_folder(output)
    checks.new_file(output / "figures.json", overwrite)
    from spirit_jax.evaluation.run import evaluate as run_all
    from spirit_jax.evaluation.run import table
    from spirit_jax.spiritlm import SpiritLM

    lm = SpiritLM.from_pretrained(model, lm=remote)
    figures = run_all(lm, settings, output, Console(stderr=True))
    Console().print(table(figures))
