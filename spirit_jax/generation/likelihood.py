"""Logits and log probabilities of given tokens, in whole rows without a cache.

Axes: b rows, t tokens, v vocabulary.
"""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spirit_jax import bucketing, sharding
from spirit_jax.models.llama import Llama

ROWS = 16  # batch size, rounded up to a multiple that the mesh can split


def compute_logits(
    model: Llama, params: Any, mesh: jax.sharding.Mesh | None, tokens: Sequence[int]
) -> np.ndarray:
    """The next-token logits after each token: float32 (tokens, padded vocabulary).

    Args:
      model, params: the language model.
      mesh: over which it is sharded, or None.
      tokens: ids.
    """
    shape = sharding.batch_multiple(mesh), bucketing.power_of_two(len(tokens), 16)
    tokens_bt, segments_bt = np.zeros((2, *shape), np.int32)
    tokens_bt[:, : len(tokens)], segments_bt[:, : len(tokens)] = tokens, 1
    place = functools.partial(sharding.place_batch, mesh=mesh)
    with _in_mesh(mesh):
        logits_btv = _forward(model, params, place(tokens_bt), place(segments_bt))
    return np.asarray(logits_btv[0, : len(tokens)])


def sum_log_probs(
    model: Llama,
    params: Any,
    mesh: jax.sharding.Mesh | None,
    sequences: Sequence[Sequence[int]],
    counted: Sequence[np.ndarray],
    vocab_size: int,
) -> list[float]:
    """The sums of natural log probabilities of tokens, each given those before it.

    Args:
      model, params: the language model.
      mesh: over which it is sharded, or None.
      sequences: ids.
      counted: for each sequence bool, which of its last tokens count.
      vocab_size: only the first ids have a probability; the others are padding of the embedding.
    """
    multiple = sharding.batch_multiple(mesh)
    rows = -(-ROWS // multiple) * multiple
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    place = functools.partial(sharding.place_batch, mesh=mesh)
    sums: dict[int, float] = {}
    for first in range(0, len(order), rows):
        indices = order[first : first + rows]
        slots = bucketing.power_of_two(max(len(sequences[i]) for i in indices), 32)
        tokens_bt, segments_bt = np.zeros((2, rows, slots), np.int32)
        counted_bt = np.zeros((rows, slots), np.float32)
        for row, i in enumerate(indices):
            size = len(sequences[i])
            tokens_bt[row, :size], segments_bt[row, :size] = sequences[i], 1
            counted_bt[row, size - len(counted[i]) : size] = counted[i]
        with _in_mesh(mesh):
            batch = map(place, (tokens_bt, segments_bt, counted_bt))
            sums_b = np.asarray(_sum_log_probs(model, params, *batch, vocab_size))
        sums |= zip(indices, sums_b.tolist(), strict=False)
    return [sums[i] for i in range(len(sequences))]


def _in_mesh(mesh: jax.sharding.Mesh | None) -> Any:
    return jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext()


@functools.partial(jax.jit, static_argnums=0)
def _forward(model: Llama, params: Any, tokens_bt: jax.Array, segments_bt: jax.Array) -> jax.Array:
    positions_bt = jnp.maximum(jnp.cumsum(segments_bt, axis=1) - 1, 0)
    return model.apply({"params": params}, tokens_bt, segments_bt, positions_bt)[0]


@functools.partial(jax.jit, static_argnums=(0, 5))
def _sum_log_probs(
    model: Llama,
    params: Any,
    tokens_bt: jax.Array,
    segments_bt: jax.Array,
    counted_bt: jax.Array,
    vocab_size: int,
) -> jax.Array:
    logits_btv = _forward(model, params, tokens_bt, segments_bt)[..., :vocab_size]
    logs_btv = jax.nn.log_softmax(logits_btv.astype(jnp.float32))
    log_probs_bt = jnp.take_along_axis(logs_btv[:, :-1], tokens_bt[:, 1:, None], axis=-1)[..., 0]
    return (log_probs_bt * counted_bt[:, 1:]).sum(axis=1)
