"""The command `spirit-jax`, with one module for each subcommand.

Only this package reads the environment. JAX and the models are imported inside the commands, so
help and errors appear at once.
"""

import os
import sys
from typing import Annotated

import typer

import spirit_jax
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
    processes,
    resynth,
    train,
)
from spirit_jax.errors import InputError
from spirit_jax.files import describe as describe_error
from spirit_jax.files import find_lack

USAGE_ERROR = typer.BadParameter.__base__  # click's, or that of the copy inside Typer


def _print_version(is_given: bool) -> None:
    if is_given:
        print(f"spirit-jax {spirit_jax.__version__}")
        raise typer.Exit()


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # words in square brackets are words
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


@app.callback()
def describe(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version)
    ] = False,
) -> None:
    """Spirit LM: a language model of text and speech, and its training."""


def main() -> None:
    """Runs the command line.

    An error is one line on standard error. The exit status is 1 for a bad input, 2 for an unknown
    command, option or argument, and 130 after Ctrl-C.
    """
    options.prepare_environment()
    try:
        sys.exit(app(standalone_mode=False))
    except InputError as error:
        processes.end_together(error)
        _fail(str(error), 1)
    except USAGE_ERROR as error:
        message = error.format_message().rstrip(".")
        if not message:  # no arguments: the help has been printed
            sys.exit(2)
        place = error.ctx.command_path if error.ctx else "spirit-jax"
        _fail(f"{message}{'' if message.endswith('?') else '.'} See {place} --help.", 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    except BrokenPipeError:  # such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        processes.end_together(error)
        if find_lack(error):
            name = getattr(error, "filename", None) or "the machine"
            _fail(f"{name}: {describe_error(error)}.", 1)
        raise


def _fail(message: str, status: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
