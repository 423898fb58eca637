"""Runs command lines: `spirit-jax`, and the `python -m` commands of a checkout."""

import functools
import importlib.util
import os
import sys
import types
import typing
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import typer
from typer.core import TyperCommand

from spirit_jax.cli import interrupts, options, processes
from spirit_jax.errors import InputError
from spirit_jax.files import as_path, describe, find_resource_error, is_bucket

UsageError = typer.BadParameter.__base__  # click's, or that of the copy inside Typer
EXTRAS = {  # packages of commands, by the extra of this package that has them
    "convert": ("torch",),  # for files of PyTorch only
    "corpora": ("pocketsphinx", "sklearn", "pyworld"),
    "tpu": ("libtpu",),
    "serve": ("gradio", "fastapi", "uvicorn", "prometheus_client", "multipart"),
}

Output = typing.Annotated[Path, typer.Option(help="Folder to write to")]


class Command(TyperCommand):
    """A command that refuses an empty path, which would mean the current folder."""

    def parse_args(self, ctx, args):
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for name, hint in typing.get_type_hints(self.callback).items():
            values = given.get(name)  # a string, or those of a list
            values = values if isinstance(values, list | tuple) else [values]
            if Path in (hint, *typing.get_args(hint)) and "" in values:
                label = next(p.opts[0] for p in self.params if p.name == name)
                raise InputError(f"The path of {label} is empty; give that of a file or folder.")
        return super().parse_args(ctx, args)


def with_paths(
    function: Callable[..., None], in_buckets: Collection[str] | None = None
) -> Callable[..., None]:
    """A command whose arguments may be paths of buckets, which Typer gives as local paths.

    Args:
      function: the command.
      in_buckets: names of the arguments that may be in a bucket; None for all. A path of a bucket
        for another one is an `InputError`.
    """

    def restore(name: str, value: typing.Any) -> typing.Any:
        if isinstance(value, list | tuple):
            return type(value)(restore(name, each) for each in value)
        if not isinstance(value, Path):
            return value
        path = as_path(value)
        if is_bucket(path) and in_buckets is not None and name not in in_buckets:
            raise InputError(
                f"{path}: --{name.replace('_', '-')} is read from the local disk only; copy it "
                "there first."
            )
        return path

    @functools.wraps(function)
    def command(*args, **options) -> None:
        function(*args, **{name: restore(name, value) for name, value in options.items()})

    return command


def make_app(**settings) -> typer.Typer:
    """A Typer application that leaves the output of errors to `call`."""
    plain = {"add_completion": False, "pretty_exceptions_enable": False}
    # Without markup, words in square brackets are words.
    return typer.Typer(**plain, rich_markup_mode=None, **settings)


def run(function: Callable[..., None]) -> None:
    """Runs the command of a `python -m` module.

    Args:
      function: its parameters are the options and arguments, as Typer reads them. The docstring of
        its module is the text of `--help`.
    """
    module = sys.modules[function.__module__]
    app = make_app()
    app.command(help=describe_module(module), cls=Command)(with_paths(function))
    call(app, f"python -m {module.__spec__.name}")


def describe_module(module: types.ModuleType) -> str:
    """The docstring of a module as the help of a command, with its lines as they are."""
    return "\n\n".join(f"\b\n{paragraph}" for paragraph in module.__doc__.split("\n\n"))


def call(app: typer.Typer, name: str) -> None:
    """Runs an application on the arguments of this process.

    An error is one line on standard error. The exit status is 1 for a bad input or if standard
    output cannot be written, 2 for an unknown command, option or argument, 130 after Ctrl-C, and
    143 after SIGTERM.

    Args:
      app: the application.
      name: how users call it, for messages.
    """
    _replace_closed_streams()
    try:
        if sys.stdout is None:
            raise InputError("Standard output is closed; redirect it, such as with >/dev/null.")
        with interrupts.raising():
            _invoke(app, name)
    except UsageError as error:
        place = error.ctx.command_path if error.ctx else name
        message = error.format_message().rstrip(".")
        if "\n" in message:  # the help, for a command line without arguments
            print(message, file=sys.stderr)
            sys.exit(2)
        _fail(f"{message}{'' if message.endswith('?') else '.'} See {place} --help.", 2)
    except KeyboardInterrupt as error:
        interrupts.end(*error.args)
    except BrokenPipeError:  # such as `| head`
        _drop_output()
        sys.exit(1)
    except Exception as error:
        processes.end_together(error)
        if isinstance(error, InputError):
            _fail(str(error), 1)
        if isinstance(error, OSError) or find_resource_error(error):
            output = "standard output" if _drop_output() else "the machine"
            _fail(f"{getattr(error, 'filename', None) or output}: {describe(error)}.", 1)
        raise


def _invoke(app: typer.Typer, name: str) -> None:
    """Runs the command that `sys.argv` names, and writes all of its output."""
    status = None
    try:
        with typer.main.get_command(app).make_context(name, sys.argv[1:]) as context:
            context.command.invoke(context)
    except typer.Exit as stop:  # also after help, with status 0
        status = stop.exit_code
    sys.stdout.flush()  # a full disk must be reported here, not while Python ends
    if status is not None:
        sys.exit(status)


def _replace_closed_streams() -> None:
    """Opens the null device in place of closed standard streams.

    Otherwise the next file that is opened would get the number of the stream, and messages of C++
    libraries would be written into it. Python prints to standard output what is for a closed
    standard error. `sys.stdout` stays None if it is.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest free number
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")


def _drop_output() -> bool:
    """Whether standard output cannot be written; the rest of its buffer is then discarded."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def require(extra: str | None = None) -> None:
    """Ends a `python -m` command of a package that imports what is not installed.

    For the package's `__init__`: while Python looks for the module to run, `sys.argv[0]` is "-m".
    Until the command starts, Ctrl-C ends the process without a traceback; libtpu is not started
    without a TPU.

    Args:
      extra: one of `EXTRAS`; None for a package that imports only this package's dependencies.
    """
    if sys.argv[0] != "-m":
        return
    interrupts.end_at_once()
    options.avoid_libtpu()
    needed = EXTRAS[extra] if extra else ()
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        _fail(describe_missing(missing, extra), 1)


def describe_missing(packages: Sequence[str], extra: str) -> str:
    """The error for packages of an extra that are not installed."""
    return (
        f"{' and '.join(packages)} cannot be imported: this command needs the extra {extra} "
        f"(pip install 'spirit-jax[{extra}]', in a checkout pip install -e '.[{extra}]')."
    )


def _fail(message: str, status: int) -> None:
    if sys.stdout is not None:
        _drop_output()
    print("error:", " ".join(message.splitlines()), file=sys.stderr)
    sys.exit(status)
