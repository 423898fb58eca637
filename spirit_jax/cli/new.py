"""`spirit-jax new`: a model folder to train a language model in."""

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
            help="Sources as prepare takes them; the text vocabulary is learnt from their texts"
        ),
    ] = None,
    *,
    speech: Annotated[
        str, typer.Option(help="Model whose speech tokenizer it gets, by folder or name")
    ],
    start: Annotated[
        str | None,
        typer.Option(help="Model whose language model it starts from, by folder or name"),
    ] = None,
    pieces: Annotated[
        int | None, typer.Option(help="Size of the text vocabulary; 1000 if not given")
    ] = None,
) -> None:
    """Make a model folder, to train a language model of your own in.

    From TEXTS: a vocabulary and a speech tokenizer. A run config then says model: OUTPUT,
    random_init: true and the sizes of the language model. With --start: the language model of
    another, with new rows for the units that it lacks (Expressive from Base, say).

    prepare takes --model OUTPUT.
    """
    if (start is None) != bool(texts) or (start is not None and pieces is not None):
        raise InputError("Give TEXTS (and --pieces) to learn a vocabulary from, or --start alone.")
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
    print(f"{output}: {vocab.text_size} text pieces and {vocab.size - vocab.first_unit} units")
