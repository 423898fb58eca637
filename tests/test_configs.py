"""Every config of the repository can be read, and what it names fits together."""

import math
from pathlib import Path

import pytest

from spirit_jax import config
from spirit_jax.training.lm import RunConfig

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_a_run(path):
    run = config.read(RunConfig, path)
    assert path.stem in run.run_dir
    assert run.data.sources and all(source.path for source in run.data.sources)
    header = path.read_text().partition("run_dir:")[0]
    assert f"configs/{path.name}" in header  # the command that runs it
    if run.topology:
        chips = math.prod(int(n) for n in run.topology.split(":")[1].split("x"))
        mesh = run.mesh
        assert mesh.data * mesh.fsdp * mesh.tensor == chips
        assert run.data.batch_rows % chips == 0 and run.attention == "splash"
