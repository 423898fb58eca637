"""Progress of long computations, on standard error."""

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

SECONDS = 30  # between two printed lines

T = TypeVar("T")


def watch(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Iterates over items, with a bar on a terminal or else a line every `SECONDS`.

    Args:
      items: to iterate over.
      what: label, such as "recordings".
      total: expected number of items; there may be fewer.
    """
    if sys.stderr.isatty():
        yield from track(items, what, total, console=Console(stderr=True))
        return
    printed = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - printed > SECONDS:
            printed = time.monotonic()
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)
        yield item


@contextlib.contextmanager
def counting(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with the number of items just done, which shows progress.

    Progress is a bar on a terminal, or else a line with the rate every `SECONDS`.

    Args:
      what: label, such as "preparing".
      total: number of items; None if unknown.
    """
    started, count, printed = time.monotonic(), 0, 0.0
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_terminal = sys.stderr.isatty()
    console = Console(stderr=True)
    with Progress(
        *columns, TextColumn("{task.fields[rate]}"), console=console, disable=not is_terminal
    ) as bar:
        task = bar.add_task(what, total=total, rate="")

        def add(items: int) -> None:
            nonlocal count, printed
            count += items
            elapsed = time.monotonic() - started
            rate = f"{count / max(elapsed, 1e-9):.1f} a second"
            bar.update(task, advance=items, rate=rate)
            if not is_terminal and elapsed - printed > SECONDS:
                printed = elapsed
                of = "" if total is None else f" of {total}"
                print(f"{what}: {count}{of} items, {rate}", file=sys.stderr, flush=True)

        yield add
