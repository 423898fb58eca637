"""What every conversion command shares."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

from spirit_jax.errors import InputError

T = TypeVar("T")


def run_main(main: Callable[[], None]) -> None:
    """Runs a command; an `InputError` is one line on standard error and exit status 1."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def show_progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The items, with a bar and the time left on a terminal."""
    console = Console(stderr=True)
    yield from track(items, what, total, console=console, disable=not console.is_terminal)


def convert_folder(doc: str, convert: Callable[[str, str], Any]) -> None:
    """The command of a network that comes as a folder: --checkpoint FOLDER --output DIR.

    Args:
      doc: the script's docstring; its first line is what `--help` says.
      convert: writes the network folder (source, output), and gives its config.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="folder to convert")
    parser.add_argument("--output", required=True, help="network folder to write")
    args = parser.parse_args()
    convert(args.checkpoint, args.output)
    print(f"wrote {args.output}")
