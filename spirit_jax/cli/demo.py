"""`spirit-jax demo`: the small models that come with the package at work."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spirit_jax.cli import checks


def demo(
    speech: Annotated[Path | None, typer.Option(help="A recording of your own to hear")] = None,
    text: Annotated[str | None, typer.Option(help="To read aloud, and to go on from")] = None,
    output: Annotated[Path, typer.Option(help="Folder to write to")] = Path("spirit-jax-demo"),
) -> None:
    """Hear a request, write down what was said and meant, read aloud, and make a story up.

    The small models that do it come with the package. They know the words and sentences of a small
    world: requests to a house, times, dates, weather, numbers, spelling, very short stories.
    """
    if speech is not None:
        checks.existing_file(speech)
    checks.empty_folder(output)
    from spirit_jax.demo import run

    run(output, speech, text, Console())
