"""Everything that should be fast on a GPU, in at most six minutes: one JSON line a measurement.

    python -m benchmarks.gpu                          # on a GPU, all sections
    python -m benchmarks.gpu decode train             # chosen sections
    python -m benchmarks.gpu --small                  # tiny sizes, on any device, to try it

Sections: "decode", a 7B model with random weights at 1, 16 and 64 rows, in bfloat16 and int8, and
the time to the first token; "hubert", encoding of 16 x 30 s, and "vocoder", of 16 x 10 s, compared
with PyTorch in float32, with and without its TF32; "train", a training step of 1.7B (SmolLM's
shape) at 2,048 tokens.
"""

import gc
import json
import statistics
import time
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer

from spirit_jax import devices
from spirit_jax.cli.running import run
from spirit_jax.errors import InputError
from spirit_jax.generation import bench
from spirit_jax.models.llama_config import LlamaConfig

RATE, REPEATS = 16_000, 5
TRAINED = LlamaConfig(
    vocab_size=49152,
    hidden_size=2048,
    intermediate_size=8192,
    num_layers=24,
    num_heads=32,
    num_kv_heads=32,
    head_dim=64,
    tie_embeddings=True,
    max_positions=2048,
)


def show(section: str, **values: Any) -> None:
    """Prints a measurement."""
    device = jax.devices()[0].device_kind
    print(json.dumps({"section": section, "device": device} | values), flush=True)


def decode(small: bool) -> None:
    """Decoding in bfloat16 and int8, and the time to the first token."""
    size, tokens = ("tiny", 40) if small else ("7b", 1024)
    for int8 in (False, True):
        model, params = bench.random_model(size, jnp.bfloat16, int8_weights=int8, int8_cache=int8)
        runner = bench.make_runner(model, params)
        name = {"model": size, "weights_and_cache": "int8" if int8 else "bfloat16"}
        for rows, filled in ((1, tokens // 4), (16, tokens), (64, tokens)):
            show("decode", **name, **bench.measure_decoding(runner, rows, filled))
        show("first_token", **name, **bench.measure_first_token(runner, tokens))
        del model, params, runner
        gc.collect()


def hubert(small: bool) -> None:
    """Encoding by HuBERT's trunk and the quantizer."""
    import torch

    from benchmarks import speech

    rows, seconds = (1, 1) if small else (16, 30)
    params, apply = speech.make_hubert()
    wave_bt = np.random.default_rng(0).standard_normal((rows, seconds * RATE), np.float32)
    lengths_b = np.full(rows, wave_bt.shape[1], np.int32)
    placed = jax.device_put((wave_bt, lengths_b))
    ours = _median(lambda: jax.block_until_ready(apply(params, *placed)))
    peer = speech.make_hubert_peer().to(_torch_device())
    wave_torch = torch.from_numpy(wave_bt).to(_torch_device())
    _compare("hubert", rows * seconds, ours, lambda: peer(wave_torch).last_hidden_state)


def vocoder(small: bool) -> None:
    """Vocoding by the release's HiFi-GAN."""
    import torch

    from benchmarks import speech

    rows, seconds = (1, 1) if small else (16, 10)
    params, apply = speech.make_vocoder()
    ids_bnt = np.random.default_rng(0).integers(0, 4, (rows, seconds * 25, 3)).astype(np.int32)
    placed = jax.device_put((ids_bnt, np.full(rows, seconds * 25, np.int32)))
    ours = _median(lambda: jax.block_until_ready(apply(params, *placed)))
    peer = speech.make_vocoder_peer().to(_torch_device())
    streams = [torch.from_numpy(ids_bnt[..., i]).long().to(_torch_device()) for i in range(3)]
    _compare("vocoder", rows * seconds, ours, lambda: peer(streams))


def train(small: bool) -> None:
    """A training step in bfloat16."""
    from benchmarks import training
    from spirit_jax.training.lm.recipe import token_flops

    cfg, shape = (training.SMALL, (1, 128)) if small else (TRAINED, (8, 2048))
    tokens_bt = np.random.default_rng(0).integers(3, 30000, shape).astype(np.int32)
    step = training.make_ours(cfg, tokens_bt, gpu=not small)
    seconds = _median(step)
    rate = tokens_bt.size / seconds
    result = {"step_ms": round(1e3 * seconds, 1), "tokens_per_second": round(rate)}
    if peak := devices.peak_flops(jax.devices()[0]):
        result["mfu"] = round(rate * token_flops(cfg, shape[1]) / peak, 3)
    show("train", rows=shape[0], tokens=shape[1], **result, **bench.peak_memory())


SECTIONS = {"decode": decode, "hubert": hubert, "vocoder": vocoder, "train": train}


def main(
    sections: Annotated[list[str] | None, typer.Argument(help=", ".join(SECTIONS))] = None,
    small: Annotated[bool, typer.Option("--small", help="Tiny sizes, on any device")] = False,
) -> None:
    """Prints a JSON line for each measurement."""
    for name in sections or SECTIONS:
        if name not in SECTIONS:
            raise InputError(f"There is no section '{name}'; there are {', '.join(SECTIONS)}.")
        start = time.perf_counter()
        SECTIONS[name](small)
        gc.collect()
        show(name, section_seconds=round(time.perf_counter() - start, 1))


def _compare(section: str, audio_seconds: float, ours: float, peer: Any) -> None:
    """Shows our seconds beside the peer's, in float32 with and without TF32."""
    import torch

    def call() -> None:
        with torch.inference_mode():
            peer()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    result = {"times_real_time": round(audio_seconds / ours)}
    for name, tf32 in (("float32", False), ("tf32", True)):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        seconds = _median(call)
        result[f"torch_{name}_times_real_time"] = round(audio_seconds / seconds)
        result[f"times_as_fast_as_torch_{name}"] = round(seconds / ours, 2)
    show(section, **result)


def _torch_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _median(call: Any) -> float:
    call()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    run(main)
