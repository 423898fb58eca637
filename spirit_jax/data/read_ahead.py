"""Reads items in threads, in advance of their use."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """The results of `read` for each item, in order.

    Args:
      pool: the threads.
      read: called in a thread.
      items: to read; only as many as necessary are taken.
      ahead: number of items that are read while a result is used.
    """
    started: deque[Future[R]] = deque()
    for item in items:
        started.append(pool.submit(read, item))
        if len(started) > ahead:
            yield started.popleft().result()
    while started:
        yield started.popleft().result()
