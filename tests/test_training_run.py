"""Training runs: stopped equals unstopped, on other meshes too; what goes wrong is named."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from marks import slow
from training_runs import STEPS, run, write_config

from spirit_jax import InputError, cli
from spirit_jax.data.pipeline import DataConfig
from spirit_jax.data.samples import SourceConfig
from spirit_jax.training.configs import MeshConfig
from spirit_jax.training.export import newest_state
from spirit_jax.training.lm.config import LmRunConfig
from spirit_jax.training.lm.recipe import LmRecipe, plain_params


@pytest.mark.compat
@pytest.mark.parametrize("devices", [1, slow(8)])
def test_stopped_equals_unstopped_bitwise(make_config, tmp_path, devices):
    whole = run(make_config("whole"), devices)
    assert len(whole) == STEPS and whole[-1] < whole[0]
    run(make_config("stopped"), devices, stop_after=4)
    rest = run(make_config("stopped"), devices)
    assert rest == whole[-len(rest) :] and 0 < len(rest) < STEPS
    final = [load_params(make_config(name), devices) for name in ("whole", "stopped")]
    jax.tree.map(np.testing.assert_array_equal, *final)
    for name in ("whole", "stopped"):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        metrics = [json.loads(line) for line in lines]
        assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
        assert [line["loss"] for line in metrics] == whole
    assert run(make_config("whole"), devices) == []  # nothing is left to do


def load_params(config, devices):
    state = newest_state(LmRecipe(config), jax.devices()[:devices])
    assert state.step == STEPS
    return plain_params(state, config)


SINGLE, FOUR = (MeshConfig(fsdp=1), 1), (MeshConfig(fsdp=2, tensor=2), 4)


@pytest.mark.parametrize("meshes", [slow((SINGLE, FOUR)), slow((FOUR, SINGLE))], ids=["up", "down"])
def test_meshes_change_nothing_and_may_change_at_a_stop(make_config, meshes):
    """From one device to a mesh, and from a mesh to one device."""
    (mesh, devices), (next_mesh, next_devices) = meshes
    whole = run(make_config("whole"))
    first = run(make_config("moved", mesh), devices, stop_after=3)
    np.testing.assert_allclose(first, whole[:3], rtol=1e-5)
    rest = run(make_config("moved", next_mesh), next_devices)
    np.testing.assert_allclose(rest, whole[-len(rest) :], rtol=1e-5)


@pytest.mark.slow
def test_a_run_moves_from_one_mesh_of_eight_devices_to_another(make_config):
    whole = run(make_config("whole"))
    first = run(make_config("moved"), devices=8, stop_after=3)  # all fsdp
    np.testing.assert_allclose(first, whole[:3], rtol=1e-5)
    rest = run(make_config("moved", MeshConfig(data=2, tensor=4)), devices=8)
    np.testing.assert_allclose(rest, whole[-len(rest) :], rtol=1e-5)


@pytest.mark.slow
def test_random_starts_come_from_the_seed(make_config):
    first = run(make_config("a", random_init=True), stop_after=1)
    assert first == run(make_config("b", random_init=True), stop_after=1)
    assert first != run(make_config("c", random_init=True, seed=1), stop_after=1)


def test_a_damaged_checkpoint_is_passed_over(make_config, tmp_path, capfd):
    whole = run(make_config("whole"))
    run(make_config("hurt"), stop_after=6)
    folder = tmp_path / "hurt" / "checkpoints"
    newest = max(
        (path for path in folder.iterdir() if path.name.isdigit()), key=lambda p: int(p.name)
    )
    damaged = [path for path in newest.rglob("*") if path.is_file() and path.stat().st_size > 2000]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:100])
    assert damaged
    rest = run(make_config("hurt"))
    printed = capfd.readouterr().err
    assert f"checkpoint {newest.name} of " in printed and "cannot be read" in printed
    assert rest == whole[-len(rest) :] and len(rest) > STEPS - int(newest.name)
    # What was done again is saved again, and is what an export takes.
    assert (folder / newest.name).is_dir() and (folder / "damaged" / newest.name).is_dir()
    config = make_config("hurt")
    assert newest_state(LmRecipe(config), jax.devices()[:1]).step == STEPS


ONE_DEVICE = {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1")}
COMMAND = "from spirit_jax.cli import main; main()"


def start(path, *overrides):
    command = [sys.executable, "-c", COMMAND, "train", "--config", str(path), *overrides]
    environment = os.environ | ONE_DEVICE
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_resumes(make_config, tmp_path, number):
    config = make_config("killed")
    path = write_config(tmp_path / "run.yaml", config)
    process = start(path, "steps=100000")
    metrics = tmp_path / "killed" / "metrics.jsonl"
    for _ in range(900):
        assert process.poll() is None
        if metrics.is_file() and metrics.read_text().count("\n") > 4:
            break
        time.sleep(0.1)
    process.send_signal(number)
    process.wait(60)
    assert process.returncode == (0 if number == signal.SIGTERM else -number)
    before = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = before[-1]["step"] + 2
    assert start(path, f"steps={steps}").wait(120) == 0
    after = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in after] == list(range(1, steps + 1))
    assert [line["loss"] for line in after[: len(before)]] == [line["loss"] for line in before]
    if number == signal.SIGTERM:
        assert after[: len(before)] == before  # nothing was done twice


def test_misspelt_keys_and_wrong_meshes_are_named(make_config, tmp_path, monkeypatch, capsys):
    path = write_config(tmp_path / "run.yaml", make_config())
    monkeypatch.setattr("spirit_jax.cli.options.prepare_environment", lambda: None)
    for override, message in (
        ("optimizer.learning_rat=1", "learning_rat"),
        ("mesh.fsdp=3", "needs 3 devices"),
        ("mesh.tensor=3", "does not divide 8 devices"),
        ("model=nowhere", "nowhere"),
        ("compute_dtype=int8", "compute_dtype is 'int8'"),
    ):
        argv = ["spirit-jax", "train", "--config", str(path), override]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit):
            cli.main()
        err = capsys.readouterr().err
        assert err.startswith("error: ") and message in err and len(err.splitlines()) == 1


def test_a_model_without_its_corpus_is_named(make_config, tmp_path):
    config = make_config()
    shutil.rmtree(tmp_path / "gone", ignore_errors=True)
    data = DataConfig((SourceConfig(str(tmp_path / "gone")),), 48, 8, 8)
    fields = vars(config) | {"data": data}
    with pytest.raises(InputError, match="has no prepared corpus"):
        run(LmRunConfig(**fields))


@pytest.mark.slow
def test_a_full_disk_during_a_save_is_named_and_the_last_checkpoint_counts(make_config, tmp_path):
    """A limit on the size of files stands in for a disk without room for the parameters."""
    path = write_config(tmp_path / "run.yaml", make_config("full"))
    assert start(path, "steps=4").wait(120) == 0
    limited = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)); " + COMMAND
    )
    command = [sys.executable, "-c", limited, "train", "--config", str(path), "steps=8"]
    environment = os.environ | ONE_DEVICE
    stopped = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    errors = [line for line in stopped.stderr.splitlines() if line.startswith("error: ")]
    assert stopped.returncode == 1 and len(errors) == 1, stopped.stderr[-3000:]
    assert "cannot be written" in errors[0] and "Traceback" not in stopped.stderr
    assert start(path, "steps=8").wait(120) == 0
    lines = (tmp_path / "full" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert [line["step"] for line in metrics] == list(range(1, 9))


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 2, 4, 8, 16])
def test_ctrl_c_ends_the_command_whenever_it_comes(make_config, tmp_path, seconds):
    """While modules are imported, while the first step is compiled, and between steps."""
    path = write_config(tmp_path / "run.yaml", make_config("stopped"))
    command = [sys.executable, "-c", COMMAND, "train", "--config", str(path), "steps=1000000"]
    environment = os.environ | ONE_DEVICE
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode in (0, 130, -signal.SIGINT) and "Traceback" not in error
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    if metrics.is_file() and metrics.read_text():  # what was done is saved
        done = len(metrics.read_text().splitlines())
        assert (tmp_path / "stopped" / "checkpoints" / str(done)).is_dir()
