"""What the conversion commands share: options, and functions."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from rich.console import Console
from rich.progress import track

from spirit_jax.cli.running import UsageError
from spirit_jax.errors import InputError

T = TypeVar("T")
Checkpoint = Annotated[Path, typer.Option(help="Folder to convert")]
StoredDtype = Literal["float32", "bfloat16"]  # of the parameters of a language model
DtypeOption = Annotated[
    StoredDtype | None,
    typer.Option(help="Of the language model's parameters; by default that of each tensor"),
]


@contextlib.contextmanager
def reading_config(path: str | Path) -> Iterator[None]:
    """Turns errors in the values of a config file into an `InputError` that names the file."""
    try:
        yield
    except InputError as error:
        has_name = str(path) in str(error)
        raise error if has_name else InputError(f"{path}: {error}") from error
    except KeyError as error:
        raise InputError(f"{path}: has no {error}.") from error
    except (TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{path}: has a value of the wrong kind ({error}).") from error


def show_progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The items, with a progress bar on a terminal.

    Args:
      items: to iterate over.
      total: number of items.
      what: label of the bar.
    """
    console = Console(stderr=True)
    yield from track(items, what, total, console=console, disable=not console.is_terminal)


def require_one(*options: str, given: Sequence[Any], required: bool = True) -> None:
    """Raises a usage error unless exactly one of several options is given.

    Args:
      options: their names, such as "--output".
      given: their values; None for an option that is not given.
      required: False to allow that none is given.
    """
    count = sum(value is not None for value in given)
    if count > 1 or (required and count == 0):
        raise UsageError(f"Give {'' if required else 'only '}one of {' and '.join(options)}.")
