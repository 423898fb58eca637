"""How the processes of a run agree, and how a run is asked to stop; one process sends nothing."""

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
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def agree(flag: bool) -> bool:
    """What the first process says."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


def largest(number: int) -> int:
    """The largest of the numbers that the processes give."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.array(number)).max())


def from_first(compute: Callable[[], Any]) -> Any:
    """What `compute` returns on the first process, which alone calls it, on every process.

    Args:
      compute: returns a value that JSON can hold.

    Raises:
      InputError: raised by `compute`; every process raises it.
    """
    if jax.process_count() == 1:
        return compute()
    outcome, raised = {}, None
    if is_first():
        try:
            outcome = {"value": compute()}
        except InputError as error:
            outcome = {"error": str(error)}
        except BaseException as error:  # the other processes must not wait for ever
            raised, outcome = error, {"error": f"The first process failed: {files.describe(error)}"}
    outcome = json.loads(_broadcast(json.dumps(outcome)))
    if raised is not None:
        raise raised
    if "error" in outcome:
        raise InputError(outcome["error"])
    return outcome["value"]


def gather(state: dict[str, Any]) -> dict[str, Any]:
    """A stream's state with the shards of all processes, the same on each."""
    if jax.process_count() == 1 or "shards" not in state:
        return state
    own = np.frombuffer(json.dumps(state["shards"]).encode(), np.uint8)
    size = int(multihost_utils.process_allgather(np.array(len(own))).max())
    padded = np.pad(own, (0, size - len(own)), constant_values=ord(" "))
    parts = multihost_utils.process_allgather(padded)
    shards = {}
    for part in parts:
        shards |= json.loads(part.tobytes().decode())
    return state | {"shards": shards}


class Stopped(BaseException):
    """A signal came during work that can be dropped (see `Stop.droppable`).

    Not an `Exception`, like `KeyboardInterrupt`: what handles errors must not handle this.
    """


class Stop:
    """Whether a run is to stop early, the same on every process at the same step."""

    def __init__(self):
        self.asked = False
        self._droppable = False

    def __call__(self, step: int) -> bool:
        """True from the step on at which all processes stop; called after each step."""
        if jax.process_count() == 1:
            return self.asked
        # JAX's own watch on SIGTERM and on notices of preemption, synchronised over processes.
        return multihost_utils.reached_preemption_sync_point(step)

    @contextlib.contextmanager
    def droppable(self) -> Iterator[None]:
        """Work that a signal ends at once, with `Stopped`, since nothing is lost by that."""
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
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends the process at once
            os.write(2, INTERRUPTED)
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)  # what JAX watches for, on behalf of all processes
            return
        self.asked = True
        if self._droppable:
            raise Stopped


@contextlib.contextmanager
def watch_signals() -> Iterator[Stop]:
    """A `Stop` that SIGTERM (which announces a preemption) and Ctrl-C ask for."""
    stop = Stop()
    # Of several processes, JAX handles SIGTERM.
    watched = SIGNALS if jax.process_count() == 1 else SIGNALS[1:]
    try:
        before = {number: signal.signal(number, stop.ask) for number in watched}
    except ValueError:  # not the main thread, which alone may handle signals
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
