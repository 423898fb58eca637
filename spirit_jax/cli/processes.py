"""Runs of several processes: initialisation, and error messages when a process is lost.

When a process is lost, JAX's coordination service ends the others by abort() in C++, with pages of
log. Python cannot catch this. So standard error is sent through a filter in a separate process,
which replaces that log by one sentence, and abort() becomes a normal exit.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping

from spirit_jax import files
from spirit_jax.errors import InputError

PEER_TIMEOUT = 100  # seconds without heartbeat after which a process counts as lost
LOST = (
    "another process of the run ended or cannot be reached, so this one ends too. Start all of "
    "them again; a training resumes from its newest checkpoint."
)
# Messages of the coordination service and of collective operations when a process is lost.
_SERVICE = re.compile(rb"^[EF]\d{4} .*(coordination|distributed|preemption|client\.h)")
_PHRASES = ("gloo", "connection", "unavailable", "deadline_exceeded", "heartbeat", "coordination")

_joined = False  # whether this process is one of several


def read_environment(environment: Mapping[str, str]) -> dict[str, str | int]:
    """Arguments of `jax.distributed.initialize` from environment variables.

    Raises:
      InputError: a number is invalid or out of range, or the address is not HOST:PORT.
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
    """Whether this process is part of a run of several processes, by option or environment."""
    return distributed or "JAX_COORDINATOR_ADDRESS" in os.environ


def join(distributed: bool, peer_timeout: int = PEER_TIMEOUT) -> None:
    """Connects to the other processes of a run, if there are any; see `end_together`.

    JAX finds missing settings from the cluster. At the start, processes wait for each other for
    three times `peer_timeout`.

    Args:
      distributed: whether --distributed is given.
      peer_timeout: seconds without heartbeat after which a process counts as lost.

    Raises:
      InputError: an environment variable is invalid, or the processes cannot connect.
    """
    global _joined
    if peer_timeout < 1:
        raise InputError(f"--peer-timeout is {peer_timeout}; expected 1 second or more.")
    if not is_one_of_several(distributed):
        return
    given = read_environment(os.environ)
    _filter_errors()
    exit_on_abort()
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
        address = given.get("coordinator_address", "the coordinator")
        message = f"The processes of the run cannot connect through {address} ({reason})."
        raise InputError(message) from error


def end_together(error: BaseException) -> None:
    """Ends a process of a multi-process run immediately, with one sentence; else does nothing.

    A normal exit would wait for the other processes. They detect that this one is lost.

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
        message = "this process failed; see the traceback."
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


def exit_on_abort() -> None:
    """Makes abort() end this process with exit status 6 instead of by the signal SIGABRT.

    The signal's handler is the C function `_exit`, which takes the number of the signal, 6, as the
    exit status. A handler of Python would only be called after abort() has returned.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc._exit, ctypes.c_void_p))


def _filter_errors() -> None:
    """Sends the standard error of this process, including that of C++, through the filter."""
    command = [sys.executable, "-m", "spirit_jax.cli.processes"]
    error_filter = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    sys.stderr.flush()
    os.dup2(error_filter.stdin.fileno(), 2)


def _copy_errors() -> None:
    """Copies standard input to standard error, until a message that a process is lost."""
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
    _copy_errors()
