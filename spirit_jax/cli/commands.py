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
    lazy,
    new,
    pack,
    prepare,
    push,
    quantize,
    resynth,
    running,
    serve,
    train,
)


def _print_version(is_given: bool) -> None:
    if is_given:
        print(f"spirit-jax {spirit_jax.__version__}")
        raise typer.Exit()


CONVERSIONS = (
    *("release", "open", "llama", "hubert", "hifigan", "pitch", "style", "fcpe", "ctc"),
    *("export", "format", "verify"),
)

app = running.make_app(no_args_is_help=True, cls=lazy.lazy_group({"plan": "spirit_jax.tpu.plan"}))
convert = running.make_app(
    no_args_is_help=True,
    cls=lazy.lazy_group({name: f"spirit_jax.convert.{name}" for name in CONVERSIONS}),
)
app.add_typer(convert, name="convert")
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
    "push": push.push,
    "serve": serve.serve,
    "demo": demo.demo,
}
for _name, _function in _COMMANDS.items():
    app.command(_name, cls=running.Command)(running.with_paths(_function))


@app.callback()
def describe(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version)
    ] = False,
) -> None:
    """Spirit LM: a language model of text and speech, and its training."""


@convert.callback()
def describe_convert() -> None:
    """Convert models: from PyTorch and Hugging Face, back, and from one format to the other."""
