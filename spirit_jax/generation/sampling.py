"""Chooses the next tokens: repetition penalty, mask, temperature, top-k, top-p and min-p.

The names and the order are those of Hugging Face transformers. Each row has its own settings, so
that requests can share a batch. Axes: b batch, v vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

NEVER = np.float32(-np.inf)


@struct.dataclass
class Sampling:
    """The settings of `GenerationConfig` for each row.

    Attributes:
      temperature_b: float32; 0 takes the likeliest token.
      top_k_b: int32; 0 for all tokens.
      top_p_b: float32; 1 for all tokens.
      min_p_b: float32; 0 for all tokens.
      penalty_b: float32 repetition penalty; 1 for none.
    """

    temperature_b: jax.Array
    top_k_b: jax.Array
    top_p_b: jax.Array
    min_p_b: jax.Array
    penalty_b: jax.Array


def next_tokens(
    logits_bv: jax.Array,
    allowed_bv: jax.Array,
    seen_bv: jax.Array,
    keys_b: jax.Array,
    sampling: Sampling,
) -> jax.Array:
    """The next token of each row, int32 (b,).

    Rules that no row uses are skipped at run time.

    Args:
      logits_bv: float32.
      allowed_bv: bool, tokens that may be chosen.
      seen_bv: bool, tokens of prompt and output, for rows with a repetition penalty.
      keys_b: random keys.
      sampling: settings of each row.
    """
    logits_bv = _if_any(
        sampling.penalty_b != 1,
        lambda logits_bv: penalise_repetition(logits_bv, seen_bv, sampling.penalty_b[:, None]),
        logits_bv,
    )
    logits_bv = jnp.where(allowed_bv, logits_bv, NEVER)
    likeliest_b = jnp.argmax(logits_bv, axis=-1).astype(jnp.int32)
    samples_b = sampling.temperature_b > 0

    def sample(_: jax.Array) -> jax.Array:
        kept_bv = truncate(logits_bv, sampling)
        sampled_b = jax.vmap(jax.random.categorical)(keys_b, kept_bv).astype(jnp.int32)
        return jnp.where(samples_b, sampled_b, likeliest_b)

    return _if_any(samples_b, sample, likeliest_b)


def truncate(logits_bv: jax.Array, sampling: Sampling) -> jax.Array:
    """Divides logits by the temperature, and masks what top-k, top-p and min-p leave out."""
    temperature_b = jnp.where(sampling.temperature_b > 0, sampling.temperature_b, 1)
    logits_bv = logits_bv / temperature_b[:, None]
    top_k_b = jnp.where(sampling.top_k_b > 0, sampling.top_k_b, logits_bv.shape[1])
    uses = sampling.top_k_b > 0, sampling.top_p_b < 1, sampling.min_p_b > 0
    logits_bv = _if_any(uses[0], lambda x: keep_top_k(x, top_k_b), logits_bv)
    logits_bv = _if_any(uses[1], lambda x: keep_top_p(x, sampling.top_p_b), logits_bv)
    return _if_any(uses[2], lambda x: keep_min_p(x, sampling.min_p_b), logits_bv)


def _if_any(uses_b: jax.Array, rule: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    return jax.lax.cond(jnp.any(uses_b), rule, lambda x: x, x)


def penalise_repetition(logits_bv: jax.Array, seen_bv: jax.Array, penalty: jax.Array) -> jax.Array:
    """Reduces the logits of seen tokens (CTRL, arXiv 1909.05858, section 4.1).

    Args:
      logits_bv: float32.
      seen_bv: bool.
      penalty: positive logits are divided by it, negative ones multiplied.
    """
    penalised_bv = jnp.where(logits_bv > 0, logits_bv / penalty, logits_bv * penalty)
    return jnp.where(seen_bv, penalised_bv, logits_bv)


def keep_top_k(logits_bv: jax.Array, k_b: jax.Array) -> jax.Array:
    """Masks all but the `k_b` likeliest tokens; ties with the last of them are kept."""

    def count(mask_bv):
        return jnp.sum(mask_bv, axis=-1)

    return _keep_largest(logits_bv, count, k_b)


def keep_top_p(logits_bv: jax.Array, p_b: jax.Array) -> jax.Array:
    """Masks all but the smallest set of likeliest tokens whose probability reaches `p_b`.

    Ties with the last of them are kept.
    """
    probs_bv = jax.nn.softmax(logits_bv, axis=-1)

    def mass(mask_bv):
        return jnp.sum(jnp.where(mask_bv, probs_bv, 0.0), axis=-1)

    return _keep_largest(logits_bv, mass, jnp.where(p_b < 1, p_b, jnp.inf))


def keep_min_p(logits_bv: jax.Array, p_b: jax.Array) -> jax.Array:
    """Masks tokens less than `p_b` times as likely as the likeliest (arXiv 2407.01082)."""
    probs_bv = jax.nn.softmax(logits_bv, axis=-1)
    least_b1 = p_b[:, None] * probs_bv.max(axis=-1, keepdims=True)
    return jnp.where(probs_bv >= least_b1, logits_bv, NEVER)


def _keep_largest(logits_bv: jax.Array, measure: Callable, enough_b: jax.Array) -> jax.Array:
    """Keeps the fewest largest logits for which `measure(mask_bv)` reaches `enough_b`.

    The threshold is found by bisection over integers in the order of the logits: 32 sums over the
    vocabulary take a twentieth of the time of sorting it. Probabilities would not do, since those
    of different logits can be equal, or 0.
    """
    unsigned_zeros_bv = jnp.where(logits_bv == 0, 0.0, logits_bv)  # -0.0 and 0.0 are ties
    bits_bv = jax.lax.bitcast_convert_type(unsigned_zeros_bv, jnp.int32)
    # The integer order of float32 is its numeric order, but reversed for negative numbers.
    ranks_bv = jnp.where(bits_bv < 0, bits_bv ^ np.int32(2**31 - 1), bits_bv)

    def halve(_, bounds):
        low_b, high_b = bounds
        # The mean, rounded down; the sum could overflow.
        middle_b = (low_b & high_b) + ((low_b ^ high_b) >> 1)
        reaches_b = measure(ranks_bv >= middle_b[:, None]) >= enough_b
        return jnp.where(reaches_b, middle_b, low_b), jnp.where(reaches_b, high_b, middle_b)

    rows = logits_bv.shape[0]
    bounds = jnp.full(rows, -(2**31), jnp.int32), jnp.full(rows, 2**31 - 1, jnp.int32)
    low_b, _ = jax.lax.fori_loop(0, 32, halve, bounds)
    return jnp.where(ranks_bv >= low_b[:, None], logits_bv, NEVER)
