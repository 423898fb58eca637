"""`spirit-jax encode`: recordings to units."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from spirit_jax.cli.options import ModelDir
from spirit_jax.errors import InputError


def encode(
    model: ModelDir,
    audio: Annotated[list[Path], typer.Argument(help="Audio files: any rate, channels and length")],
    string: Annotated[bool, typer.Option("--string", help="The token string instead")] = False,
    strict: Annotated[bool, typer.Option(help="Exit with status 1 if a file was skipped")] = False,
) -> None:
    """Print the units of recordings, a JSON line a file.

    A file that cannot be read is skipped, named on standard error and counted.
    """
    from spirit_jax.data import progress
    from spirit_jax.speech_tokenizer import SpeechTokenizer

    tokenizer = SpeechTokenizer.from_pretrained(model)
    skipped = 0
    for path in progress.watch(audio, "encoding", len(audio)):
        try:
            units = tokenizer.encode(path)
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr)
            skipped += 1
            continue
        values = {"string": tokenizer.to_string(units)} if string else units.to_dict()
        print(json.dumps({"audio": str(path)} | values), flush=True)
    if skipped:
        print(f"{skipped} of {len(audio)} files were skipped.", file=sys.stderr)
        if strict or skipped == len(audio):
            raise typer.Exit(1)
