"""Chooses the next token: repetition penalty, mask, temperature, top-k and top-p.

The names and the order are those of Hugging Face transformers. Axes: b batch, v vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from spirit_jax.generation.config import GenerationConfig

NEVER = np.float32(-np.inf)


def penalise_repetition(logits_bv: jax.Array, seen_bv: jax.Array, penalty: jax.Array) -> jax.Array:
    """Reduces the logits of seen tokens (CTRL, arXiv 1909.05858, section 4.1).

    Args:
      logits_bv: float32.
      seen_bv: bool.
      penalty: scalar; positive logits are divided by it, negative ones multiplied.
    """
    penalised_bv = jnp.where(logits_bv > 0, logits_bv / penalty, logits_bv * penalty)
    return jnp.where(seen_bv, penalised_bv, logits_bv)


def keep_top_k(logits_bv: jax.Array, k: jax.Array) -> jax.Array:
    """Masks all but the `k` likeliest tokens; ties with the last of them are kept."""

    def count(mask_bv, _):
        return jnp.sum(mask_bv, axis=-1)

    return _keep_largest(logits_bv, count, k)


def keep_top_p(logits_bv: jax.Array, p: jax.Array) -> jax.Array:
    """Masks all but the smallest set of likeliest tokens whose probability reaches `p`."""

    def mass(mask_bv, probs_bv):
        return jnp.sum(jnp.where(mask_bv, probs_bv, 0.0), axis=-1)

    return _keep_largest(logits_bv, mass, p)


def _keep_largest(logits_bv: jax.Array, measure, enough: jax.Array) -> jax.Array:
    """Keeps the fewest largest logits for which `measure(mask_bv, probs_bv)` reaches `enough`.

    The threshold is found by bisection over the bits of a float32 probability, whose integer order
    is its numeric order: 31 sums over the vocabulary take a twentieth of the time of sorting it.
    """
    probs_bv = jax.nn.softmax(logits_bv, axis=-1)
    bits_bv = jax.lax.bitcast_convert_type(probs_bv, jnp.int32)

    def halve(_, bounds):
        low_b, high_b = bounds
        middle_b = low_b + (high_b - low_b) // 2
        reaches_b = measure(bits_bv >= middle_b[:, None], probs_bv) >= enough
        return jnp.where(reaches_b, middle_b, low_b), jnp.where(reaches_b, high_b, middle_b)

    rows = logits_bv.shape[0]
    above_one = jax.lax.bitcast_convert_type(jnp.float32(1.0), jnp.int32) + 1
    bounds = jnp.zeros(rows, jnp.int32), jnp.full(rows, above_one)
    low_b, _ = jax.lax.fori_loop(0, 31, halve, bounds)
    return jnp.where(bits_bv >= low_b[:, None], logits_bv, NEVER)


@struct.dataclass
class SamplingParams:
    """The numbers of a `GenerationConfig` that are arguments of the compiled loop."""

    temperature: jax.Array
    top_p: jax.Array
    top_k: jax.Array
    repetition_penalty: jax.Array


def next_tokens(
    logits_bv: jax.Array,
    allowed_bv: jax.Array,
    seen_bv: jax.Array | None,
    keys_b: jax.Array,
    params: SamplingParams,
    config: "StaticSampling",
) -> jax.Array:
    """The next token of each row, int32 (b,).

    Args:
      logits_bv: float32.
      allowed_bv: bool, tokens that may be chosen.
      seen_bv: bool, tokens of prompt and output; only needed for a repetition penalty.
      keys_b: random keys.
      params: settings that can change without a new compilation.
      config: which sampling rules are compiled.
    """
    if config.penalise:
        logits_bv = penalise_repetition(logits_bv, seen_bv, params.repetition_penalty)
    logits_bv = jnp.where(allowed_bv, logits_bv, NEVER)
    if not config.sample:
        return jnp.argmax(logits_bv, axis=-1).astype(jnp.int32)
    logits_bv = logits_bv / params.temperature
    if config.use_top_k:
        logits_bv = keep_top_k(logits_bv, params.top_k)
    if config.use_top_p:
        logits_bv = keep_top_p(logits_bv, params.top_p)
    return jax.vmap(jax.random.categorical)(keys_b, logits_bv).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class StaticSampling:
    """Which sampling rules a compiled loop contains."""

    sample: bool
    use_top_k: bool
    use_top_p: bool
    penalise: bool

    @classmethod
    def of(cls, config: GenerationConfig) -> "StaticSampling":
        """The sampling rules that a config needs."""
        return cls(
            sample=config.do_sample,
            use_top_k=config.do_sample and config.top_k > 0,
            use_top_p=config.do_sample and config.top_p < 1,
            penalise=config.repetition_penalty != 1,
        )
