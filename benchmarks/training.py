"""Training speed compared with PyTorch: Hugging Face's Llama with AdamW, same sizes and batch.

    python -m benchmarks.training            # on the CPU: 12 layers, 768 wide, 2 x 1024, float32
    python -m benchmarks.training --gpu      # on a GPU: about 1B, 4 x 2048, bfloat16, and its MFU

On the CPU both have two threads. On the GPU the peer runs under `torch.compile` with flash
attention and fused AdamW, its weights in bfloat16.
"""

import json
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
import typer
from flax import linen as nn

from benchmarks.paired import paired_ratio
from spirit_jax.cli.running import run
from spirit_jax.devices import peak_flops
from spirit_jax.models.llama import Llama
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.training.configs import StepConfig
from spirit_jax.training.lm.loss import Objective
from spirit_jax.training.lm.recipe import token_flops
from spirit_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from spirit_jax.training.step import TrainState, train_step
from spirit_jax.vocab import Vocab

PAIRS, THREADS, STEPS = 5, 2, 1000
SMALL = LlamaConfig(
    vocab_size=32512,
    hidden_size=768,
    intermediate_size=2048,
    num_layers=12,
    num_heads=12,
    num_kv_heads=12,
    head_dim=64,
)
LARGE = LlamaConfig(
    vocab_size=32512,
    hidden_size=2048,
    intermediate_size=5504,
    num_layers=20,
    num_heads=16,
    num_kv_heads=16,
    head_dim=128,
)


def make_ours(cfg: LlamaConfig, tokens: np.ndarray, gpu: bool, remat: str = "save_dots"):
    """A function that runs a training step of this package.

    Args:
      cfg: of the model.
      tokens: int32 (rows, positions).
      gpu: in bfloat16, with cuDNN's attention and this `remat`; otherwise in float32.
      remat: see `Llama`.
    """
    vocab = Vocab.make("base", 32000, padded_size=cfg.vocab_size)
    model = Llama(
        cfg,
        jnp.bfloat16 if gpu else jnp.float32,
        scan_layers=gpu,
        remat=remat if gpu else "none",
        attention="cudnn" if gpu else "auto",
    )
    settings = OptimizerConfig()
    schedule = make_schedule(settings, STEPS)
    optimizer = make_optimizer(settings, schedule)
    objective = Objective(model, vocab, StepConfig(loss_chunk=1024))

    @jax.jit
    def create():
        ones = jnp.ones((1, 1), jnp.int32)
        params = nn.unbox(model.init(jax.random.key(0), ones, ones, ones)["params"])
        return TrainState.create(params, optimizer)

    def step(state, batch):
        return train_step(objective.step_gradients, optimizer, schedule, state, batch)

    compiled = jax.jit(step, donate_argnums=0)
    state = create()
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    batch = {
        "tokens": tokens,
        "segments": np.ones_like(tokens),
        "positions": positions,
        "sources": np.zeros_like(tokens),
        "weights": np.ones(tokens.shape, np.float32),
    }
    batch = jax.tree.map(jnp.asarray, batch)

    def run():
        nonlocal state
        state, metrics = compiled(state, batch)
        return float(metrics["loss"])

    return run


def make_peer(cfg: LlamaConfig, tokens: np.ndarray, gpu: bool):
    """A function that runs a training step in PyTorch."""
    device = "cuda" if gpu else "cpu"
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=cfg.vocab_size,
            hidden_size=cfg.hidden_size,
            intermediate_size=cfg.intermediate_size,
            num_hidden_layers=cfg.num_layers,
            num_attention_heads=cfg.num_heads,
            num_key_value_heads=cfg.num_kv_heads,
            attn_implementation="sdpa",
            use_cache=False,
        )
    ).to(device, torch.bfloat16 if gpu else torch.float32)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    ids = torch.from_numpy(tokens.astype(np.int64)).to(device)
    forward = torch.compile(model) if gpu else model

    def run():
        loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return run


def main(gpu: Annotated[bool, typer.Option("--gpu", help="On a GPU")] = False) -> None:
    """Prints tokens a second, their ratio, and on a GPU the MFU."""
    torch.set_num_threads(THREADS)
    cfg, shape = (LARGE, (4, 2048)) if gpu else (SMALL, (2, 1024))
    tokens = np.random.default_rng(0).integers(3, 30000, shape).astype(np.int32)
    timings = paired_ratio(make_ours(cfg, tokens, gpu), make_peer(cfg, tokens, gpu), PAIRS)
    result = {
        "ours_tokens_per_second": round(tokens.size / timings["ours_seconds"]),
        "torch_tokens_per_second": round(tokens.size / timings["peer_seconds"]),
        "times_as_fast_as_torch": round(timings["ratio"], 2),
    }
    if peak := peak_flops(jax.devices()[0]):
        flops = token_flops(cfg, shape[1]) * tokens.size
        result["mfu"] = round(flops / timings["ours_seconds"] / peak, 3)
    print(json.dumps(result))


if __name__ == "__main__":
    run(main)
