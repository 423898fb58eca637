"""Measures how fast a model generates, and which share of the memory's bandwidth that is."""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spirit_jax import devices
from spirit_jax.generation.config import GenerationConfig
from spirit_jax.generation.engine import Engine
from spirit_jax.generation.masks import Masks
from spirit_jax.generation.request import Request
from spirit_jax.generation.runner import MAX_STEPS, Rows, Runner
from spirit_jax.generation.sampling import Sampling
from spirit_jax.models import llama, llama_weights
from spirit_jax.models.llama_config import LlamaConfig

# Sizes of models with random weights; 7b is Spirit LM's.
SIZES = {
    "tiny": LlamaConfig(512, 64, 128, 2, 4, 4, 16),
    "125m": LlamaConfig(32512, 768, 2048, 12, 12, 12, 64),
    "1b": LlamaConfig(32512, 2048, 5504, 20, 16, 16, 128),
    "7b": LlamaConfig(),
}
REPEATS = 5


def random_model(
    size: str, dtype: Any, int8_weights: bool = False, int8_cache: bool = False
) -> tuple[llama.Llama, Any]:
    """A model with random weights, on the default device.

    Args:
      size: a name in `SIZES`.
      dtype: of the parameters and the computation.
      int8_weights, int8_cache: see `Llama`.

    Returns:
      The model and its parameters.
    """
    cfg = SIZES[size]
    shapes = llama_weights.abstract_params(llama.Llama(cfg, dtype, dtype))
    draw = jax.jit(
        lambda key, shape: cfg.init_std * jax.random.normal(key, shape, dtype), static_argnums=1
    )
    leaves, tree = jax.tree.flatten(shapes)
    params = tree.unflatten([draw(jax.random.key(i), leaf.shape) for i, leaf in enumerate(leaves)])
    if int8_weights:
        cfg, params = llama_weights.quantize_weights(cfg, params)
    model = llama.Llama(cfg, dtype, dtype, int8_cache=int8_cache)
    return llama_weights.lay_out_for_decoding(model, params)


def make_runner(model: llama.Llama, params: Any, mesh: jax.sharding.Mesh | None = None) -> Runner:
    """A runner for requests that may generate any token and end only at their limit."""
    masks = Masks(jnp.ones((1, model.config.vocab_size), bool))
    return Runner(model, params, masks, np.array([], np.int32), mesh)


def measure_decoding(runner: Runner, rows: int, tokens: int) -> dict[str, Any]:
    """Measures decoding of a full batch.

    Args:
      runner: from `make_runner`.
      rows: number of rows.
      tokens: of each row in the cache when a call of `MAX_STEPS` steps begins.

    Returns:
      JSON values: "ms_per_step", "tokens_per_second", "gigabytes_per_step" (the weights once and
      the filled cache once), and the "bandwidth_share" that this is of the device's nominal one.
    """
    slots = -(-(tokens + MAX_STEPS) // 64) * 64
    state = runner.init(rows, slots)
    zeros_b = np.zeros(rows, np.int32)
    ones_b, floats_b = np.ones(rows, np.float32), np.zeros(rows, np.float32)
    sampling = Sampling(floats_b, zeros_b, ones_b, floats_b, ones_b)
    seeds_b2 = np.zeros((rows, 2), np.uint32)
    described = Rows(
        zeros_b, zeros_b + tokens, zeros_b, zeros_b + MAX_STEPS, zeros_b, seeds_b2, sampling
    )

    def run() -> None:
        nonlocal state
        state, decoded = runner.decode(state, described, slots, MAX_STEPS, rows)
        jax.block_until_ready(decoded)

    seconds = _median_seconds(run) / MAX_STEPS
    cache_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state.layers))
    cache_bytes *= (tokens + MAX_STEPS / 2) / slots
    read = weight_bytes(runner) + cache_bytes
    return {
        "rows": rows,
        "tokens_in_cache": tokens,
        "ms_per_step": round(1e3 * seconds, 3),
        "tokens_per_second": round(rows / seconds, 1),
        "gigabytes_per_step": round(read / 1e9, 2),
    } | _bandwidth_share(read / seconds)


def measure_first_token(runner: Runner, tokens: int) -> dict[str, Any]:
    """Measures prefill of one prompt, and the time to its first token.

    Args:
      runner: from `make_runner`.
      tokens: of the prompt.

    Returns:
      JSON values: "first_token_ms", "prefill_tokens_per_second".
    """
    slots = -(-(tokens + MAX_STEPS) // 64) * 64
    engine = Engine(runner, rows=1, slots=slots)
    draws = np.random.default_rng(0)
    config = GenerationConfig(max_new_tokens=1)

    def run() -> None:
        # Different prompts, so that no prefix is reused.
        prompt = draws.integers(0, runner.model.config.vocab_size, tokens).tolist()
        engine.generate([Request(prompt, 0, config)])

    seconds = _median_seconds(run)
    return {
        "prompt_tokens": tokens,
        "first_token_ms": round(1e3 * seconds, 1),
        "prefill_tokens_per_second": round(tokens / seconds),
    }


def weight_bytes(runner: Runner) -> int:
    """Bytes of the weights that a decoding step reads: all but the rows of the embedding."""
    leaves = sum(leaf.nbytes for leaf in jax.tree.leaves(runner.params))
    if runner.model.config.tie_embeddings:
        return leaves
    return leaves - runner.params["embed"]["embedding"].nbytes


def peak_memory() -> dict[str, float]:
    """{"peak_gigabytes": of the first device}, where the device counts it."""
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return {} if peak is None else {"peak_gigabytes": round(peak / 1e9, 2)}


def _bandwidth_share(bytes_per_second: float) -> dict[str, float]:
    nominal = devices.bandwidth(jax.devices()[0])
    if nominal is None:
        return {}
    return {"bandwidth_share": round(bytes_per_second / nominal / jax.device_count(), 3)}


def _median_seconds(run) -> float:
    run()  # compiles
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
