"""Functions that the conversion commands share."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

from spirit_jax import files
from spirit_jax.errors import InputError

T = TypeVar("T")


def run_main(main: Callable[[], None]) -> None:
    """Runs a command; prints an error as one line on standard error, with exit status 1."""
    try:
        main()
    except InputError as error:
        message = str(error)
    except KeyboardInterrupt:
        message = "interrupted; nothing was written."
    except (OSError, MemoryError) as error:
        message = (
            f"{getattr(error, 'filename', None) or 'the conversion'}: {files.describe(error)}."
        )
    else:
        return
    print("error: " + " ".join(message.splitlines()), file=sys.stderr)
    sys.exit(1)


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


def natural(text: str) -> int:
    """A whole number from 0, for argparse."""
    if not (text.isascii() and text.isdigit() and len(text) <= files.MAX_DIGITS):
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def show_progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The items, with a progress bar on a terminal.

    Args:
      items: to iterate over.
      total: number of items.
      what: label of the bar.
    """
    console = Console(stderr=True)
    yield from track(items, what, total, console=console, disable=not console.is_terminal)


def convert_folder(doc: str, convert: Callable[[str, str], Any]) -> None:
    """The command line of a conversion: --checkpoint FOLDER --output DIR.

    Args:
      doc: docstring of the script; its first line is the text of `--help`.
      convert: (source, output) writes the network folder.
    """
    module = sys.modules["__main__"].__spec__  # the script that is run
    prog = f"python -m {module.name}" if module else None
    parser = argparse.ArgumentParser(prog=prog, description=doc.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="folder to convert")
    parser.add_argument("--output", required=True, help="network folder to write")
    args = parser.parse_args()
    convert(args.checkpoint, args.output)
    print(f"wrote {args.output}")
