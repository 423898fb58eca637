"""Generation speed compared with Hugging Face `generate`, side by side.

    python -m benchmarks.generation
    python -m benchmarks.generation --only mixed --requests 16 --pairs 1   # on a busy machine

A 12-layer, 768-wide Llama with random weights in float32, on the CPU with two threads. Prints the
CPU's name, and a JSON line for each of:

* equal: batches of 1 and 16 equal prompts and outputs, against Hugging Face, and speech against
  text output;
* int8: batch 1 with our weights in int8, against Hugging Face in float32;
* mixed: 64 prompts of 20 to 200 tokens with outputs of 20 to 200 tokens. The engine has 32 rows;
  their keys and values take 0.9 GiB. Hugging Face gets batches of 16 prompts, padded on the left,
  and runs each until its longest output. Only the tokens that were asked for count. `--requests`
  is for another number of prompts;
* ten_shot: prompts of ten examples and a question, with the same examples in all prompts, which
  the engine computes once, against other examples in each prompt.
"""

import enum
import json
from collections.abc import Sequence
from typing import Annotated

import jax
import numpy as np
import torch
import transformers
import typer

from benchmarks.paired import cpu_name, paired_ratio
from spirit_jax.cli.running import run
from spirit_jax.generation.config import GenerationConfig
from spirit_jax.generation.engine import Engine, slots_of
from spirit_jax.generation.masks import Masks
from spirit_jax.generation.request import Request
from spirit_jax.generation.runner import Runner
from spirit_jax.models.llama import Llama
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.models.llama_weights import abstract_params, lay_out_for_decoding, quantize_weights
from spirit_jax.vocab import Vocab

THREADS = 2
ROWS, PEER_ROWS = 32, 16  # prompts that are generated together, by the engine and by Hugging Face
CONFIG = LlamaConfig(
    vocab_size=32512,
    hidden_size=768,
    intermediate_size=2048,
    num_layers=12,
    num_heads=12,
    num_kv_heads=12,
    head_dim=64,
)
VOCAB = Vocab.make("base", 32000, padded_size=CONFIG.vocab_size)
TEXT, SPEECH = 0, 1  # masks
EQUAL_PROMPT, EQUAL_OUTPUT = 40, 64
MIXED_LENGTHS = 20, 200
SHOTS, SHOT_TOKENS, QUESTION, ANSWER = 10, 40, 20, 8  # tokens
REQUESTS = {"mixed": 64, "ten_shot": 32}
PAIRS = {"equal": 5, "int8": 5, "mixed": 2, "ten_shot": 2}


def our_runner(rng: np.random.Generator, int8: bool = False) -> Runner:
    """Our model with random weights; no request ends before its number of tokens."""
    config = CONFIG
    params = jax.tree.map(
        lambda leaf: jax.numpy.asarray(0.02 * rng.standard_normal(leaf.shape, dtype=np.float32)),
        abstract_params(Llama(config)),
    )
    if int8:
        config, params = quantize_weights(config, params)
    model, params = lay_out_for_decoding(Llama(config), params)
    allowed_mv = np.stack([VOCAB.allowed("text"), VOCAB.allowed("speech")])
    allowed_mv[:, list(VOCAB.eos)] = False
    masks = Masks(jax.numpy.asarray(allowed_mv))
    return Runner(model, params, masks, np.array(VOCAB.eos, np.int32))


def peer_model() -> transformers.LlamaForCausalLM:
    """The same architecture of Hugging Face, with random weights."""
    config = transformers.LlamaConfig(
        vocab_size=CONFIG.vocab_size,
        hidden_size=CONFIG.hidden_size,
        intermediate_size=CONFIG.intermediate_size,
        num_hidden_layers=CONFIG.num_layers,
        num_attention_heads=CONFIG.num_heads,
        num_key_value_heads=CONFIG.num_kv_heads,
    )
    return transformers.LlamaForCausalLM(config).eval()


def ours(
    runner: Runner, prompts: Sequence[np.ndarray], outputs: Sequence[int], mask: int = TEXT
) -> None:
    """Generates with a new engine, which has nothing of earlier calls in its cache."""
    requests = [
        Request(prompt.tolist(), mask, GenerationConfig(max_new_tokens=int(count)))
        for prompt, count in zip(prompts, outputs, strict=True)
    ]
    slots = slots_of(requests, CONFIG.max_positions)
    generations = Engine(runner, min(ROWS, len(requests)), slots).generate(requests)
    assert [len(generation.ids) for generation in generations] == list(outputs)


@torch.no_grad()
def peer(
    model: transformers.LlamaForCausalLM, prompts: Sequence[np.ndarray], outputs: Sequence[int]
) -> None:
    """Generates in batches, padded on the left, each until its longest output."""
    for first in range(0, len(prompts), PEER_ROWS):
        batch = prompts[first : first + PEER_ROWS]
        longest = max(len(prompt) for prompt in batch)
        ids_bt = np.stack([np.pad(prompt, (longest - len(prompt), 0)) for prompt in batch])
        mask_bt = np.stack([np.arange(longest) >= longest - len(prompt) for prompt in batch])
        count = int(max(outputs[first : first + PEER_ROWS]))
        model.generate(
            torch.from_numpy(ids_bt),
            attention_mask=torch.from_numpy(mask_bt.astype(np.int64)),
            min_new_tokens=count,
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )


def equal(runner: Runner, rng: np.random.Generator, _: int, pairs: int) -> None:
    """Batches of prompts of one length, and outputs of one length."""
    hf = peer_model()
    for batch in (1, 16):
        prompts = rng.integers(3, 30000, (batch, EQUAL_PROMPT))
        outputs = [EQUAL_OUTPUT] * batch

        def text(prompts=prompts, outputs=outputs):
            ours(runner, prompts, outputs)

        def speech(prompts=prompts, outputs=outputs):
            ours(runner, prompts, outputs, SPEECH)

        def hugging_face(prompts=prompts, outputs=outputs):
            peer(hf, prompts, outputs)

        against_hf = _against_hf(paired_ratio(text, hugging_face, pairs), sum(outputs))
        against_text = paired_ratio(speech, text, pairs)
        _print(
            workload="equal",
            batch=batch,
            **against_hf,
            speech_as_fast_as_text=round(against_text["ratio"], 2),
        )


def int8(_: Runner, rng: np.random.Generator, __: int, pairs: int) -> None:
    """One prompt; our weights are int8, those of Hugging Face float32."""
    runner, hf = our_runner(rng, int8=True), peer_model()
    prompts, outputs = rng.integers(3, 30000, (1, EQUAL_PROMPT)), [EQUAL_OUTPUT]
    times = paired_ratio(
        lambda: ours(runner, prompts, outputs), lambda: peer(hf, prompts, outputs), pairs
    )
    _print(workload="int8", batch=1, **_against_hf(times, sum(outputs)))


def mixed(runner: Runner, rng: np.random.Generator, requests: int, pairs: int) -> None:
    """Prompts and outputs of random lengths."""
    hf = peer_model()
    shortest, longest = MIXED_LENGTHS
    lengths, outputs = rng.integers(shortest, longest + 1, (2, requests))
    prompts = [rng.integers(3, 30000, length) for length in lengths]

    def warm_up():
        ours(runner, prompts, outputs)  # compiles
        peer(hf, prompts[:PEER_ROWS], [2] * PEER_ROWS)

    times = paired_ratio(
        lambda: ours(runner, prompts, outputs),
        lambda: peer(hf, prompts, outputs),
        pairs,
        warm_up,
    )
    _print(workload="mixed", requests=requests, **_against_hf(times, int(outputs.sum())))


def ten_shot(runner: Runner, rng: np.random.Generator, requests: int, pairs: int) -> None:
    """Ten-shot prompts, with the same examples in all prompts or others in each."""
    examples, count = SHOTS * SHOT_TOKENS, requests
    others = rng.integers(3, 30000, (count, examples + QUESTION))
    shared = np.concatenate([others[:1, :examples].repeat(count, 0), others[:, examples:]], axis=1)
    outputs = [ANSWER] * count
    times = paired_ratio(
        lambda: ours(runner, shared, outputs),
        lambda: ours(runner, others, outputs),
        pairs,
    )
    _print(
        workload="ten_shot",
        requests=count,
        prompts_per_second=round(count / times["ours_seconds"], 2),
        without_reuse=round(count / times["peer_seconds"], 2),
        times_as_fast_as_without_reuse=round(times["ratio"], 2),
    )


def _against_hf(times: dict[str, float], tokens: int) -> dict[str, float]:
    return {
        "tokens_per_second": round(tokens / times["ours_seconds"], 1),
        "hf_tokens_per_second": round(tokens / times["peer_seconds"], 1),
        "times_as_fast_as_hf": round(times["ratio"], 2),
    }


def _print(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


WORKLOADS = {"equal": equal, "int8": int8, "mixed": mixed, "ten_shot": ten_shot}
Workload = enum.StrEnum("Workload", list(WORKLOADS))


def main(
    only: Annotated[Workload | None, typer.Option(help="Run one of the workloads")] = None,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Requests of mixed and ten_shot; by default 64 and 32")
    ] = None,
    pairs: Annotated[
        int | None, typer.Option(min=1, help="Measurements of both sides; by default 2 to 5")
    ] = None,
) -> None:
    """Runs the command that the module's docstring describes."""
    torch.set_num_threads(THREADS)
    print(cpu_name(), flush=True)
    runner = our_runner(np.random.default_rng(0))
    for name in [only] if only else WORKLOADS:
        count = requests or REQUESTS.get(name, 1)
        WORKLOADS[name](runner, np.random.default_rng(1), count, pairs or PAIRS[name])


if __name__ == "__main__":
    run(main)
