"""Communication between the processes of a run, and stopping on signals.

With a single process nothing is sent.
"""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from spirit_jax import files
from spirit_jax.errors import InputError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
INTERRUPTED = b"\nstopping: a checkpoint is saved first; press Ctrl-C again to stop at once.\n"


def is_first() -> bool:
    """Whether this is the first process, which writes the files of a run."""
    return jax.process_index() == 0


def agree(flag: bool) -> bool:
    """The first process's flag, on every process."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


def largest(number: int) -> int:
    """The largest number over all processes."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.array(number)).max())


def from_first(compute: Callable[[], Any]) -> Any:
    """Calls `compute` on the first process and returns the result on every process.

    Args:
      compute: returns a JSON value.

    Raises:
      InputError: `compute` raised it; every process does then.
    """
    if jax.process_count() == 1:
        return compute()
    outcome, raised = {}, None
    if is_first():
        try:
            outcome = {"value": compute()}
        except InputError as error:
            outcome = {"error": str(error)}
        except BaseException as error:  # the other processes must not wait forever
            raised, outcome = error, {"error": f"The first process failed: {files.describe(error)}"}
    outcome = json.loads(_broadcast(json.dumps(outcome)))
    if raised is not None:
        raise raised
    if "error" in outcome:
        raise InputError(outcome["error"])
    return outcome["value"]


def gather(state: dict[str, Any]) -> dict[str, Any]:
    """The state of the data stream with the shards of all processes."""
    if jax.process_count() == 1 or "shards" not in state:
        return state
    local = np.frombuffer(json.dumps(state["shards"]).encode(), np.uint8)
    size = int(multihost_utils.process_allgather(np.array(len(local))).max())
    padded = np.pad(local, (0, size - len(local)), constant_values=ord(" "))
    parts = multihost_utils.process_allgather(padded)
    shards = {}
    for part in parts:
        shards |= json.loads(part.tobytes().decode())
    return state | {"shards": shards}


class Stopped(BaseException):
    """Raised by a signal inside of `Stop.droppable`.

    Like `KeyboardInterrupt` it is not an `Exception`, so that error handlers do not catch it.
    """


class Stop:
    """Whether a run must stop early; all processes stop after the same step."""

    def __init__(self):
        self.asked = False
        self._droppable = False

    def __call__(self, step: int) -> bool:
        """Whether to stop after this step; called by every process after each step."""
        if jax.process_count() == 1:
            return self.asked
        # JAX watches for SIGTERM and preemption notices, and synchronises processes.
        return multihost_utils.reached_preemption_sync_point(step)

    @contextlib.contextmanager
    def droppable(self) -> Iterator[None]:
        """A context in which a signal raises `Stopped` at once, for work that can be repeated."""
        if self.asked:
            raise Stopped
        self._droppable = True
        try:
            yield
        finally:
            self._droppable = False

    def ask(self, number: int, frame: Any) -> None:
        """Handles a signal."""
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the process at once
            os.write(2, INTERRUPTED)
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)  # JAX watches for SIGTERM and tells all processes
            return
        self.asked = True
        if self._droppable:
            raise Stopped


@contextlib.contextmanager
def watch_signals() -> Iterator[Stop]:
    """A `Stop` that handles SIGTERM (which announces a preemption) and Ctrl-C."""
    stop = Stop()
    # With several processes, JAX handles SIGTERM.
    watched = SIGNALS if jax.process_count() == 1 else SIGNALS[1:]
    try:
        before = {number: signal.signal(number, stop.ask) for number in watched}
    except ValueError:  # only the main thread may handle signals
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _broadcast(text: str) -> str:
    """The first process's text, on every process."""
    data = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(data))))
    padded = data if is_first() else np.zeros(size, np.uint8)
    return multihost_utils.broadcast_one_to_all(padded).tobytes().decode()
