"""Every `python -m` command: --help says what it does and runs nothing; others are refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from spirit_jax.cli import bench as sizes
from spirit_jax.cli import commands
from spirit_jax.generation import bench

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "convert", "corpora", "evaluators", "tpu", "spirit_jax/cli")
INTERNAL = ("spirit_jax.cli.processes",)  # a filter that another process starts
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in FOLDERS
    for path in (ROOT / folder).glob("*.py")
    if 'if __name__ == "__main__":' in path.read_text()
)
# Runs commands in one process: [exit status, standard output, standard error] of each.
RUNNER = """
import contextlib, io, json, runpy, sys, warnings
warnings.simplefilter("ignore")  # runpy's, of modules that others have imported already
results = {}
for name in json.loads(sys.argv[1]):
    for option in ("--help", "--no-such-option"):
        sys.argv = [name, option]
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                runpy.run_module(name, run_name="__main__", alter_sys=True)
            status = "returned"
        except SystemExit as stop:
            status = stop.code or 0
        except ImportError as error:  # of an extra that is not installed
            status = f"needs {error}"
        results[f"{name} {option}"] = status, out.getvalue(), err.getvalue()
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    commands = json.dumps([name for name in COMMANDS if name not in INTERNAL])
    folder = tmp_path_factory.mktemp("here")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, commands],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert not list(folder.iterdir())
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in INTERNAL])
def test_help_suffices_and_unknown_options_are_refused(results, name):
    status, out, err = results[f"{name} --help"]
    if str(status).startswith("needs"):
        pytest.skip(status)
    assert status == 0 and "--help" in out and not err, err
    if name != "spirit_jax.cli.__main__":
        assert out.startswith(f"Usage: python -m {name}")
    status, out, err = results[f"{name} --no-such-option"]
    assert status == 2 and not out and err.strip(), (out, err)


def test_summaries_of_commands_are_imperatives():
    group = typer.main.get_command(commands.app)
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        parts = [command]
        if name == "convert":
            parts += [command.get_command(None, part) for part in command.list_commands(None)]
        for part in parts:
            verb = part.help.split()[0]
            assert verb[0].isupper() and verb[-1] != "s", part.help


def test_sizes_of_random_models_are_known():
    assert tuple(bench.SIZES) == sizes.SIZES


def test_a_curve_without_data_is_one_sentence(tmp_path):
    from benchmarks.curve import draw
    from spirit_jax.errors import InputError

    with pytest.raises(InputError, match="metrics.jsonl: cannot be read"):
        draw(tmp_path, tmp_path / "a.png", ["loss"])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    with pytest.raises(InputError, match="has no metric lost; it has loss"):
        draw(tmp_path, tmp_path / "a.png", ["lost"])
    with pytest.raises(InputError, match="ends in .png"):
        draw(tmp_path, tmp_path / "a.jsonl", ["loss"])
    draw(tmp_path, tmp_path / "a.png", ["loss"])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
