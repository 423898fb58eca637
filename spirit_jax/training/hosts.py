"""What the processes of a run tell each other; with one process nothing is sent."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_first() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def agree(flag: bool) -> bool:
    """What the first process says."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


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


class Stop:
    """Whether a run is to end early, the same on every process at the same step."""

    def __init__(self):
        self.asked = False

    def __call__(self, step: int) -> bool:
        """True from the step on at which all processes end; asked after each step."""
        if jax.process_count() == 1:
            return self.asked
        # Its own watch on SIGTERM and on notices of preemption, synchronised over processes.
        return multihost_utils.reached_preemption_sync_point(step)


@contextmanager
def watch_sigterm() -> Iterator[Stop]:
    """A `Stop` that SIGTERM asks for, which is also how a preemption is announced."""
    stop = Stop()

    def ask(number, frame):
        stop.asked = True

    if jax.process_count() > 1:
        yield stop
        return
    try:
        before = signal.signal(signal.SIGTERM, ask)
    except ValueError:  # not the main thread, which alone may listen
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
