"""`spirit-jax push`: uploads a model folder to the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from spirit_jax import files, model_folder
from spirit_jax.cli.options import ModelDir
from spirit_jax.errors import InputError


def push(
    model: ModelDir,
    repository: Annotated[str, typer.Argument(help="ORG/NAME; created if it does not exist")],
    revision: Annotated[str | None, typer.Option(help="Branch; main if not given")] = None,
    private: Annotated[
        bool, typer.Option("--private", help="A new repository is not visible to others")
    ] = False,
    license: Annotated[str, typer.Option(help="Licence, such as apache-2.0")] = "",
    dataset: Annotated[
        list[str] | None, typer.Option(help="Data set on the hub; can be given several times")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Markdown file that describes the training data")
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="figures.json of spirit-jax eval")] = None,
) -> None:
    """Upload a model folder to the hub, with a generated model card.

    The card says what the model is, its licence, data and figures, and how to load it. Folder and
    card are checked before anything is sent. The token is that of hf auth login, or HF_TOKEN.
    """
    model_folder.find_language_model(model)
    text = files.read_text(data) if data else ""
    scores = files.read_json(figures) if figures else {}
    from spirit_jax import publishing

    if not isinstance(scores, dict):
        raise InputError(f"{figures}: is not a figures.json of spirit-jax eval.")
    info = publishing.CardInfo(license, tuple(dataset or ()), text, scores)
    print(publishing.push(model, repository, info, revision, private))
