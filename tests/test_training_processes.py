"""Two processes train as one with all their devices does, also after one was killed."""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from marks import slow
from training_runs import losses_of, run, write_config

from spirit_jax.cli.processes import LOST, read_environment
from spirit_jax.errors import InputError
from spirit_jax.training.configs import MeshConfig

COMMAND = "from spirit_jax.cli import main; main()"


def start(path, *overrides, processes=2, devices=4):
    """Processes that connect to each other on this machine; `devices` is of each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        subprocess.Popen(
            [sys.executable, "-c", COMMAND, "train", "--config", str(path), *overrides],
            env=os.environ
            | {
                "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", f"count={devices}"),
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(number),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]


def wait_for_steps(metrics, processes, count):
    deadline = time.monotonic() + 120
    while not metrics.is_file() or metrics.read_text().count("\n") < count:
        assert time.monotonic() < deadline and processes[0].poll() is None
        time.sleep(0.1)


def finish(processes):
    for process in processes:
        _, error = process.communicate(timeout=240)
        assert process.returncode == 0, error[-2000:]


@pytest.mark.parametrize(
    "mesh", [{"fsdp": 2}, slow({"fsdp": 8}), slow({"data": 2, "fsdp": 2, "tensor": 2})]
)
def test_two_processes_give_the_losses_of_one(make_config, tmp_path, mesh):
    devices = math.prod(mesh.values())
    config = make_config("pair", MeshConfig(**{"fsdp": 1} | mesh), steps=3)
    path = write_config(tmp_path / "run.yaml", config)
    overrides = [f"mesh.{name}={size}" for name, size in mesh.items()]
    finish(start(path, "steps=3", *overrides, devices=devices // 2))
    expected = run(make_config("one", MeshConfig(**{"fsdp": 1} | mesh), steps=3), devices=devices)
    np.testing.assert_allclose(losses_of(tmp_path / "pair"), expected, rtol=1e-5)


@pytest.mark.slow
def test_one_of_two_is_killed_and_both_start_again(make_config, tmp_path):
    config = make_config("pair", MeshConfig(fsdp=8))
    path = write_config(tmp_path / "run.yaml", config)
    processes = start(path, "steps=100000", "mesh.fsdp=8")
    metrics = tmp_path / "pair" / "metrics.jsonl"
    wait_for_steps(metrics, processes, 5)
    processes[1].send_signal(signal.SIGKILL)
    time.sleep(1)
    processes[0].kill()
    for process in processes:
        process.communicate()
    before = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = before[-1]["step"] + 3
    finish(start(path, f"steps={steps}", "mesh.fsdp=8"))
    losses = losses_of(tmp_path / "pair")
    assert len(losses) == steps
    expected = run(make_config("one", MeshConfig(fsdp=8), steps=steps), devices=8)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.slow
def test_sigterm_to_one_ends_both_with_a_checkpoint(make_config, tmp_path):
    path = write_config(tmp_path / "run.yaml", make_config("pair", MeshConfig(fsdp=8)))
    processes = start(path, "steps=100000", "mesh.fsdp=8", "checkpoint_every=100000")
    metrics = tmp_path / "pair" / "metrics.jsonl"
    wait_for_steps(metrics, processes, 3)
    processes[1].send_signal(signal.SIGTERM)
    finish(processes)
    saved = {int(p.name) for p in (tmp_path / "pair" / "checkpoints").iterdir()}
    assert saved == {len(metrics.read_text().splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_lost_process_ends_the_other_with_one_sentence(make_config, tmp_path, killed):
    path = write_config(tmp_path / "run.yaml", make_config("pair", MeshConfig(fsdp=8)))
    processes = start(path, "steps=100000", "mesh.fsdp=8", "--peer-timeout", "10")
    metrics = tmp_path / "pair" / "metrics.jsonl"
    wait_for_steps(metrics, processes, 3)
    processes[killed].send_signal(signal.SIGKILL)
    _, error = processes[1 - killed].communicate(timeout=40)
    assert processes[1 - killed].returncode in (1, 6)  # an exit, not a signal
    # The coordination service may log that it lost the connection too.
    assert error.splitlines()[-1] == f"error: {LOST}" and error.count("error: ") == 1
    processes[killed].communicate()


@pytest.mark.slow
def test_two_slices_of_two_processes_train_as_one_process(make_config, tmp_path):
    """Also after one process is killed, which ends the others."""
    mesh = MeshConfig(data=2, fsdp=4, slices=2)
    config = make_config("slices", mesh)
    path = write_config(tmp_path / "run.yaml", config)
    sizes = ["mesh.data=2", "mesh.fsdp=4", "mesh.slices=2", "--peer-timeout", "10"]
    processes = start(path, "steps=100000", *sizes, processes=4, devices=2)
    wait_for_steps(tmp_path / "slices" / "metrics.jsonl", processes, 5)
    processes[2].send_signal(signal.SIGKILL)
    for process in (processes[n] for n in (0, 1, 3)):
        _, error = process.communicate(timeout=120)
        # XLA warns before that how it partitions an operation.
        assert process.returncode in (1, 6) and error.splitlines()[-1] == f"error: {LOST}"
    processes[2].communicate()
    metrics = (tmp_path / "slices" / "metrics.jsonl").read_text().splitlines()
    steps = json.loads(metrics[-1])["step"] + 3
    finish(start(path, f"steps={steps}", *sizes, processes=4, devices=2))
    losses = losses_of(tmp_path / "slices")
    assert len(losses) == steps
    single = run(make_config("single", MeshConfig(fsdp=8), steps=steps), devices=8)
    np.testing.assert_allclose(losses, single, rtol=1e-6)


def test_an_abort_in_a_library_is_an_exit():
    code = """
import os
from spirit_jax.cli import processes
processes.exit_on_abort()
os.abort()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (done.returncode, done.stderr) == (6, b"")


@pytest.mark.slow
def test_processes_that_do_not_meet_say_so(make_config, tmp_path):
    path = write_config(tmp_path / "run.yaml", make_config("pair", MeshConfig(fsdp=8)))
    alone, other = start(path, "--peer-timeout", "3")
    other.kill()
    other.communicate()
    _, error = alone.communicate(timeout=60)
    assert alone.returncode != 0 and len(error.splitlines()) == 1, error
    # The coordination service may end the process itself, or raise an error.
    assert error == f"error: {LOST}\n" or "cannot connect through localhost:" in error


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("JAX_PROCESS_ID", "2", "JAX_PROCESS_ID is 2; expected 0 to 1."),
        ("JAX_PROCESS_ID", "one", "JAX_PROCESS_ID is 'one'"),
        ("JAX_PROCESS_ID", "²", "JAX_PROCESS_ID is '²'"),
        ("JAX_NUM_PROCESSES", "0", "JAX_NUM_PROCESSES is 0"),
        ("JAX_NUM_PROCESSES", "-1", "JAX_NUM_PROCESSES is '-1'"),
        ("JAX_COORDINATOR_ADDRESS", "localhost", "expected HOST:PORT"),
    ],
)
def test_a_wrong_environment_is_named(name, value, message):
    environment = {
        "JAX_COORDINATOR_ADDRESS": "localhost:1234",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "0",
    }
    with pytest.raises(InputError, match=re.escape(message)):
        read_environment(environment | {name: value})


@pytest.mark.slow
def test_two_processes_pass_over_the_same_damaged_checkpoint(make_config, tmp_path):
    """Only what one of them reads is damaged, and both load the one before."""
    config = make_config("pair", MeshConfig(fsdp=8), steps=6)
    path = write_config(tmp_path / "run.yaml", config)
    finish(start(path, "steps=4", "mesh.fsdp=8"))
    folder = tmp_path / "pair" / "checkpoints"
    data = max((folder / "4").rglob("ocdbt.process_1/d/*"), key=lambda file: file.stat().st_size)
    content = data.read_bytes()
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (folder / "2" / "checksums" / "0.json").unlink()
    finish(start(path, "steps=6", "mesh.fsdp=8"))
    assert (folder / "damaged" / "4").is_dir()
    expected = run(make_config("one", MeshConfig(fsdp=8), steps=6), devices=8)
    np.testing.assert_allclose(losses_of(tmp_path / "pair"), expected, rtol=1e-5)
