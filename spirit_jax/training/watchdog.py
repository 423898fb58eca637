"""Prints what every thread does when a step takes far longer than the steps before it.

A process that hangs in a collective or in reading data looks alive to the others: JAX only notices
processes that have ended. The stacks tell where it hangs.
"""

import collections
import contextlib
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Iterator

FACTOR = 10  # times the median of the recent steps
LEAST_SECONDS = 60.0  # shorter steps are never reported
RECENT, FEWEST = 50, 5  # steps that the median is of; before that nothing is reported


class Watchdog(contextlib.AbstractContextManager):
    """Watches the steps of a training in a separate thread, from `__enter__` to `__exit__`."""

    def __init__(self, exit_minutes: float = 0.0):
        """Args: exit_minutes: a step that takes longer ends the process; 0 for never."""
        self._exit_seconds = 60 * exit_minutes
        self._recent: collections.deque[float] = collections.deque(maxlen=RECENT)
        self._since: float | None = time.monotonic()  # None while other work is done
        self._reported = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()

    def step_done(self) -> None:
        """Call it after each step."""
        now = time.monotonic()
        self._recent.append(now - self._since)
        self._since, self._reported = now, False

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """A context for work that is not part of a step, such as an evaluation."""
        before, started = self._since, time.monotonic()
        self._since = None
        try:
            yield
        finally:
            self._since = before + time.monotonic() - started

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, LEAST_SECONDS / 4)):
            since = self._since
            if since is None:
                continue
            seconds = time.monotonic() - since
            if self._exit_seconds and seconds > self._exit_seconds:
                reason = f"it is longer than {self._exit_seconds / 60:g} minutes"
                print(_describe(seconds, reason), file=sys.stderr, flush=True)
                print("error: the training hangs, so it ends.", file=sys.stderr, flush=True)
                os._exit(1)
            median = statistics.median(self._recent) if len(self._recent) >= FEWEST else None
            if median is None or self._reported:
                continue
            if seconds > max(FACTOR * median, LEAST_SECONDS):
                self._reported = True
                reason = f"the median of the last steps is {median:.1f} s"
                print(_describe(seconds, reason), file=sys.stderr, flush=True)


def _describe(seconds: float, reason: str) -> str:
    """A message with the stacks of all threads."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = [f"notice: a step has taken {seconds:.0f} s so far; {reason}. All threads:"]
    for number, frame in sys._current_frames().items():
        if number != threading.get_ident():
            lines += [f"thread {names.get(number, number)}:", *traceback.format_stack(frame)]
    return "\n".join(line.rstrip("\n") for line in lines)
