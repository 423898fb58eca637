"""`spirit-jax eval`: what a model writes and says, measured by tasks."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spirit_jax import model_folder
from spirit_jax.cli import checks
from spirit_jax.cli.options import ModelDir, Overwrite


def evaluate(
    model: ModelDir,
    run: Annotated[
        Path, typer.Option("--config", help="Tasks, YAML; its fields are in docs/evaluation.md")
    ],
    output: Annotated[Path, typer.Option(help="Folder for figures, answers and sounds")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as seed=1")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Evaluate a model by tasks: what it writes and says of recordings and texts, and likelihoods.

    Prints a table. OUTPUT has figures.json, TASK.jsonl with every prompt and answer, and what was
    said. Judges, recognisers or classifiers of what was said, are commands in the config.
    """
    from spirit_jax import config
    from spirit_jax.evaluation.configs import EvalConfig

    settings = config.read(EvalConfig, run, overrides or [])
    settings.check_names()
    model_folder.find_language_model(model)
    checks.output_folder(output)
    checks.new_file(output / "figures.json", overwrite)
    from spirit_jax.evaluation.run import evaluate as run_all
    from spirit_jax.evaluation.run import table
    from spirit_jax.spiritlm import SpiritLM

    lm = SpiritLM.from_pretrained(model)
    figures = run_all(lm, settings, output, Console(stderr=True))
    Console().print(table(figures))
