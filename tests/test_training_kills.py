"""`train`, killed a hundred times, resumes with the losses of an uninterrupted run."""

import contextlib
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from training_runs import losses_of

pytestmark = pytest.mark.slow

COMMAND = "from spirit_jax.cli import main; main()"
SETTINGS = {
    "model": "made:base",
    "checkpoint_every": 1,
    "data": {"seq_len": 64, "batch_rows": 4, "shards": 4, "sources": [{"path": "made:100"}]},
    "optimizer": {"learning_rate": 0.01},
}


def start(path, run_dir, steps):
    command = [sys.executable, "-c", COMMAND, "train", "--config", str(path)]
    command += [f"run_dir={run_dir}", f"steps={steps}"]
    environment = os.environ | {"XLA_FLAGS": ""}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def in_the_first_seconds(process, run_dir, rng):
    """At any moment of the first ten seconds: imports, model and data, compilation, first steps."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(rng.uniform(0, 10))


def during_a_save(process, run_dir, rng):
    """Some milliseconds after a checkpoint's unfinished folder appeared."""
    checkpoints = run_dir / "checkpoints"
    while process.poll() is None:
        with contextlib.suppress(OSError):
            if any("orbax-checkpoint-tmp" in name for name in os.listdir(checkpoints)):
                break
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.05))


def at_any_moment(process, run_dir, rng):
    """In the first half minute."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(rng.uniform(0, 30))


@pytest.mark.parametrize(
    ("wait", "kills"), [(in_the_first_seconds, 30), (during_a_save, 30), (at_any_moment, 40)]
)
def test_a_killed_run_keeps_its_checkpoints_and_losses(tmp_path, wait, kills):
    path, rng, saved = tmp_path / "run.yaml", np.random.default_rng(kills), 0
    path.write_text(json.dumps(SETTINGS | {"run_dir": "x"}))
    run_dir = tmp_path / "killed"
    for _ in range(kills):
        if wait is in_the_first_seconds and rng.random() < 0.5:
            run_dir = tmp_path / f"killed-{rng.integers(1 << 30)}"  # a new run
            saved = 0
        process = start(path, run_dir, 1_000_000)
        wait(process, run_dir, rng)
        process.kill()
        error = process.communicate()[1]
        assert process.returncode == -9 and "error: " not in error, error[-2000:]
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(run_dir / "checkpoints")
            now = max((int(name) for name in names if name.isdigit()), default=0)
            assert now >= saved and "damaged" not in names
            saved = now
    steps = saved + 2
    for folder in (run_dir, tmp_path / "uninterrupted"):
        process = start(path, folder, steps)
        error = process.communicate(timeout=600)[1]
        assert process.returncode == 0, error[-2000:]
    assert len(losses_of(run_dir)) == steps and losses_of(run_dir) == losses_of(
        tmp_path / "uninterrupted"
    )
