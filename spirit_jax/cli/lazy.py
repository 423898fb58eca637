"""Groups of commands whose modules are imported only when a command of theirs runs."""

import ast
import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import typer
from typer.core import TyperCommand, TyperGroup

from spirit_jax.cli import running
from spirit_jax.errors import InputError

# Modules whose command reads only files of this package, which may be in a bucket.
OWN = {"spirit_jax.tpu.plan", "spirit_jax.convert.export", "spirit_jax.convert.format"}


def lazy_group(modules: Mapping[str, str]) -> type[TyperGroup]:
    """A class for groups with commands from modules, beside those that the group has itself.

    Listing the commands imports no module, so help appears at once, also where a package that a
    command needs is not installed.

    Args:
      modules: name of the module by command. Its function `main` is the command, and its docstring
        the help.
    """

    class LazyGroup(TyperGroup):
        def list_commands(self, ctx):
            return [*super().list_commands(ctx), *modules]

        def get_command(self, ctx, cmd_name):
            if cmd_name not in modules:
                return super().get_command(ctx, cmd_name)
            return TyperCommand(cmd_name, callback=None, help=_read_summary(modules[cmd_name]))

        def resolve_command(self, ctx, args):
            if args[0] in modules:
                return args[0], load(modules[args[0]]), args[1:]
            return super().resolve_command(ctx, args)

    return LazyGroup


def load(module: str) -> TyperCommand:
    """Imports a module and returns its command.

    Raises:
      InputError: a package that the module imports is not installed.
    """
    try:
        function = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        extras = [extra for extra, names in running.EXTRAS.items() if missing in names]
        if not extras:
            raise
        raise InputError(running.describe_missing([missing], extras[0])) from error
    app = running.make_app()
    app.command(help=running.describe_module(importlib.import_module(module)), cls=running.Command)(
        running.with_paths(function, None if module in OWN else {"output"})
    )
    return typer.main.get_command(app)


def _read_summary(module: str) -> str:
    """The first line of a module's docstring, from its file."""
    spec = importlib.util.find_spec(module)
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    return text.splitlines()[0]
