"""Signals, and standard streams that are closed or full, by commands in separate processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from marks import slow

ROOT = Path(__file__).parent.parent
# Each function is the body of a command; the signal comes where an exception would not help.
BODIES = {
    "in a callback of the garbage collector": """
    gc.callbacks.append(lambda *args: os.kill(os.getpid(), signal.{number}))
    gc.collect()
    gc.callbacks.clear()
    time.sleep(20)
""",
    "in a library that raises another error": """
    try:
        os.kill(os.getpid(), signal.{number})
        time.sleep(20)
    except KeyboardInterrupt:
        raise AttributeError("'NoneType' object has no attribute 'items'")
""",
    "during an import that raises another error": """
    import interrupted_module
""",
    "while another thread cannot be stopped": """
    threading.Thread(target=time.sleep, args=(20,)).start()
    os.kill(os.getpid(), signal.{number})
    time.sleep(20)
""",
    "while the main thread runs C++ code": """
    from spirit_jax.cli import interrupts
    interrupts.STUCK_SECONDS = 0.1
    kill = lambda: os.kill(os.getpid(), signal.{number})
    threading.Timer(0.5, kill).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
""",
}
SIGNALS = {"SIGINT": (130, "error: interrupted\n"), "SIGTERM": (143, "error: terminated\n")}
COMMAND = """'''A command.'''
import gc, hashlib, os, signal, sys, threading, time
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
    os.kill(os.getpid(), signal.{number})
except KeyboardInterrupt:
    raise ImportError("a C++ extension could not be initialised")
"""


def start(folder, body, redirection="", number="SIGINT", before=""):
    """(exit status, standard output, standard error) of a command."""
    (folder / "command.py").write_text(COMMAND.format(body=body.format(number=number)))
    (folder / "interrupted_module.py").write_text(MODULE.format(number=number))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    environment.pop("PYTHONUNBUFFERED", None)
    done = subprocess.run(
        ["sh", "-c", f'{before} exec "$0" -m command {redirection}', sys.executable],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=15,
        # A shell starts jobs in the background with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("number", ["SIGINT", slow("SIGTERM")])
@pytest.mark.parametrize("place", BODIES)
def test_a_signal_ends_a_command_with_one_sentence(place, number, tmp_path):
    status, sentence = SIGNALS[number]
    outcome = start(tmp_path, BODIES[place], number=number)
    assert outcome == (status, "output\n", sentence)


@pytest.mark.parametrize("package", ["convert", "corpora", "evaluators", "benchmarks", "tpu"])
def test_an_interrupt_during_imports_gives_no_traceback(package, tmp_path):
    """The packages of `python -m` commands import JAX, torch and others before the command runs."""
    module = tmp_path / "interrupted.py"
    module.write_text(
        f"import os, signal, sys\nsys.argv[0] = '-m'\nimport {package}\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run(
        [sys.executable, str(module)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=15,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_ignored_signals_stay_ignored(tmp_path):
    """As those of nohup, and Ctrl-C for a background job of a script."""
    body = """
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
"""
    assert start(tmp_path, body, before="trap '' INT TERM;") == (0, "output\n", "")


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
