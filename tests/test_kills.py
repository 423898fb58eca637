"""Commands killed at random moments and run again: the same result, or an error message."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tones import write_tones
from training_runs import make_run, run

KILLS = 30
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, base_folder, corpus):
    """The inputs of the commands in kill_runs.py."""
    from convert.export import export_model

    folder = tmp_path_factory.mktemp("inputs")
    (folder / "model").symlink_to(base_folder)
    (folder / "corpus").symlink_to(corpus)
    lines = [json.loads(line) for line in open(write_tones(folder, 6))]
    (folder / "grids").mkdir()
    texts = []
    for number, line in enumerate(lines * 20):
        name = f"{line['id']}-{number}"
        texts.append(json.dumps(line | {"id": name, "text": f"tone number {number}"}) + "\n")
        (folder / "grids" / f"{name}.TextGrid").write_text(GRID)
    (folder / "texts.jsonl").write_text("".join(texts))
    run(make_run(folder / "run", folder / "model", folder / "corpus", steps=2))
    export_model(base_folder, folder / "hf")
    return folder


GRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1
tiers? <exists>
size = 1
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = "tone"
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prepare", "align", "eval", "export", "convert"])
def test_killed_commands_give_the_same_result_when_run_again(name, inputs):
    pytest.importorskip("torch")
    command = [sys.executable, "tests/kill_runs.py", name, str(inputs), str(KILLS)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    flags = {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}
    process = subprocess.run(
        command, cwd=ROOT, env=os.environ | flags, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr[-3000:]
    report = json.loads(process.stdout.splitlines()[-1])
    print(report)
    assert report["results"] == ["same"] * KILLS
    assert report["killed"] >= KILLS // 4  # the others ended before the kill
