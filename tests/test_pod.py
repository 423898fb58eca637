"""The pod script with a fake gcloud that records calls: right commands, in order, safely quoted."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "tpu" / "pod.sh"
FAKE = """#!/usr/bin/env python3
import json, os, pathlib, sys
folder = pathlib.Path(os.environ["NOTES"])
with (folder / "calls.jsonl").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if "describe" in sys.argv:
    states = json.loads((folder / "states.json").read_text())
    (folder / "states.json").write_text(json.dumps(states[1:] or states))
    print(states[0]) if states[0] != "ABSENT" else sys.exit(1)
if sys.argv[-1].startswith("test -s run.pid"):
    alive = json.loads((folder / "alive.json").read_text())
    (folder / "alive.json").write_text(json.dumps(alive[1:]))
    sys.exit(not alive[0])
"""


@pytest.fixture
def pod(tmp_path):
    """Runs the script; returns its process and the calls of gcloud."""
    (tmp_path / "gcloud").write_text(FAKE)
    (tmp_path / "gcloud").chmod(0o755)

    def call(*arguments, states=("ACTIVE",), **settings):
        (tmp_path / "states.json").write_text(json.dumps(states))
        (tmp_path / "calls.jsonl").write_text("")
        base = {"PROJECT": "p", "ZONE": "z", "NAME": "pod", "TYPE": "v6e-8", "POLL_SECONDS": "0"}
        environment = os.environ | base | {key: str(value) for key, value in settings.items()}
        environment |= {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "NOTES": str(tmp_path),
            "POD_ENV": str(tmp_path / "none.env"),
        }
        process = subprocess.run(
            ["bash", SCRIPT, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        lines = (tmp_path / "calls.jsonl").read_text().splitlines()
        return process, [json.loads(line) for line in lines]

    call.folder = tmp_path
    return call


def verbs(calls):
    names = []
    for call in calls:
        verb = next(word for word in ("create", "describe", "delete", "ssh", "scp") if word in call)
        if verb != "describe":
            names.append(verb)
    return names


def test_create_requests_a_slice_and_waits_for_it(pod):
    process, calls = pod("create", states=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    assert process.returncode == 0, process.stderr
    create = calls[0]
    assert create[:5] == ["compute", "tpus", "queued-resources", "create", "pod"]
    assert {"--spot", "v6e-8", "v2-alpha-tpuv6e", "--node-id"} <= set(create)
    states = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    assert [line.split()[-1] for line in process.stdout.splitlines()] == states
    process, calls = pod("create", SLICES=2, KIND="reserved", TYPE="v5p-128")
    assert {"--reserved", "--node-count", "2", "--node-prefix", "v2-alpha-tpuv5"} <= set(calls[0])


def test_a_failed_slice_is_reported(pod):
    process, _ = pod("create", states=["PROVISIONING", "FAILED"])
    assert process.returncode == 1 and "pod is FAILED" in process.stderr


def test_arguments_reach_the_workers_unchanged(pod):
    process, calls = pod("start", "configs/a b.yaml", "run_dir=/x; rm -rf $HOME", SLICES=2)
    assert process.returncode == 0 and verbs(calls) == ["ssh", "ssh"]
    assert [call[4] for call in calls] == ["pod-0", "pod-1"]
    home = make_worker(pod.folder, ARGUMENTS)
    subprocess.run(["bash", "-c", calls[0][-1]], cwd=home, check=True)
    arguments = json.loads(wait_for(home / "arguments.json"))
    assert arguments[-2:] == ["configs/a b.yaml", "run_dir=/x; rm -rf $HOME"]


ARGUMENTS = """
import json, pathlib, sys
pathlib.Path("../arguments.new").write_text(json.dumps(sys.argv))
pathlib.Path("../arguments.new").rename("../arguments.json")
"""
# Ends on SIGTERM only, as training does, and writes a checkpoint then.
RUN = """
import pathlib, signal, sys
def save(number, frame):
    pathlib.Path("../checkpoint").write_text("saved")
    sys.exit()
signal.signal(signal.SIGTERM, save)
pathlib.Path("../ready").write_text("yes")
signal.pause()
"""


def make_worker(folder: Path, program: str) -> Path:
    """The home of a worker where the command `spirit-jax` is a Python program."""
    home = folder / "home"
    (home / "spirit_jax").mkdir(parents=True)
    (home / "venv" / "bin").mkdir(parents=True)
    command = home / "venv" / "bin" / "spirit-jax"
    command.write_text(f"#!{sys.executable}\n{program}")
    command.chmod(0o755)
    return home


def wait_for(path: Path, seconds: float = 60) -> str:
    """The text of a file that another process writes."""
    end = time.monotonic() + seconds
    while not path.exists() or not path.read_text():
        assert time.monotonic() < end, f"{path} was not written"
        time.sleep(0.05)
    return path.read_text()


def is_alive(number: int) -> bool:
    return Path(f"/proc/{number}/cmdline").exists() and bool(
        Path(f"/proc/{number}/cmdline").read_bytes()
    )


@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_stop_makes_the_run_save_a_checkpoint(pod, shell):
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell}")
    start, stop = (
        pod(*arguments)[1][0][-1] for arguments in (("start", "configs/smoke.yaml"), ("stop",))
    )
    home = make_worker(pod.folder, RUN)

    def remote(line):
        return subprocess.run([shell, "-c", line], cwd=home, capture_output=True, text=True)

    assert remote(start).returncode == 0
    wait_for(home / "ready")
    number = int((home / "run.pid").read_text())
    assert b"spirit-jax" in Path(f"/proc/{number}/cmdline").read_bytes()
    again = remote(start)
    assert again.returncode == 1 and "stop it first" in again.stderr
    assert remote(stop).returncode == 0
    assert wait_for(home / "checkpoint") == "saved"
    end = time.monotonic() + 60
    while is_alive(number) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_alive(number)
    # Another process that has the id of an old run is left alone.
    with subprocess.Popen(["sleep", "60"]) as other:
        (home / "run.pid").write_text(str(other.pid))
        assert "no run is running" in remote(stop).stdout
        assert other.poll() is None
        other.kill()


def test_the_run_resumes_after_a_preemption(pod):
    (pod.folder / "alive.json").write_text(json.dumps([True, False, True, False]))
    states = ["ACTIVE", "SUSPENDED", "ABSENT", "ACTIVE"]
    process, calls = pod("watch", "configs/smoke.yaml", states=states)
    assert process.returncode == 0, process.stderr
    lines = [call[-1] for call in calls if "ssh" in call]
    assert verbs([call for call in calls if not call[-1].startswith("test -s run.pid")]) == [
        *("delete", "create"),  # the run was alive, and then the slice was lost
        *("scp", "ssh", "ssh"),  # installed and started
    ]
    assert "venv/bin/pip install" in lines[2] and "configs/smoke.yaml" in lines[3]
    assert "is lost" in process.stdout and "has ended" in process.stdout


def test_missing_settings_are_reported_before_any_call(pod):
    for arguments, settings, message in (
        (("delete",), {"NAME": ""}, "NAME is not set"),
        (("start",), {}, "start needs a config"),
        (("create",), {"KIND": "cheap"}, "KIND is 'cheap'"),
        (("create",), {"TYPE": "v2-8"}, "no runtime known"),
    ):
        process, calls = pod(*arguments, **settings)
        assert process.returncode == 1 and message in process.stderr and not calls
    process, calls = pod("nonsense")
    assert process.returncode == 2 and "COMMAND" in process.stderr
    process, _ = pod("--help")
    assert process.returncode == 0 and "preemption" in process.stdout


def test_a_dry_run_does_nothing(pod):
    process, calls = pod("--dry-run", "create")
    assert process.returncode == 0 and not calls
    assert process.stdout.startswith("gcloud compute tpus queued-resources create pod")
