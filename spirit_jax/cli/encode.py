"""`spirit-jax encode`: encodes recordings as units."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from spirit_jax import model_folder
from spirit_jax.cli import checks
from spirit_jax.cli.options import ModelDir
from spirit_jax.errors import InputError, ResourceError, plural


def encode(
    model: ModelDir,
    audio: Annotated[
        list[Path], typer.Argument(help="Audio files of any rate, number of channels and length")
    ],
    string: Annotated[bool, typer.Option("--string", help="Print unit strings instead")] = False,
    strict: Annotated[bool, typer.Option(help="Exit with status 1 if a file was skipped")] = False,
) -> None:
    """Print the units of recordings, one JSON object for each file.

    Files that cannot be read are skipped, and named on standard error.
    """
    model_folder.find_speech_tokenizer(model)
    skipped = [path for path in audio if _skips(lambda path=path: checks.existing_file(path))]
    present = [path for path in audio if path not in skipped]
    if present:
        skipped += _encode(model, present, string)
    if skipped:
        print(f"skipped {len(skipped)} of {plural(len(audio), 'file')}.", file=sys.stderr)
        if strict or len(skipped) == len(audio):
            raise typer.Exit(1)


def _encode(model: Path, audio: list[Path], string: bool) -> list[Path]:
    """Prints a line for each recording that can be used; returns the skipped ones."""
    from spirit_jax.data import progress
    from spirit_jax.speech_tokenizer import SpeechTokenizer

    tokenizer = SpeechTokenizer.from_pretrained(model)
    tokenizer.require_encoder()  # one error instead of one for each file
    skipped = []

    def print_line(path: Path) -> None:
        units = tokenizer.encode(path)
        if not len(units.hubert):
            raise InputError(f"{path}: has no units; it is shorter than 80 ms.")
        values = {"string": tokenizer.to_string(units)} if string else units.to_dict()
        print(json.dumps({"audio": str(path)} | values), flush=True)

    for path in progress.watch(audio, "encoding", len(audio)):
        if _skips(lambda path=path: print_line(path)):
            skipped.append(path)
    return skipped


def _skips(use) -> bool:
    """Calls a function; prints its `InputError` and returns True if it raises one."""
    try:
        use()
    except ResourceError:
        raise
    except InputError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return True
    return False
