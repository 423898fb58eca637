"""What `spirit-jax bench` measures."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from spirit_jax import config, devices, model_folder
from spirit_jax.errors import InputError
from spirit_jax.generation import bench
from spirit_jax.generation.config import int8_parts
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.spiritlm import SpiritLM


def measure(
    model: str | None,
    random: str | None,
    rows: Sequence[int],
    tokens: int,
    dtype: str | None,
    quantization: str | None,
) -> Iterator[dict[str, Any]]:
    """Measures a language model; see `bench.measure_first_token` and `measure_decoding`.

    Args:
      model: a model folder, or the name of a packaged model; None for random weights.
      random: a size of `bench.SIZES`, if `model` is None.
      rows: numbers of rows to decode with.
      tokens: of a prompt, and of each row in the cache.
      dtype: see `SpiritLM.from_pretrained`.
      quantization: see `SpiritLM.from_pretrained`.

    Yields:
      JSON values of each measurement.

    Raises:
      InputError: the model cannot be loaded, or has too few positions.
    """
    if model is not None:
        folder = model_folder.find_language_model(model)
        _check_tokens(tokens, config.read(LlamaConfig, folder / "llama" / "config.json"))
        runner = SpiritLM.from_pretrained(
            model, dtype=dtype, quantization=quantization
        ).bench_runner
    else:
        if random not in bench.SIZES:
            known = ", ".join(bench.SIZES)
            raise InputError(f"--random is '{random}'; expected one of {known}.")
        _check_tokens(tokens, bench.SIZES[random])
        network, params = bench.random_model(
            random, jnp.dtype(dtype or devices.default_dtype()), *int8_parts(quantization)
        )
        runner = bench.make_runner(network, params)
    common = {"model": model or random, "device": jax.devices()[0].device_kind}
    common |= {"dtype": jnp.dtype(runner.model.dtype).name, "quantization": quantization}
    yield common | bench.measure_first_token(runner, tokens)
    for count in rows:
        yield common | bench.measure_decoding(runner, count, tokens) | bench.peak_memory()


def _check_tokens(tokens: int, cfg: LlamaConfig) -> None:
    """Raises an `InputError` unless the model has positions for the tokens and the new ones."""
    maximum = cfg.max_positions - bench.MAX_STEPS
    if tokens > maximum:
        raise InputError(
            f"--tokens is {tokens}; expected at most {maximum}, since the model has "
            f"{cfg.max_positions} positions, of which {bench.MAX_STEPS} are for new tokens."
        )
