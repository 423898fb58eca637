"""The table that compares models on the evaluation tasks."""

import json
import shutil
import sys

import pytest

from evaluators import table
from spirit_jax.cli import running


@pytest.fixture
def make_table(base_folder, tmp_path, monkeypatch, capsys):
    """Runs the command on two text pairs and returns its lines."""
    pairs = [{"id": n, "right": {"text": "tone"}, "wrong": {"text": "a"}} for n in (1, 2)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    tasks = tmp_path / "tasks.yaml"

    def run(*models, name="pairs"):
        tasks.write_text(f"pairs: [{{name: {name}, manifest: {tmp_path / 'pairs.jsonl'}}}]")
        arguments = ["table", "--config", str(tasks), "--output", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", [*arguments, *models])
        running.run(table.main)
        return capsys.readouterr().out.splitlines()

    return run


def test_models_are_columns_and_figures_are_rows(base_folder, make_table, tmp_path):
    runs = [tmp_path / "run", tmp_path / "second-run"]
    for run, steps in zip(runs, (3, 2), strict=True):
        run.mkdir()
        rows = [{"step": n + 1, "tokens": 500_000.0, "seconds": 30.0} for n in range(steps)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ":".join(map(str, [base_folder, *runs]))
    *lines, normalised, raw = make_table(
        f"small={small}", f"big={base_folder}:{runs[0]}", f"a={base_folder}"
    )
    assert lines == [
        "| task | figure | small | big | a |",
        "|---|---|---|---|---|",
        "| training | steps | 5 | 3 | - |",
        "| training | million tokens | 2.5 | 1.5 | - |",
        "| training | minutes | 2.5 | 1.5 | - |",
    ]
    figures = json.loads((tmp_path / "out" / "small" / "figures.json").read_text())["pairs"]
    for line, figure in ((normalised, "normalised"), (raw, "raw")):
        assert line == f"| pairs (2) | {figure} |" + f" {figures[figure]:.1f} |" * 3


def test_figures_are_reused_while_model_and_config_are_unchanged(base_folder, make_table, tmp_path):
    def modified_time():
        return (tmp_path / "out" / "a" / "figures.json").stat().st_mtime_ns

    model = tmp_path / "model"
    shutil.copytree(base_folder, model)
    first = make_table(f"a={model}"), modified_time()
    assert (make_table(f"a={model}"), modified_time()) == first
    assert "other" in make_table(f"a={model}", name="other")[-1] and modified_time() > first[1]
    again = make_table(f"a={model}"), modified_time()
    (model / "vocab.json").touch()
    assert make_table(f"a={model}") == again[0] and modified_time() > again[1]


def test_figures_of_another_evaluation_are_not_reused(base_folder, make_table, tmp_path):
    """Such as one that was killed after its first task."""
    figures = tmp_path / "out" / "a" / "figures.json"
    first, content = make_table(f"a={base_folder}"), figures.read_text()
    figures.write_text('{"other": {"items": 1, "wer": 50.0}}')
    assert make_table(f"a={base_folder}") == first
    assert figures.read_text() == content


@pytest.mark.parametrize("model", ["base", "=folder", "base=", "../base=folder"])
def test_a_model_without_a_name_or_folder_is_rejected(model, make_table, capsys):
    with pytest.raises(SystemExit):
        make_table(model)
    assert f"'{model}' is no NAME=FOLDER" in capsys.readouterr().err
