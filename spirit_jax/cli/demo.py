"""`spirit-jax demo`: runs the packaged models."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spirit_jax.cli import checks


def demo(
    speech: Annotated[Path | None, typer.Option(help="Recording to transcribe")] = None,
    text: Annotated[str | None, typer.Option(help="Text to synthesise and to continue")] = None,
    output: Annotated[Path, typer.Option(help="Folder to write to")] = Path("spirit-jax-demo"),
) -> None:
    """Transcribe recordings, find their intent, synthesise a text, and continue a story.

    The packaged models know the words and sentences of a small domain: requests to a smart home,
    times, dates, weather, numbers, spelling and very short stories.
    """
    if speech is not None:
        checks.existing_file(speech)
    checks.empty_folder(output)
    from spirit_jax.demo import run

    run(output, speech, text, Console())
