"""Runs of several processes: how they meet, and what is said when one of them is lost.

JAX's coordination service ends a process by abort() in C++ when another process is lost, with pages
of its own log. Python cannot catch that, so what is written to standard error passes a filter, a
process of its own, which says one sentence in place of them.
"""

import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping

from spirit_jax import files
from spirit_jax.errors import InputError

PEER_TIMEOUT = 100  # seconds without a sign of life after which a process counts as lost
LOST = (
    "another process of the run ended or cannot be reached, so this one ends too. Start all of "
    "them again; a training resumes from its newest checkpoint."
)
# What the coordination service and collective operations say when a process is lost.
_SERVICE = re.compile(rb"^[EF]\d{4} .*(coordination|distributed|preemption|client\.h)")
_PHRASES = ("gloo", "connection", "unavailable", "deadline_exceeded", "heartbeat", "coordination")

_joined = False  # whether this process is one of several


def read_environment(environment: Mapping[str, str]) -> dict[str, str | int]:
    """What the environment says of the run's processes, as `jax.distributed.initialize` takes it.

    Raises:
      InputError: a number is none, or out of range, or the address is not HOST:PORT.
    """
    given: dict[str, str | int] = {}
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if address is not None:
        if not re.fullmatch(r"\S+:[0-9]{1,5}", address):
            raise InputError(f"JAX_COORDINATOR_ADDRESS is '{address}'; expected HOST:PORT.")
        given["coordinator_address"] = address
    for name, key in (("JAX_NUM_PROCESSES", "num_processes"), ("JAX_PROCESS_ID", "process_id")):
        text = environment.get(name)
        if text is not None:
            if not re.fullmatch(r"[0-9]{1,6}", text):
                raise InputError(f"{name} is '{text}'; expected a whole number.")
            given[key] = int(text)
    count, number = given.get("num_processes"), given.get("process_id")
    if count == 0:
        raise InputError("JAX_NUM_PROCESSES is 0; expected 1 or more.")
    if count is not None and number is not None and number >= count:
        raise InputError(f"JAX_PROCESS_ID is {number}; expected 0 to {count - 1}.")
    return given


def is_one_of_several(distributed: bool) -> bool:
    """Whether this process belongs to a run of several, by option or environment."""
    return distributed or "JAX_COORDINATOR_ADDRESS" in os.environ


def join(distributed: bool, peer_timeout: int = PEER_TIMEOUT) -> None:
    """Meets the other processes of a run, if there are any; see `end_together`.

    What the environment does not say, the cluster does. Processes wait three times `peer_timeout`
    for each other at the start.

    Args:
      distributed: as the option says.
      peer_timeout: seconds without a sign of life after which a process counts as lost.

    Raises:
      InputError: the environment is wrong, or the processes do not meet.
    """
    global _joined
    if peer_timeout < 1:
        raise InputError(f"--peer-timeout is {peer_timeout}; expected 1 second or more.")
    if not is_one_of_several(distributed):
        return
    given = read_environment(os.environ)
    _filter_errors()
    _joined = True
    import jax

    try:
        jax.distributed.initialize(
            **given,
            heartbeat_timeout_seconds=peer_timeout,
            initialization_timeout=3 * peer_timeout,
        )
    except Exception as error:
        reason = files.describe(error)
        where = given.get("coordinator_address", "the coordinator")
        raise InputError(f"The processes of the run did not meet at {where} ({reason}).") from error


def end_together(error: BaseException) -> None:
    """Ends a process of several with one sentence, and at once; returns where it is alone.

    A usual exit would wait for the other processes first. They notice that this one is lost.

    Args:
      error: why this process ends.
    """
    if not _joined:
        return
    if isinstance(error, InputError):
        message = str(error)
    elif any(phrase in str(error).lower() for phrase in _PHRASES):
        message = LOST
    else:
        traceback.print_exception(error)
        message = "this process failed; the traceback says where."
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


def _filter_errors() -> None:
    """Sends all that this process writes to standard error, from C++ too, through the filter."""
    command = [sys.executable, "-m", "spirit_jax.cli.processes"]
    passing = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    sys.stderr.flush()
    os.dup2(passing.stdin.fileno(), 2)


def _pass_on() -> None:
    """Copies standard input to standard error, up to a message that a process is lost."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    lost = ended = False
    for line in sys.stdin.buffer:
        if not lost and _SERVICE.search(line):
            lost = True
            if not ended:
                line = f"error: {LOST}\n".encode()
                sys.stderr.buffer.write(line)
        elif not lost:
            ended |= line.startswith(b"error: ")
            sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()


if __name__ == "__main__":
    _pass_on()
