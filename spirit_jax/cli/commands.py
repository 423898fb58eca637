"""The application of the command `spirit-jax`: all its subcommands."""

from typing import Annotated

import typer

import spirit_jax
from spirit_jax.cli import (
    align,
    bench,
    demo,
    encode,
    evaluate,
    generate,
    new,
    pack,
    prepare,
    quantize,
    resynth,
    running,
    train,
)


def _print_version(is_given: bool) -> None:
    if is_given:
        print(f"spirit-jax {spirit_jax.__version__}")
        raise typer.Exit()


app = running.make_app(no_args_is_help=True)
_COMMANDS = {
    "encode": encode.encode,
    "resynth": resynth.resynth,
    "generate": generate.generate,
    "prepare": prepare.prepare,
    "align": align.align,
    "new": new.new,
    "train": train.train,
    "pack": pack.pack,
    "quantize": quantize.quantize,
    "bench": bench.bench,
    "eval": evaluate.evaluate,
    "demo": demo.demo,
}
for _name, _function in _COMMANDS.items():
    app.command(_name, cls=running.Command)(_function)


@app.callback()
def describe(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version)
    ] = False,
) -> None:
    """Spirit LM: a language model of text and speech, and its training."""
