"""`spirit-jax new`: writes a model folder from which a language model is trained."""

from pathlib import Path
from typing import Annotated

import typer

from spirit_jax import files, model_folder
from spirit_jax.cli import checks
from spirit_jax.data.manifest import check_source
from spirit_jax.errors import InputError


def new(
    output: Annotated[Path, typer.Argument(help="Model folder to write")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            help="Sources (as for prepare) whose texts the text tokenizer is trained on"
        ),
    ] = None,
    *,
    speech: Annotated[
        str, typer.Option(help="Model whose speech tokenizer is copied, by folder or name")
    ],
    start: Annotated[
        str | None,
        typer.Option(help="Model whose language model is copied, by folder or name"),
    ] = None,
    pieces: Annotated[
        int | None, typer.Option(help="Size of the text vocabulary; 1000 if not given")
    ] = None,
) -> None:
    """Write a model folder from which a language model is trained.

    With TEXTS: a new text tokenizer, and a copied speech tokenizer. The run config then needs
    model: OUTPUT, random_init: true and the sizes of the language model. With --start: a copied
    language model, with new embedding rows for missing units (such as Expressive from Base).

    Prepare corpora for it with prepare --model OUTPUT.
    """
    if (start is None) != bool(texts) or (start is not None and pieces is not None):
        raise InputError("Give either TEXTS (and --pieces) or --start.")
    if pieces is not None and pieces < 1:
        raise InputError(f"--pieces is {pieces}; expected 1 or more.")
    files.refuse_existing(output)
    checks.output_folder(output.absolute().parent)
    model_folder.find_speech_tokenizer(speech)
    if start is not None:
        model_folder.find_language_model(start)
    for text in texts or ():
        check_source(text)
    from spirit_jax import new_model

    if texts:
        vocab = new_model.write_new_model(output, speech, texts, pieces or 1000)
    else:
        vocab = new_model.extend_model(output, start, speech)
    print(f"{output}: {vocab.text_size} text pieces and {vocab.size - vocab.text_size - 2} units")
