"""The wheel: it works without a checkout, and requires no more than it needs."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("spirit_jax", "convert", "tpu", "configs")
FILES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE")
# Without torch and libtpu, as where only the wheel is installed.
SCRIPT = """
import importlib, pkgutil, runpy, sys
from pathlib import Path
sys.modules["torch"] = sys.modules["libtpu"] = None

def run(*arguments):
    sys.argv, status = ["spirit-jax", *arguments], 0
    try:
        runpy.run_module("spirit_jax.cli", run_name="__main__")
    except SystemExit as stop:
        status = stop.code or 0
    print("status", status, flush=True)

import spirit_jax
assert Path(spirit_jax.__file__).is_relative_to(sys.argv[1]), spirit_jax.__file__
run("convert", "--help")
assert "jax" not in sys.modules
run("convert", "format", "spirit-tiny-base", "--to", "orbax", "--output", "copy")
run("convert", "llama")
run("plan", "--help")
run("plan", "--config", "configs/7b-v5p-128.yaml")
run("train", "--config", "configs/smoke.yaml", "steps=0")
for package in ("convert", "tpu"):
    importlib.import_module(f"spirit_jax.{package}")
import spirit_jax.tpu.plan
"""
IMPORT = """
import sys
import spirit_jax
assert "jax" not in sys.modules
from spirit_jax import SpiritLM
slow = ("orbax", "jax.experimental.pallas.ops", "grain", "numba", "matplotlib", "torch")
print([name for name in slow if name in sys.modules])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools", minversion="70.1")  # from there on it builds wheels alone
    copy, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    for name in FILES:
        shutil.copyfile(ROOT / name, copy / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", build, output],
        cwd=copy,
        check=True,
        capture_output=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    return next(output.glob("*.whl"))


def test_the_wheel_has_all_files_and_no_others(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {
        f"{target}/{path.relative_to(ROOT / source).as_posix()}"
        for source, target in [("spirit_jax", "spirit_jax")]
        + [(name, f"spirit_jax/{name}") for name in ("convert", "tpu", "configs")]
        for path in (ROOT / source).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == wanted
    assert {name.partition("/")[0] for name in names} == {"spirit_jax"}
    assert "spirit_jax/py.typed" in names


def test_the_wheel_requires_no_torch(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    always = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert len(always) > 10
    for heavy in ("torch", "tensorflow", "gradio", "transformers"):
        assert not [line for line in always if line.lower().startswith(heavy)]
    assert metadata["Requires-Python"] == ">=3.11" and metadata.get_all("Classifier")
    assert metadata["Keywords"] and metadata["Author"] and metadata.get_all("Project-URL")


def test_the_wheel_works_in_an_empty_folder(wheel, tmp_path):
    site, here = tmp_path / "site", tmp_path / "here"
    here.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, site],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    statuses = [line for line in done.stdout.splitlines() if line.startswith("status")]
    statuses[2] = statuses[2].replace("1", "2")  # options or torch are missing
    assert statuses == [f"status {number}" for number in (0, 0, 2, 0, 1, 1)], done.stderr
    assert "error: libtpu cannot be imported: this command needs the extra tpu (" in done.stderr
    assert "configs/smoke.yaml: steps" in done.stderr  # the packaged config was read
    assert {path.name for path in here.iterdir()} == {"copy"}


@pytest.mark.slow
def test_the_demo_and_a_conversion_run_from_the_wheel(wheel, tmp_path):
    site, here = tmp_path / "site", tmp_path / "here"
    here.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    golden = ROOT.parent / "shared" / "golden" / "release_tiny" / "checkpoints"
    commands = [["demo"]]
    if golden.is_dir() and importlib.util.find_spec("torch"):
        release = ["--checkpoints", str(golden), "--model", "spirit-lm-base-7b"]
        commands += [["convert", "release", *release, "--output", "model"]]
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "spirit_jax.cli", *command],
            cwd=here,
            env=os.environ | {"PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def test_importing_a_model_class_imports_nothing_slow():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", IMPORT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
