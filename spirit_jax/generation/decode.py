"""Batched generation: one compiled prefill and one compiled decode loop for all rows.

Prompts are left-padded, so that all rows write the same cache slot in a step. Positions count from
the first token of each row and the padding is masked, so a row does not depend on the others. The
number of rows, prompt lengths and output lengths are padded to powers of two, so that few programs
are compiled.

Axes: b rows, t prompt positions, n new tokens, v vocabulary.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from spirit_jax import sharding
from spirit_jax.bucketing import power_of_two
from spirit_jax.errors import InputError
from spirit_jax.generation.sampling import (
    NEVER,
    GenerationConfig,
    SamplingParams,
    StaticSampling,
    next_tokens,
)
from spirit_jax.models.attention import KVCache
from spirit_jax.models.llama import Llama, init_cache


@struct.dataclass
class DecodeState:
    """The state of the decode loop.

    Attributes:
      step: int32 scalar, number of generated tokens.
      tokens_bn: int32, generated tokens, then the padding id.
      log_probs_bn: float32, log probability of each generated token; see `Continuation`.
      last_b: int32, the newest token of each row.
      positions_b: int32, rotary position of the newest token.
      done_b: bool, rows that have ended; they write padding until all rows have.
      seen_bv: bool, tokens of prompt and output, for a repetition penalty; else None.
      cache: keys and values of all tokens before `last_b`.
    """

    step: jax.Array
    tokens_bn: jax.Array
    log_probs_bn: jax.Array
    last_b: jax.Array
    positions_b: jax.Array
    done_b: jax.Array
    seen_bv: jax.Array | None
    cache: KVCache


@dataclasses.dataclass(frozen=True)
class Continuation:
    """The generated tokens after a prompt.

    Attributes:
      ids: generated token ids, including EOS if it was generated.
      log_probs: natural log probability of each id, in the model's distribution over the allowed
        ids, at temperature 1 and without repetition penalty, top-k or top-p.
    """

    ids: list[int]
    log_probs: list[float]


@functools.partial(jax.jit, static_argnames=("model", "slots", "static"))
def prefill(
    model: Llama,
    params: Any,
    tokens_bt: jax.Array,
    segments_bt: jax.Array,
    slots: int,
    static: StaticSampling,
) -> tuple[jax.Array, KVCache, jax.Array | None]:
    """Computes the cache of left-padded prompts.

    Args:
      model: the language model.
      params: its parameters.
      tokens_bt: int32 token ids.
      segments_bt: int32, 1 for tokens and 0 for padding.
      slots: number of positions of the cache.
      static: which sampling rules are compiled.

    Returns:
      (float32 logits_bv of the next token, the cache, bool seen_bv or None).
    """
    positions_bt = jnp.maximum(jnp.cumsum(segments_bt, axis=1) - 1, 0)
    cache = init_cache(model, tokens_bt.shape[0], slots)
    logits_btv, cache = model.apply(
        {"params": params}, tokens_bt, segments_bt, positions_bt, cache, last_only=True
    )
    seen_bv = None
    if static.penalise:
        rows_b1 = jnp.arange(tokens_bt.shape[0])[:, None]
        seen_bv = jnp.zeros((tokens_bt.shape[0], model.config.vocab_size), bool)
        seen_bv = seen_bv.at[rows_b1, tokens_bt].max(segments_bt > 0)
    return logits_btv[:, 0], cache, seen_bv


@functools.partial(jax.jit, static_argnames=("model", "buffer", "static"), donate_argnames="cache")
def decode(
    model: Llama,
    params: Any,
    logits_bv: jax.Array,
    cache: KVCache,
    seen_bv: jax.Array | None,
    lengths_b: jax.Array,
    limits_b: jax.Array,
    allowed_v: jax.Array,
    eos_e: jax.Array,
    pad: jax.Array,
    seed: jax.Array,
    sampling: SamplingParams,
    buffer: int,
    static: StaticSampling,
) -> DecodeState:
    """Generates up to `limits_b` tokens for each row, including EOS.

    Args:
      model: the language model.
      params: its parameters.
      logits_bv: float32 logits of the first token.
      cache: of the prompts; it is donated.
      seen_bv: bool tokens of the prompts, for a repetition penalty; else None.
      lengths_b: int32 prompt lengths.
      limits_b: int32 largest numbers of tokens to generate.
      allowed_v: bool tokens that may be generated.
      eos_e: int32 ids of EOS.
      pad: int32 scalar, written after the end of a row.
      seed: uint32 scalar, random seed.
      sampling: temperature, top-p, top-k and repetition penalty.
      buffer: largest of `limits_b`, padded.
      static: which sampling rules are compiled.

    Returns:
      The state after the last step.
    """
    rows_b = jnp.arange(lengths_b.shape[0])
    row_keys_b = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows_b)

    def choose(state: DecodeState, logits_bv: jax.Array) -> DecodeState:
        keys_b = jax.vmap(jax.random.fold_in, (0, None))(row_keys_b, state.step)
        next_b = next_tokens(logits_bv, allowed_v[None], state.seen_bv, keys_b, sampling, static)
        log_probs_bv = jax.nn.log_softmax(jnp.where(allowed_v[None], logits_bv, NEVER), axis=-1)
        log_probs_b1 = jnp.take_along_axis(log_probs_bv, next_b[:, None], axis=-1)
        next_b = jnp.where(state.done_b, pad, next_b)
        seen_bv = state.seen_bv
        if static.penalise:
            seen_bv = seen_bv.at[rows_b, next_b].max(~state.done_b)
        return state.replace(
            step=state.step + 1,
            tokens_bn=jax.lax.dynamic_update_slice(
                state.tokens_bn, next_b[:, None], (0, state.step)
            ),
            log_probs_bn=jax.lax.dynamic_update_slice(
                state.log_probs_bn, log_probs_b1, (0, state.step)
            ),
            last_b=next_b,
            done_b=state.done_b | jnp.isin(next_b, eos_e) | (state.step + 1 >= limits_b),
            seen_bv=seen_bv,
        )

    def unfinished(state: DecodeState) -> jax.Array:
        return ~jnp.all(state.done_b)

    def body(state: DecodeState) -> DecodeState:
        last_b1 = state.last_b[:, None]
        logits_btv, cache = model.apply(
            {"params": params},
            last_b1,
            jnp.ones_like(last_b1),
            state.positions_b[:, None],
            state.cache,
        )
        state = state.replace(cache=cache, positions_b=state.positions_b + 1)
        return choose(state, logits_btv[:, 0])

    state = DecodeState(
        step=jnp.zeros((), jnp.int32),
        tokens_bn=jnp.full((lengths_b.shape[0], buffer), pad, jnp.int32),
        log_probs_bn=jnp.zeros((lengths_b.shape[0], buffer), jnp.float32),
        last_b=jnp.zeros_like(lengths_b),
        positions_b=lengths_b,
        done_b=limits_b == 0,
        seen_bv=seen_bv,
        cache=cache,
    )
    return jax.lax.while_loop(unfinished, body, choose(state, logits_bv))


def generate(*args: Any, **kwargs: Any) -> list[list[int]]:
    """The generated ids of `continue_prompts`, with the same arguments."""
    return [continuation.ids for continuation in continue_prompts(*args, **kwargs)]


def continue_prompts(
    model: Llama,
    params: Any,
    prompts: Sequence[Sequence[int]],
    allowed_v: np.ndarray,
    eos: Sequence[int],
    config: GenerationConfig,
    mesh: jax.sharding.Mesh | None = None,
) -> list[Continuation]:
    """Continues a batch of prompts.

    Args:
      model: the language model.
      params: its parameters; may be sharded over `mesh`.
      prompts: token ids, at least one for each prompt.
      allowed_v: bool (v,), tokens that may be generated: those of the output modality, without
        padding rows of the vocabulary.
      eos: ids that end a row.
      config: number of tokens and sampling settings. Generation also ends at the model's last
        position.
      mesh: shards the rows over its `data` and `fsdp` axes.

    Returns:
      A continuation for each prompt, in order.

    Raises:
      InputError: a prompt is empty, has an id outside the vocabulary, or fills all positions.
    """
    if not prompts:
        return []
    _check(prompts, model)
    lengths = [len(prompt) for prompt in prompts]
    limits = [min(config.max_new_tokens, model.config.max_positions - n) for n in lengths]
    if min(limits) < 1:
        raise InputError(
            f"A prompt has {max(lengths)} tokens, but the model has {model.config.max_positions} "
            "positions: there is no room for another token."
        )
    rows = power_of_two(len(prompts), sharding.batch_multiple(mesh))
    width, buffer = power_of_two(max(lengths), 16), power_of_two(max(limits), 16)
    tokens_bt, segments_bt = _pad_left(prompts, rows, width)
    empty_rows = rows - len(prompts)
    lengths_b = np.array(lengths + [1] * empty_rows, np.int32)
    limits_b = np.array(limits + [0] * empty_rows, np.int32)

    static = StaticSampling.of(config)
    sampling = SamplingParams(
        config.temperature, config.top_p, config.top_k, config.repetition_penalty
    )
    place = functools.partial(sharding.place_batch, mesh=mesh)
    with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
        logits_bv, cache, seen_bv = prefill(
            model, params, place(tokens_bt), place(segments_bt), width + buffer, static
        )
        state = decode(
            model,
            params,
            logits_bv,
            cache,
            seen_bv,
            place(lengths_b),
            place(limits_b),
            allowed_v,
            np.asarray(eos, np.int32),
            np.int32(eos[0]),
            np.uint32(config.seed),
            sampling,
            buffer,
            static,
        )
        tokens_bn, log_probs_bn = np.asarray(state.tokens_bn), np.asarray(state.log_probs_bn)
    return [
        _cut_at_eos(tokens_bn[row, :limit], log_probs_bn[row], eos)
        for row, limit in enumerate(limits)
    ]


def _pad_left(
    prompts: Sequence[Sequence[int]], rows: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens_bt, segments_bt) of left-padded prompts; rows without a prompt are padding."""
    tokens_bt, segments_bt = np.zeros((2, rows, width), np.int32)
    for row, prompt in enumerate(prompts):
        tokens_bt[row, width - len(prompt) :] = prompt
        segments_bt[row, width - len(prompt) :] = 1
    return tokens_bt, segments_bt


def _cut_at_eos(tokens_n: np.ndarray, log_probs_n: np.ndarray, eos: Sequence[int]) -> Continuation:
    """The continuation up to the first EOS."""
    ends = np.flatnonzero(np.isin(tokens_n, eos))
    length = ends[0] + 1 if len(ends) else len(tokens_n)
    return Continuation(tokens_n[:length].tolist(), log_probs_n[:length].tolist())


def _check(prompts: Sequence[Sequence[int]], model: Llama) -> None:
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise InputError(f"Prompt {i} has no tokens; it needs at least the BOS token.")
        outside = [token for token in prompt if not 0 <= token < model.config.vocab_size]
        if outside:
            raise InputError(
                f"Prompt {i} has the token {outside[0]}, but the vocabulary has "
                f"{model.config.vocab_size}."
            )
