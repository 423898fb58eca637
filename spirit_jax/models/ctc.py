"""A CTC recogniser, and forced alignment of a known text.

Letters: b batch, t time (samples, then frames), d model width, v label vocabulary,
l labels of a text in order, s states of an alignment.

The network is wav2vec 2.0 with a linear layer (arXiv 2006.11477), as in Hugging Face's
`Wav2Vec2ForCTC`; MMS (arXiv 2305.13516) adds language adapters. For CTC see Graves et al. (2006).
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from spirit_jax import checkpoint, limits
from spirit_jax.errors import InputError
from spirit_jax.models.wav2vec2 import Trunk, TrunkConfig


@dataclasses.dataclass(frozen=True)
class CtcConfig:
    """The network and its labels.

    Attributes:
      trunk: the network without the linear layer.
      labels: the text of every label; "" for labels without text.
      blank: id of the CTC blank.
      separator: text of the label between words; "" if the network has none.
      sample_rate: of the audio, in Hz.
    """

    trunk: TrunkConfig = TrunkConfig(input_norm_eps=1e-7)
    labels: tuple[str, ...] = ("<pad>", "|", *"abcdefghijklmnopqrstuvwxyz'")
    blank: int = 0
    separator: str = "|"
    sample_rate: int = 16000

    def __post_init__(self):
        limits.check_numbers(
            self, blank=limits.may_be_zero(limits.IDS), sample_rate=limits.SAMPLE_RATE
        )
        if not 0 <= self.blank < len(self.labels):
            raise InputError(f"blank is {self.blank}; the labels are 0 to {len(self.labels) - 1}.")
        if self.separator and self.separator not in self.labels:
            raise InputError(f"The separator '{self.separator}' is not one of the labels.")


class CtcModel(nn.Module):
    """Waveforms to logits of labels."""

    config: CtcConfig

    @nn.compact
    def __call__(self, wave_bt: jax.Array, lengths_b: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits of every frame.

        Args:
          wave_bt: float32, one channel at `config.sample_rate`; ignored after true lengths.
          lengths_b: int32, true lengths in samples.

        Returns:
          logits_btv: float32; finite but undefined after each row's true number of frames.
          frame_lengths_b: int32, the true numbers of frames.
        """
        cfg = self.config
        hidden_btd, frames_b = Trunk(cfg.trunk, name="trunk")(wave_bt, lengths_b)
        head = nn.Dense(len(cfg.labels), precision=cfg.trunk.precision, name="head")
        return head(hidden_btd), frames_b


def load(folder: str | Path) -> tuple[CtcModel, dict]:
    """The model of a network folder and its parameters (numpy arrays)."""
    cfg, params = checkpoint.load_network(folder, CtcConfig)
    return CtcModel(cfg), params


class CtcPath(NamedTuple):
    """The Viterbi path of given labels; rows without a path have a score of -inf.

    Attributes:
      states_bt: int32, non-decreasing; 2 l + 1 is label l, 2 l the blank before it. The last state
        is repeated after each row's true number of frames.
      starts_bl, ends_bl: int32, first frame of each label, and the frame after its last.
      label_scores_bl: float32, mean log-probability of each label over its frames; 0 after each
        row's true number of labels.
      scores_b: float32, mean log-probability over all frames that are not blank.
    """

    states_bt: jax.Array
    starts_bl: jax.Array
    ends_bl: jax.Array
    label_scores_bl: jax.Array
    scores_b: jax.Array


def ctc_align(
    log_probs_btv: jax.Array,
    lengths_b: jax.Array,
    labels_bl: jax.Array,
    label_lengths_b: jax.Array,
    blank: int,
) -> CtcPath:
    """CTC forced alignment by the Viterbi algorithm.

    Two equal labels in a row have a blank between them. Rows do not depend on each other or on
    padding. Memory is O(s sqrt(t)) for t frames and s states: the forward pass saves the scores of
    every sqrt(t)-th frame, and the backward pass recomputes the others.

    Args:
      log_probs_btv: float32, t at least 1; ignored after true lengths.
      lengths_b: int32, true numbers of frames.
      labels_bl: int32, none of them `blank`; ignored after true lengths.
      label_lengths_b: int32, true numbers of labels.
      blank: id of the CTC blank.

    Returns:
      The path of each row.
    """
    batch, frames, _ = log_probs_btv.shape
    trellis = _make_trellis(labels_bl, label_lengths_b, blank)
    step = functools.partial(_viterbi_step, trellis)
    last_b = 2 * label_lengths_b  # the blank at the end

    def forward(alpha_bs, block):
        last_bs, _ = jax.lax.scan(lambda *args: (step(*args)[0], None), alpha_bs, block)
        return last_bs, alpha_bs

    def backward(state_b, block_and_start):
        *block, alpha_bs = block_and_start
        _, back_tbs = jax.lax.scan(step, alpha_bs, tuple(block))

        def trace(state_b, back_bs):
            back_b = jnp.take_along_axis(back_bs, state_b[:, None], axis=1)[:, 0]
            return state_b - back_b, state_b

        return jax.lax.scan(trace, state_b, back_tbs, reverse=True)

    size = math.isqrt(frames - 1) + 1
    count = -(-frames // size)
    log_probs_tbv = jnp.pad(log_probs_btv, ((0, 0), (0, count * size - frames), (0, 0)))
    log_probs_tbv = log_probs_tbv.swapaxes(0, 1).reshape(count, size, batch, -1)
    is_true_tb = _before(count * size, lengths_b).T.reshape(count, size, batch)
    # The state before the first frame is the first blank.
    alpha_bs = jnp.full(trellis.labels_bs.shape, -jnp.inf).at[:, 0].set(0)
    alpha_bs, kept_nbs = jax.lax.scan(forward, alpha_bs, (log_probs_tbv, is_true_tb))
    ends_b2 = jnp.stack([last_b, jnp.maximum(last_b - 1, 0)], axis=1)
    scores_b2 = jnp.take_along_axis(alpha_bs, ends_b2, axis=1)
    state_b = jnp.take_along_axis(ends_b2, jnp.argmax(scores_b2, axis=1)[:, None], axis=1)[:, 0]
    _, states_nntb = jax.lax.scan(
        backward, state_b, (log_probs_tbv, is_true_tb, kept_nbs), reverse=True
    )
    states_bt = states_nntb.reshape(count * size, batch).T[:, :frames].astype(jnp.int32)
    possible_b = jnp.isfinite(scores_b2.max(axis=1))
    return _measure(log_probs_btv, lengths_b, states_bt, trellis.labels_bs, possible_b)


class _Trellis(NamedTuple):
    """The states of each row's path, (b, s): its labels, with a blank before and after each.

    Attributes:
      labels_bs: int32, the label or blank of each state.
      may_skip_bs: bool, whether the state two before may precede, so that a blank is left out.
      exists_bs: bool, false for the states after each row's true number of labels.
    """

    labels_bs: jax.Array
    may_skip_bs: jax.Array
    exists_bs: jax.Array


def _make_trellis(labels_bl: jax.Array, label_lengths_b: jax.Array, blank: int) -> _Trellis:
    """The states for the arguments of `ctc_align`."""
    batch, labels = labels_bl.shape
    states_s = jnp.arange(2 * labels + 1)
    is_label_s = states_s % 2 == 1
    labels_bl = jnp.where(_before(labels, label_lengths_b), labels_bl, blank)
    labels_bs = jnp.full((batch, len(states_s)), blank).at[:, 1::2].set(labels_bl)
    may_skip_bs = is_label_s & (labels_bs != _shift(labels_bs, 2, blank))
    return _Trellis(labels_bs, may_skip_bs, _before(len(states_s), 2 * label_lengths_b + 1))


def _viterbi_step(
    trellis: _Trellis, alpha_bs: jax.Array, frame: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """One frame: best score of every state, and how many states back its predecessor is."""
    log_probs_bv, is_true_b = frame
    skipped_bs = jnp.where(trellis.may_skip_bs, _shift(alpha_bs, 2, -jnp.inf), -jnp.inf)
    options_nbs = jnp.stack([alpha_bs, _shift(alpha_bs, 1, -jnp.inf), skipped_bs])
    back_bs = jnp.where(is_true_b[:, None], jnp.argmax(options_nbs, axis=0), 0).astype(jnp.int8)
    log_prob_bs = jnp.take_along_axis(log_probs_bv, trellis.labels_bs, axis=1)
    next_bs = jnp.where(trellis.exists_bs, jnp.max(options_nbs, axis=0) + log_prob_bs, -jnp.inf)
    # Only differences matter; scores that grow with time would lose precision.
    best_b1 = jnp.max(next_bs, axis=1, keepdims=True)
    next_bs -= jnp.where(jnp.isfinite(best_b1), best_b1, 0)
    return jnp.where(is_true_b[:, None], next_bs, alpha_bs), back_bs


def _measure(log_probs_btv, lengths_b, states_bt, labels_bs, possible_b) -> CtcPath:
    """Times and scores of the labels on a path."""
    label_bt = jnp.take_along_axis(labels_bs, states_bt, axis=1)
    is_true_bt = _before(states_bt.shape[1], lengths_b)
    log_probs_bt = jnp.take_along_axis(log_probs_btv, label_bt[..., None], axis=2)[..., 0]
    log_probs_bt = jnp.where(is_true_bt, log_probs_bt, 0)

    def by_label(values_bt):
        gather = jax.vmap(lambda v_t, s_t: jax.ops.segment_sum(v_t, s_t, labels_bs.shape[1]))
        return gather(values_bt, states_bt)[:, 1::2]

    frames_bl = by_label(is_true_bt.astype(jnp.int32))
    sums_bl = by_label(log_probs_bt)
    # States of padding are ignored.
    timed_bt = jnp.where(is_true_bt, states_bt, labels_bs.shape[1])
    find = jax.vmap(lambda s_t: jnp.searchsorted(s_t, jnp.arange(1, labels_bs.shape[1], 2)))
    starts_bl = find(timed_bt).astype(jnp.int32)
    scores_b = sums_bl.sum(axis=1) / jnp.maximum(frames_bl.sum(axis=1), 1)
    return CtcPath(
        states_bt,
        starts_bl,
        starts_bl + frames_bl,
        sums_bl / jnp.maximum(frames_bl, 1),
        jnp.where(possible_b, scores_b, -jnp.inf),
    )


def _before(size: int, lengths_b: jax.Array) -> jax.Array:
    return jnp.arange(size)[None] < lengths_b[:, None]


def _shift(x_bs: jax.Array, places: int, fill) -> jax.Array:
    return jnp.pad(x_bs, ((0, 0), (places, 0)), constant_values=fill)[:, : x_bs.shape[1]]
