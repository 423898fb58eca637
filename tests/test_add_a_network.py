"""The example network of docs/add-a-network.md trains, resumes and exports."""

import dataclasses
import importlib
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import speech_runs
from tones import write_tones

from spirit_jax import checkpoint
from spirit_jax.data.speech import SpeechDataConfig
from spirit_jax.training import RECIPES, find_config
from spirit_jax.training.export import export
from spirit_jax.training.optimizer import OptimizerConfig

PAGE = Path(__file__).parents[1] / "docs" / "add-a-network.md"
FILES = re.findall(r"`loudness/(\w+\.py)`:\n\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def loudness(tmp_path, monkeypatch):
    """The example package of the page, added to the training recipes."""
    folder = tmp_path / "loudness"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for name, code in FILES:
        (folder / name).write_text(code)
    package = importlib.import_module("spirit_jax.training")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    (entry,) = re.findall(r'`"loudness": \("(\w+)", "(\w+)"\)`', PAGE.read_text())
    monkeypatch.setitem(RECIPES, "loudness", entry)
    yield
    for name in [name for name in sys.modules if name.startswith("spirit_jax.training.loudness")]:
        del sys.modules[name]


def test_the_example_is_four_short_files():
    assert [name for name, _ in FILES] == ["config.py", "data.py", "recipe.py", "report.py"]
    assert sum(bool(line.strip()) for _, code in FILES for line in code.splitlines()) < 80


def test_the_example_trains_resumes_and_exports(loudness, tmp_path):
    from spirit_jax.training import find_recipe

    manifest = write_tones(tmp_path, 4)
    recipe = find_recipe("loudness")
    config = find_config("loudness")(
        run_dir=str(tmp_path / "full"),
        steps=40,
        checkpoint_every=10,
        data=SpeechDataConfig((manifest,), (manifest,), batch_rows=2),
        optimizer=OptimizerConfig(learning_rate=1e-2),
    )
    full = speech_runs.run(recipe(config))
    assert full[-1]["eval_loss"] < 0.5 * full[0]["loss"]
    assert (tmp_path / "full" / "report" / "loudness.png").is_file()
    stopped = dataclasses.replace(config, run_dir=str(tmp_path / "stopped"))
    speech_runs.run(recipe(stopped), stop_after=25)
    resumed = speech_runs.run(recipe(stopped))
    assert [line["loss"] for line in resumed] == [line["loss"] for line in full[-len(resumed) :]]
    assert 0 < len(resumed) < 40
    states = [speech_runs.load_state(recipe(run)) for run in (config, stopped)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert export(recipe(config), tmp_path / "network") == 40
    network, params = checkpoint.load_network(tmp_path / "network", type(config.network))
    assert network == config.network
    jax.tree.map(np.testing.assert_array_equal, params, states[0].params)
