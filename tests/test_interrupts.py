"""Ctrl-C, and standard streams that are closed or full, by commands of their own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each function is the body of a command; the interrupt comes where an exception would not help.
BODIES = {
    "in a callback of the garbage collector": """
    gc.callbacks.append(lambda *args: os.kill(os.getpid(), signal.SIGINT))
    gc.collect()
    gc.callbacks.clear()
    time.sleep(20)
""",
    "in a library that raises another error": """
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
    except KeyboardInterrupt:
        raise AttributeError("'NoneType' object has no attribute 'items'")
""",
    "during an import that raises another error": """
    import interrupted_module
""",
    "while another thread cannot be stopped": """
    threading.Thread(target=time.sleep, args=(20,)).start()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(20)
""",
}
COMMAND = """'''A command.'''
import gc, os, signal, sys, threading, time
from spirit_jax.cli.running import run

def main() -> None:
    print("output")
{body}

if __name__ == "__main__":
    run(main)
"""
MODULE = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    raise ImportError("a C++ extension could not be initialised")
"""


def start(folder, body, redirection=""):
    """(exit status, standard output, standard error) of a command."""
    (folder / "command.py").write_text(COMMAND.format(body=body))
    (folder / "interrupted_module.py").write_text(MODULE)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    environment.pop("PYTHONUNBUFFERED", None)
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m command {redirection}', sys.executable],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=15,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("place", BODIES)
def test_an_interrupt_ends_a_command_with_one_sentence(place, tmp_path):
    assert start(tmp_path, BODIES[place]) == (130, "output\n", "error: interrupted\n")


@pytest.mark.parametrize(
    ("redirection", "message"),
    [
        (">/dev/full", "error: standard output: the disk is full.\n"),
        (">&-", "error: Standard output is closed; redirect it, such as with >/dev/null.\n"),
    ],
)
def test_output_that_cannot_be_written_is_an_error(redirection, message, tmp_path):
    assert start(tmp_path, "", redirection) == (1, "", message)


def test_messages_for_a_closed_stream_are_written_nowhere_else(tmp_path):
    body = """
    with open("data", "w"):
        print("message", file=sys.stderr)
        os.write(2, b"message of C++")
"""
    assert start(tmp_path, body, "<&- 2>&-") == (0, "output\n", "")
    assert (tmp_path / "data").read_text() == ""
