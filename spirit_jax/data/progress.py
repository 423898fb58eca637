"""How far a long computation is, on standard error."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

SECONDS = 30  # between two lines

T = TypeVar("T")


def watch(things: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Gives things, with a bar on a terminal and a line now and then otherwise.

    Args:
      things: given as they come.
      what: they are, such as "recordings".
      total: how many are expected; fewer may come.
    """
    if sys.stderr.isatty():
        yield from track(things, what, total, console=Console(stderr=True))
        return
    told = time.monotonic()
    for done, thing in enumerate(things):
        if time.monotonic() - told > SECONDS:
            told = time.monotonic()
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)
        yield thing
