"""A CTC recogniser, and where the labels of a known text lie in what it hears.

Letters: b batch, t time (samples, then frames), d model width, v labels that the network scores,
l labels of a text in order, s states of an alignment.

The network is wav2vec 2.0 with a linear layer (arXiv 2006.11477), as in Hugging Face's
`Wav2Vec2ForCTC`; MMS (arXiv 2305.13516) is one with adapters. CTC is that of Graves et al. (2006).
"""

import dataclasses
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
    """The network and what its labels mean.

    Attributes:
      trunk: without the linear layer.
      labels: the text of every label; "" where it has none that can be spelt.
      blank: the label that stands for nothing.
      separator: the label's text between words; "" if the network has none.
      sample_rate: of the audio it takes.
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
            raise InputError(f"The separator '{self.separator}' is none of the labels.")


class CtcModel(nn.Module):
    """Waveforms to scores of labels."""

    config: CtcConfig

    @nn.compact
    def __call__(self, wave_bt: jax.Array, lengths_b: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Scores of every frame, before a softmax.

        Args:
          wave_bt: float32, one channel at `config.sample_rate`; not read after true lengths.
          lengths_b: int32, true lengths in samples.

        Returns:
          logits_btv: float32; junk, but finite, from each row's true number of frames on.
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
    """The likeliest way to say given labels; rows that cannot be said score -inf and mean nothing.

    Attributes:
      states_bt: int32, rising; 2 l + 1 is label l, 2 l the blank before it. The last state is
        repeated from each row's true number of frames on.
      starts_bl, ends_bl: int32, the first frame of each label, and the one after its last.
      label_scores_bl: float32, mean log-probability of each label over its frames; 0 from each
        row's true number of labels on.
      scores_b: float32, mean log-probability over all frames that are no blank.
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
    """The Viterbi path of every row through its labels, blanks between them as CTC has it.

    Two equal labels in a row have a blank between them. Rows do not depend on each other or on
    padding. Memory for t frames and s states is of order s sqrt(t): the way forward keeps the
    scores of one frame of every sqrt(t), and the way back computes those between again.

    Args:
      log_probs_btv: float32, t at least 1; not read after true lengths.
      lengths_b: int32, true numbers of frames.
      labels_bl: int32, none of them `blank`; not read after true lengths.
      label_lengths_b: int32, true numbers of labels.
      blank: the label between labels.
    """
    batch, frames, _ = log_probs_btv.shape
    states_s = jnp.arange(2 * labels_bl.shape[1] + 1)
    is_label_s = states_s % 2 == 1
    labels_bl = jnp.where(_before(labels_bl.shape[1], label_lengths_b), labels_bl, blank)
    spelt_bs = jnp.full((batch, len(states_s)), blank).at[:, 1::2].set(labels_bl)
    may_skip_bs = is_label_s & (spelt_bs != _shift(spelt_bs, 2, blank))
    last_b = 2 * label_lengths_b  # the blank at the end
    exists_bs = _before(len(states_s), last_b + 1)

    def step(alpha_bs, frame):
        """One frame: the best score of every state, and how many states back it came from."""
        log_probs_bv, is_true_b = frame
        skipped_bs = jnp.where(may_skip_bs, _shift(alpha_bs, 2, -jnp.inf), -jnp.inf)
        ways_nbs = jnp.stack([alpha_bs, _shift(alpha_bs, 1, -jnp.inf), skipped_bs])
        back_bs = jnp.where(is_true_b[:, None], jnp.argmax(ways_nbs, axis=0), 0).astype(jnp.int8)
        said_bs = jnp.take_along_axis(log_probs_bv, spelt_bs, axis=1)
        next_bs = jnp.where(exists_bs, jnp.max(ways_nbs, axis=0) + said_bs, -jnp.inf)
        # Scores that grow with time would lose digits; only differences matter.
        best_b1 = jnp.max(next_bs, axis=1, keepdims=True)
        next_bs -= jnp.where(jnp.isfinite(best_b1), best_b1, 0)
        return jnp.where(is_true_b[:, None], next_bs, alpha_bs), back_bs

    def forward(alpha_bs, block):
        last_bs, _ = jax.lax.scan(lambda *args: (step(*args)[0], None), alpha_bs, block)
        return last_bs, alpha_bs

    def backward(state_b, block_and_start):
        *block, alpha_bs = block_and_start
        _, back_tbs = jax.lax.scan(step, alpha_bs, tuple(block))

        def trace(state_b, back_bs):
            came_b = jnp.take_along_axis(back_bs, state_b[:, None], axis=1)[:, 0]
            return state_b - came_b, state_b

        return jax.lax.scan(trace, state_b, back_tbs, reverse=True)

    size = math.isqrt(frames - 1) + 1
    count = -(-frames // size)
    log_probs_tbv = jnp.pad(log_probs_btv, ((0, 0), (0, count * size - frames), (0, 0)))
    log_probs_tbv = log_probs_tbv.swapaxes(0, 1).reshape(count, size, batch, -1)
    is_true_tb = _before(count * size, lengths_b).T.reshape(count, size, batch)
    # As if a frame before the first had been spent before the first blank.
    alpha_bs = jnp.full(spelt_bs.shape, -jnp.inf).at[:, 0].set(0)
    alpha_bs, kept_nbs = jax.lax.scan(forward, alpha_bs, (log_probs_tbv, is_true_tb))
    ends_b2 = jnp.stack([last_b, jnp.maximum(last_b - 1, 0)], axis=1)
    scores_b2 = jnp.take_along_axis(alpha_bs, ends_b2, axis=1)
    state_b = jnp.take_along_axis(ends_b2, jnp.argmax(scores_b2, axis=1)[:, None], axis=1)[:, 0]
    _, states_nntb = jax.lax.scan(
        backward, state_b, (log_probs_tbv, is_true_tb, kept_nbs), reverse=True
    )
    states_bt = states_nntb.reshape(count * size, batch).T[:, :frames].astype(jnp.int32)
    possible_b = jnp.isfinite(scores_b2.max(axis=1))
    return _measure(log_probs_btv, lengths_b, states_bt, spelt_bs, possible_b)


def _measure(log_probs_btv, lengths_b, states_bt, spelt_bs, possible_b) -> CtcPath:
    """Times and scores of the labels on a path."""
    said_bt = jnp.take_along_axis(spelt_bs, states_bt, axis=1)
    is_true_bt = _before(states_bt.shape[1], lengths_b)
    log_probs_bt = jnp.take_along_axis(log_probs_btv, said_bt[..., None], axis=2)[..., 0]
    log_probs_bt = jnp.where(is_true_bt, log_probs_bt, 0)

    def by_label(values_bt):
        gather = jax.vmap(lambda v_t, s_t: jax.ops.segment_sum(v_t, s_t, spelt_bs.shape[1]))
        return gather(values_bt, states_bt)[:, 1::2]

    frames_bl = by_label(is_true_bt.astype(jnp.int32))
    sums_bl = by_label(log_probs_bt)
    # Past the true frames no state begins.
    timed_bt = jnp.where(is_true_bt, states_bt, spelt_bs.shape[1])
    find = jax.vmap(lambda s_t: jnp.searchsorted(s_t, jnp.arange(1, spelt_bs.shape[1], 2)))
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
