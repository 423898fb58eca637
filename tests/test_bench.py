"""What `spirit-jax bench` and benchmarks/gpu.py measure."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from spirit_jax import benchmark
from spirit_jax.errors import InputError
from spirit_jax.generation import bench


def test_a_decoding_step_reads_the_weights_and_the_filled_cache_once():
    model, params = bench.random_model("tiny", jnp.float32)
    runner = bench.make_runner(model, params)
    cfg = model.config
    matrices = 4 * cfg.hidden_size**2 + 3 * cfg.hidden_size * cfg.intermediate_size
    norms = cfg.hidden_size * (2 * cfg.num_layers + 1)
    weights = cfg.num_layers * matrices + norms + cfg.hidden_size * cfg.vocab_size
    assert bench.weight_bytes(runner) == 4 * weights
    measured = bench.measure_decoding(runner, rows=2, tokens=8)
    assert measured["tokens_per_second"] == pytest.approx(2000 / measured["ms_per_step"], rel=0.01)


def test_a_model_without_enough_positions_is_refused():
    with pytest.raises(InputError, match="expected at most .* 4096 positions"):
        list(benchmark.measure(None, "tiny", [1], 5000, None, None))
    with pytest.raises(InputError, match="--random is '9b'; expected one of tiny, "):
        list(benchmark.measure(None, "9b", [1], 10, None, None))


@pytest.mark.slow
def test_every_section_of_the_gpu_benchmark_runs_small_on_a_cpu():
    pytest.importorskip("torch")
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--small"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    sections = [json.loads(line)["section"] for line in run.stdout.splitlines()]
    assert set(sections) == {"decode", "first_token", "hubert", "vocoder", "train"}
