"""The table of models by tasks."""

import json
import sys

import pytest

from corpora import table


def write_run(folder, figures):
    (folder / "figures.json").parent.mkdir(parents=True, exist_ok=True)
    (folder / "figures.json").write_text(json.dumps(figures))


def test_models_are_columns_and_their_figures_rows(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "out" / "small", {"asr": {"wer": 12.345, "items": 9}})
    write_run(tmp_path / "out" / "big", {"asr": {"wer": 1.0}, "pairs": {"raw": 50.0}})
    run = tmp_path / "run"
    run.mkdir()
    rows = [{"step": n, "tokens": 500_000.0, "seconds": 30.0} for n in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = tmp_path / "tasks.yaml"
    tasks.write_text("pairs: [{name: pairs, manifest: none.jsonl}]")
    given = ["table", "--config", str(tasks), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*given, f"small=none:{run}", "big=none"])
    table.main()
    assert capsys.readouterr().out.splitlines() == [
        "| task | figure | small | big |",
        "|---|---|---|---|",
        "| training | steps | 3.0 | - |",
        "| training | million tokens | 1.5 | - |",
        "| training | minutes | 1.5 | - |",
        "| asr | wer | 12.3 | 1.0 |",
        "| pairs | raw | - | 50.0 |",
    ]


@pytest.mark.parametrize("model", ["base", "=folder", "base=", "../base=folder"])
def test_a_model_without_a_name_or_folder_is_refused(model, tmp_path, monkeypatch, capsys):
    tasks = tmp_path / "tasks.yaml"
    tasks.write_text("pairs: [{name: pairs, manifest: none.jsonl}]")
    given = ["table", "--config", str(tasks), "--output", str(tmp_path), model]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit):
        table.main()
    assert f"'{model}' is no NAME=FOLDER" in capsys.readouterr().err
