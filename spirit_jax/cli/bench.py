"""`spirit-jax bench`: measures how fast a model generates."""

import json
from typing import Annotated, Literal

import typer

from spirit_jax import model_folder
from spirit_jax.errors import InputError
from spirit_jax.generation.config import QUANTIZATIONS

SIZES = "tiny", "125m", "1b", "7b"  # of `generation.bench`, which imports JAX
DTYPES = "float32", "bfloat16", "float16"


def bench(
    model: Annotated[
        str | None, typer.Argument(help="Model folder, or a packaged model's name")
    ] = None,
    random: Annotated[
        Literal[*SIZES] | None,
        typer.Option(help="Instead of MODEL: random weights of this size"),
    ] = None,
    rows: Annotated[str, typer.Option(help="Requests that decode together, such as 1,16")] = "1,16",
    tokens: Annotated[
        int, typer.Option(min=1, max=1 << 20, help="Tokens of a prompt, and of a row's cache")
    ] = 200,
    dtype: Annotated[
        Literal[*DTYPES] | None, typer.Option(help="Of the weights; that of generate by default")
    ] = None,
    quantization: Annotated[
        Literal[*QUANTIZATIONS] | None,
        typer.Option(help="Round to int8: weights, cache, or both with int8"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line")] = False,
) -> None:
    """Measure prefill, decoding and memory of the language model on this device.

    The share of the bandwidth counts the weights once and the filled cache once a step. It is not
    printed for devices whose bandwidth is not known, such as CPUs.
    """
    if (model is None) == (random is None):
        raise InputError("Give either MODEL or --random.")
    counts = _parse_rows(rows)
    if model is not None:
        model_folder.find_language_model(model)
    from spirit_jax import benchmark

    for values in benchmark.measure(model, random, counts, tokens, dtype, quantization):
        if as_json:
            print(json.dumps(values), flush=True)
        else:
            print("  ".join(f"{name} {value}" for name, value in values.items()), flush=True)


def _parse_rows(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and 0 < int(part) <= 4096 for part in parts):
        raise InputError(f"--rows is '{text}'; expected numbers from 1 to 4096, such as 1,16.")
    return [int(part) for part in parts]
