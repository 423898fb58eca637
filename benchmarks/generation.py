"""Decoding speed compared with Hugging Face `generate`, and of speech compared with text output.

    python -m benchmarks.generation

A 12-layer, 768-wide Llama with random weights in float32, 64 new tokens after a prompt of 40,
batches of 1 and 16. Both run on the CPU with two threads.
"""

import json

import jax
import numpy as np
import torch
import transformers

from benchmarks.paired import paired_ratio
from spirit_jax.cli.running import run
from spirit_jax.generation.config import GenerationConfig
from spirit_jax.generation.engine import continue_prompts
from spirit_jax.models.llama import Llama, LlamaConfig, abstract_params
from spirit_jax.vocab import Vocab

NEW_TOKENS, PROMPT_TOKENS, PAIRS, THREADS = 64, 40, 7, 2
CONFIG = LlamaConfig(
    vocab_size=32512,
    hidden_size=768,
    intermediate_size=2048,
    num_layers=12,
    num_heads=12,
    num_kv_heads=12,
    head_dim=64,
)


def main() -> None:
    """The command; see the module."""
    torch.set_num_threads(THREADS)
    rng = np.random.default_rng(0)
    model = Llama(CONFIG)
    params = jax.tree.map(
        lambda leaf: jax.numpy.asarray(0.02 * rng.standard_normal(leaf.shape, dtype=np.float32)),
        abstract_params(model),
    )
    hf = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=CONFIG.vocab_size,
            hidden_size=CONFIG.hidden_size,
            intermediate_size=CONFIG.intermediate_size,
            num_hidden_layers=CONFIG.num_layers,
            num_attention_heads=CONFIG.num_heads,
            num_key_value_heads=CONFIG.num_kv_heads,
        )
    ).eval()
    vocab = Vocab.make("base", 32000, padded_size=CONFIG.vocab_size)
    config = GenerationConfig(max_new_tokens=NEW_TOKENS)

    for batch in (1, 16):
        prompts = rng.integers(3, 30000, (batch, PROMPT_TOKENS))

        def ours(modality, prompts=prompts):
            allowed = vocab.allowed(modality)
            allowed[list(vocab.eos)] = False  # so that no row ends early
            return continue_prompts(model, params, prompts.tolist(), allowed, vocab.eos, config)

        @torch.no_grad()
        def peer(prompts=prompts):
            ids = torch.from_numpy(prompts)
            return hf.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=0,
            )

        against_hf = paired_ratio(lambda: ours("text"), peer, PAIRS)
        speech = paired_ratio(lambda: ours("speech"), lambda: ours("text"), PAIRS)
        tokens = batch * NEW_TOKENS
        print(
            json.dumps(
                {
                    "batch": batch,
                    "tokens_per_second": round(tokens / against_hf["ours_seconds"], 1),
                    "hf_tokens_per_second": round(tokens / against_hf["peer_seconds"], 1),
                    "times_as_fast_as_hf": round(against_hf["ratio"], 2),
                    "speech_as_fast_as_text": round(speech["ratio"], 2),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    run(main)
