"""How far a long computation is, on standard error."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    track,
)

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


@contextlib.contextmanager
def counting(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A function to tell of items as they are done: lines with the rate, on a terminal a bar.

    Args:
      what: is being done, such as "preparing".
      total: items in all; None if that is not known.
    """
    started, count, told = time.monotonic(), 0, 0.0
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_terminal = sys.stderr.isatty()
    console = Console(stderr=True)
    with Progress(
        *columns, TextColumn("{task.fields[rate]}"), console=console, disable=not is_terminal
    ) as bar:
        task = bar.add_task(what, total=total, rate="")

        def done(items: int) -> None:
            nonlocal count, told
            count += items
            elapsed = time.monotonic() - started
            rate = f"{count / max(elapsed, 1e-9):.1f} a second"
            bar.update(task, advance=items, rate=rate)
            if not is_terminal and elapsed - told > SECONDS:
                told = elapsed
                of = "" if total is None else f" of {total}"
                print(f"{what}: {count}{of} items, {rate}", file=sys.stderr, flush=True)

        yield done
