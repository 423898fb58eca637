"""Commands with everything in a bucket: the whole way, killed runs, and a bucket that fails."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from bucket_server import Proxy, environment
from kill_runs import newest
from tones import write_tones

from spirit_jax import files

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
KILLS = 30
FLAGS = "--xla_backend_optimization_level=0"  # compiles faster; one device
STEPS = 8
SETTINGS = {
    "checkpoint_every": 1,
    "keep": 3,
    "steps": STEPS,
    "data": {"seq_len": 64, "batch_rows": 4, "shards": 2},
    "optimizer": {"learning_rate": 0.01},
}


@pytest.fixture
def start(emulator, tmp_path):
    """A function that starts `spirit-jax` in an empty folder, with an empty TMPDIR."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "tmp").mkdir()

    def start(*arguments, url=emulator):
        variables = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS}
        command = [sys.executable, "-c", "from spirit_jax.cli import main; main()"]
        return subprocess.Popen(
            [*command, *map(str, arguments)],
            cwd=tmp_path / "empty",
            env=os.environ | environment(url) | variables | {"TMPDIR": str(tmp_path / "tmp")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def call(start, tmp_path):
    """Runs `spirit-jax` to its end; returns its output. Nothing may be left on the local disk."""

    def call(*arguments, **options):
        process = start(*arguments, **options)
        output, errors = process.communicate(timeout=1800)
        assert process.returncode == 0, errors[-3000:]
        assert not os.listdir(tmp_path / "empty") and not os.listdir(tmp_path / "tmp")
        return output

    return call


@pytest.fixture
def write_inputs(tmp_path, base_folder):
    """Writes a model, recordings, a manifest and a run config to a folder of the bucket."""

    def write_inputs(folder):
        files.upload_folder(base_folder, folder / "model")
        (tmp_path / "tones").mkdir()
        write_tones(tmp_path / "tones", 6)
        files.upload_folder(tmp_path / "tones", folder / "recordings")
        source = {"path": f"{folder}/corpus", "format": "speech"}
        data = SETTINGS["data"] | {"sources": [source]}
        values = SETTINGS | {"model": f"{folder}/model", "run_dir": f"{folder}/run", "data": data}
        files.write_json(folder / "run.yaml", values)
        return folder / "recordings/manifest.jsonl"

    return write_inputs


def steps_of(run_dir):
    lines = files.read_json_lines(run_dir / "metrics.jsonl")
    return {line["step"]: line["loss"] for _, line in lines}


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*")}


def test_the_whole_way_with_nothing_on_the_local_disk(bucket, start, call, write_inputs, tmp_path):
    folder = files.as_path(bucket)
    manifest = write_inputs(folder)
    call("prepare", manifest, folder / "corpus", "--model", folder / "model")
    train = ("train", "--config", folder / "run.yaml")
    process = start(*train)
    while newest(folder / "run") < 3:
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.05)
    process.kill()
    process.communicate()
    for path in (tmp_path / "tmp").iterdir():  # of the killed process
        files.remove_tree(path)
    call(*train)
    call(*train, f"run_dir={folder}/undisturbed")
    assert steps_of(folder / "run") == steps_of(folder / "undisturbed")
    assert list(steps_of(folder / "run")) == list(range(1, STEPS + 1))
    assert list((folder / "run/tensorboard").glob("events*"))
    for name in ("run", "undisturbed"):
        call(*train, f"run_dir={folder}/{name}", "--export", folder / f"{name}-model")
    exported = content(folder / "run-model")
    assert exported == content(folder / "undisturbed-model") and "llama/config.json" in exported
    options = ("--to", "speech", "--max-new-tokens", 30, "--seed", 1)
    prompt = (f"speech:{folder}/recordings/0.wav", *options)
    call("generate", folder / "run-model", *prompt, "--output", folder / "generated")
    assert not list(folder.rglob("*.lock*")) and not list(folder.rglob("*unfinished*"))


def test_a_bucket_that_fails_now_and_then(emulator, bucket, call, write_inputs):
    folder = files.as_path(bucket)
    manifest = write_inputs(folder)
    proxy = Proxy(emulator, 0.03)
    try:
        for name, url in (("smooth", emulator), ("spoiled", proxy.url)):
            call("prepare", manifest, folder / name, "--model", folder / "model", url=url)
            train = ("train", "--config", folder / "run.yaml", f"run_dir={folder}/run-{name}")
            train += (f"data.sources[0].path={folder}/{name}",)
            call(*train, url=url)
            call(*train, "--export", folder / f"model-{name}", url=url)
        assert all(proxy.spoiled.values()), proxy.spoiled
    finally:
        proxy.close()
    assert steps_of(folder / "run-smooth") == steps_of(folder / "run-spoiled")
    assert content(folder / "model-smooth") == content(folder / "model-spoiled")


def test_a_killed_training_resumes_bitwise(bucket, emulator, call, write_inputs):
    folder = files.as_path(bucket)
    manifest = write_inputs(folder)
    call("prepare", manifest, folder / "corpus", "--model", folder / "model")
    report = json.loads(_python(["tests/kill_runs.py", "train", str(folder), str(KILLS)], emulator))
    print(report)
    assert report["killed"] == KILLS, report["error"]
    left = report["left"]  # the newest checkpoint after each kill
    assert left == sorted(left) and left[-1] >= KILLS // 2
    last = f"steps={left[-1] + 2}"
    train = ("train", "--config", folder / "run.yaml")
    call(*train, last)
    call(*train, last, f"run_dir={folder}/undisturbed", "checkpoint_every=1000")
    assert steps_of(folder / "run") == steps_of(folder / "undisturbed")
    assert len(steps_of(folder / "run")) == left[-1] + 2
    assert not list((folder / "run").rglob("damaged/*"))


@pytest.fixture
def inputs(bucket, tmp_path, base_folder, corpus):
    """The inputs of `prepare` and `export` in kill_runs.py."""
    folder = files.as_path(bucket)
    files.upload_folder(base_folder, folder / "model")
    files.upload_folder(corpus, folder / "corpus")
    (tmp_path / "tones").mkdir()
    write_tones(tmp_path / "tones", 6)
    files.upload_folder(tmp_path / "tones", folder)
    return folder


@pytest.mark.parametrize("name", ["prepare", "export"])
def test_killed_commands_give_the_same_result_when_run_again(
    name, inputs, emulator, tmp_path, base_folder, corpus
):
    if name == "export":  # the run is written by a process that has the emulator's variables
        code = (
            "import sys; from training_runs import make_run, run; "
            "folder = sys.argv[1]; "
            "run(make_run(f'{folder}/run', f'{folder}/model', f'{folder}/corpus', steps=2))"
        )
        _python(["-c", code, str(inputs)], emulator)
    report = json.loads(
        _python(["tests/kill_runs.py", name, str(inputs), str(KILLS)], emulator).splitlines()[-1]
    )
    print(report)
    assert report["results"] == ["same"] * KILLS
    assert report["killed"] >= KILLS // 4  # the others ended before the kill


def _python(arguments, url):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    variables = {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}
    variables["XLA_FLAGS"] = FLAGS
    with tempfile.TemporaryDirectory() as temporary:  # killed processes leave files
        process = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ | environment(url) | variables | {"TMPDIR": temporary},
            capture_output=True,
            text=True,
            check=False,
        )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout
