"""The command `spirit-jax`: a file a command. Only in this package is the environment read.

Nothing heavy is imported until a command needs it, so help and errors appear at once.
"""

import sys

import typer

from spirit_jax.cli import (
    align,
    demo,
    encode,
    evaluate,
    generate,
    new,
    options,
    pack,
    prepare,
    resynth,
    train,
)
from spirit_jax.errors import InputError

app = typer.Typer(
    help="Spirit LM: encode speech, resynthesise it, and generate text and speech.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(encode.encode)
app.command()(resynth.resynth)
app.command()(generate.generate)
app.command()(prepare.prepare)
app.command()(align.align)
app.command()(new.new)
app.command()(train.train)
app.command()(pack.pack)
app.command("eval")(evaluate.evaluate)
app.command()(demo.demo)


def main() -> None:
    """Runs the command line; a bad input is one line on standard error and exit status 1."""
    options.use_compilation_cache()
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
