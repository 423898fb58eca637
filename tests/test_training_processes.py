"""Two processes of four devices train as one of eight does, also after one was killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from marks import slow
from training_runs import run, write_config

from spirit_jax.training.configs import MeshConfig

COMMAND = "from spirit_jax.cli import main; main()"


def start_pair(path, *overrides):
    """Two processes that find each other on this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        subprocess.Popen(
            [sys.executable, "-c", COMMAND, "train", "--config", str(path), *overrides],
            env=os.environ
            | {
                "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=4"),
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(number),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]


def finish(processes):
    for process in processes:
        _, error = process.communicate(timeout=240)
        assert process.returncode == 0, error[-2000:]


def read_losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert [line["step"] for line in metrics] == list(range(1, len(metrics) + 1))
    return [line["loss"] for line in metrics]


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, slow({"data": 2, "fsdp": 2, "tensor": 2})])
def test_two_processes_give_the_losses_of_one(make_config, tmp_path, mesh):
    config = make_config("pair", MeshConfig(**{"fsdp": 1} | mesh), steps=6)
    path = write_config(tmp_path / "run.yaml", config)
    overrides = [f"mesh.{name}={size}" for name, size in mesh.items()]
    finish(start_pair(path, "steps=6", *overrides))
    one = run(make_config("one", MeshConfig(**{"fsdp": 1} | mesh), steps=6), devices=8)
    np.testing.assert_allclose(read_losses(tmp_path / "pair"), one, rtol=1e-5)


@pytest.mark.slow
def test_one_of_two_is_killed_and_both_start_again(make_config, tmp_path):
    config = make_config("pair", MeshConfig(fsdp=8))
    path = write_config(tmp_path / "run.yaml", config)
    processes = start_pair(path, "steps=100000", "mesh.fsdp=8")
    metrics = tmp_path / "pair" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.is_file() or metrics.read_text().count("\n") < 5:
        assert time.monotonic() < deadline and processes[0].poll() is None
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGKILL)
    time.sleep(1)
    processes[0].kill()
    for process in processes:
        process.communicate()
    before = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = before[-1]["step"] + 3
    finish(start_pair(path, f"steps={steps}", "mesh.fsdp=8"))
    losses = read_losses(tmp_path / "pair")
    assert len(losses) == steps
    one = run(make_config("one", MeshConfig(fsdp=8), steps=steps), devices=8)
    np.testing.assert_allclose(losses, one, rtol=1e-5)


@pytest.mark.slow
def test_sigterm_to_one_ends_both_with_a_checkpoint(make_config, tmp_path):
    path = write_config(tmp_path / "run.yaml", make_config("pair", MeshConfig(fsdp=8)))
    processes = start_pair(path, "steps=100000", "mesh.fsdp=8", "checkpoint_every=100000")
    metrics = tmp_path / "pair" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.is_file() or metrics.read_text().count("\n") < 3:
        assert time.monotonic() < deadline and processes[0].poll() is None
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    finish(processes)
    saved = {int(p.name) for p in (tmp_path / "pair" / "checkpoints").iterdir()}
    assert saved == {len(metrics.read_text().splitlines())}
