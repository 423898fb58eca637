"""Steps that take far too long are reported with the stacks of all threads."""

import subprocess
import sys
import time

import pytest

from spirit_jax.training import watchdog
from spirit_jax.training.watchdog import Watchdog


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(watchdog, "LEAST_SECONDS", 0.3)


def wait_for_data(seconds):
    time.sleep(seconds)


def test_a_long_step_is_reported_once_with_stacks(quick, capsys):
    with Watchdog() as watched:
        for _ in range(watchdog.FEWEST):
            watched.step_done()
        wait_for_data(1.2)
        watched.step_done()
    message = capsys.readouterr().err
    assert message.count("notice: a step has taken") == 1
    assert "in wait_for_data" in message and "the median of the last steps is 0.0 s" in message


def test_first_steps_evaluations_and_usual_steps_are_not_reported(quick, capsys):
    with Watchdog() as watched:
        wait_for_data(0.8)  # compilation
        for _ in range(watchdog.FEWEST):
            watched.step_done()
        with watched.suspended():
            wait_for_data(0.8)
        watched.step_done()
    with Watchdog() as watched:
        for _ in range(watchdog.FEWEST):
            wait_for_data(0.1)
            watched.step_done()
        wait_for_data(0.6)  # six times the median
    assert not capsys.readouterr().err


def test_a_step_beyond_the_limit_ends_the_process():
    code = (
        "import time; from spirit_jax.training.watchdog import Watchdog\n"
        "with Watchdog(exit_minutes=0.01): time.sleep(60)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "thread MainThread:" in result.stderr
    assert result.stderr.endswith("error: the training hangs, so it ends.\n")
