"""`spirit-jax new`: a model folder to train a language model in."""

from pathlib import Path
from typing import Annotated

import typer

from spirit_jax.errors import InputError


def new(
    output: Annotated[Path, typer.Argument(help="Model folder to write")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="What its text vocabulary is learnt from: see prepare"),
    ] = None,
    *,
    speech: Annotated[str, typer.Option(help="Model whose speech tokenizer it gets, or a name")],
    start: Annotated[
        str | None, typer.Option(help="Model whose language model and texts it goes on from")
    ] = None,
    pieces: Annotated[
        int | None, typer.Option(help="Of the text vocabulary; 1000 if not given")
    ] = None,
) -> None:
    """Make a model folder, to train a language model of your own in.

    From TEXTS: a vocabulary and a speech tokenizer. A run config then says model: OUTPUT,
    random_init: true and the sizes of the language model. With --start: the language model of
    another, with new rows for the units that it lacks (Expressive from Base, say).

    prepare takes --model OUTPUT.
    """
    from spirit_jax import new_model

    if start is None and texts:
        vocab = new_model.write_new_model(output, speech, texts, pieces or 1000)
    elif start is not None and not texts and pieces is None:
        vocab = new_model.extend_model(output, start, speech)
    else:
        raise InputError("Give TEXTS (and --pieces) to learn a vocabulary from, or --start alone.")
    print(f"{output}: {vocab.text_size} text pieces and {vocab.size - vocab.first_unit} units")
