"""One training step of the language model: a pure function of state and batch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from spirit_jax import sharding
from spirit_jax.errors import InputError
from spirit_jax.models.llama import Llama
from spirit_jax.training.loss import LossSums, chunked_losses, next_tokens, token_losses
from spirit_jax.vocab import Vocab


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """How a step is computed.

    Attributes:
      accumulate: parts that a batch is taken in, one after another, with one update.
      loss_chunk: tokens whose logits a device holds at once; 0 for all.
      z_loss: weight of the squared log of the softmax's denominator.
      skip_norm: a step whose gradient norm is above this, or is not finite, changes nothing; 0 to
        skip only what is not finite.
    """

    accumulate: int = 1
    loss_chunk: int = 1024
    z_loss: float = 0.0
    skip_norm: float = 0.0

    def __post_init__(self):
        if self.accumulate < 1 or min(self.loss_chunk, self.z_loss, self.skip_norm) < 0:
            raise InputError("accumulate must be at least 1, and the rest of the step 0 or more.")


@struct.dataclass
class TrainState:
    """What a run carries from step to step.

    Attributes:
      step: int32, batches seen.
      params: float32 master weights.
      opt_state: the optimiser's.
      skipped: int32, steps that changed nothing.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    skipped: jax.Array

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformation) -> "TrainState":
        """The state before the first step."""
        zero = jnp.zeros((), jnp.int32)
        return cls(zero, params, optimizer.init(params), zero)


def batch_losses(
    model: Llama, params: Any, batch: dict[str, jax.Array], vocab: Vocab, config: StepConfig
) -> LossSums:
    """Loss sums of a batch: a dict of (b, t) arrays as `data.pipeline.Stream` makes them."""
    x_btd, _ = model.apply(
        {"params": params},
        batch["tokens"],
        batch["segments"],
        batch["positions"],
        method="features",
    )
    tied = model.config.tie_embeddings
    head_dv = params["embed"]["embedding"].T if tied else params["head"]
    targets_bt, weights_bt = next_tokens(batch)

    def sums_of(x_btd, targets_bt, weights_bt, head_dv):
        tokens = (x_btd.reshape(-1, x_btd.shape[-1]), head_dv)
        tokens += (targets_bt.reshape(-1), weights_bt.reshape(-1), vocab, config.z_loss)
        chunk = config.loss_chunk
        return chunked_losses(*tokens, chunk) if chunk else token_losses(*tokens)

    rows = (x_btd, targets_bt, weights_bt)
    return sharding.sum_over_rows(sums_of, rows, head_dv.astype(x_btd.dtype))


def gradients(
    model: Llama, params: Any, batch: dict[str, jax.Array], vocab: Vocab, config: StepConfig
) -> tuple[Any, LossSums]:
    """The gradient of the mean loss over a batch's predicted tokens, and the sums.

    Parts of an accumulated batch are weighed by the tokens that they predict, so that the result
    is that of the whole batch.
    """
    _, weights_bt = next_tokens(batch)
    count = jnp.maximum(weights_bt.sum(), 1)

    def loss_of(params, part):
        sums = batch_losses(model, params, part, vocab, config)
        return sums.loss / count, sums

    gradient_of = jax.grad(loss_of, has_aux=True)
    if config.accumulate == 1:
        return gradient_of(params, batch)

    def split(array):
        return array.reshape(-1, config.accumulate, *array.shape[1:]).swapaxes(0, 1)

    def add(carry, part):
        return jax.tree.map(jnp.add, carry, gradient_of(params, part)), None

    zeros = (jax.tree.map(jnp.zeros_like, params), LossSums.zeros())
    return jax.lax.scan(add, zeros, jax.tree.map(split, batch))[0]


def train_step(
    model: Llama,
    optimizer: optax.GradientTransformation,
    vocab: Vocab,
    config: StepConfig,
    state: TrainState,
    batch: dict[str, jax.Array],
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update: the new state, and metrics as float32 scalars.

    Args:
      model: with `dtype` of the computation; parameters are cast to it where they are used.
      optimizer: what `make_optimizer` gives.
      vocab, config: see `batch_losses`.
      state: may be donated.
      batch: (b, t) arrays; b is a multiple of `config.accumulate`.
    """
    grads, sums = gradients(model, state.params, batch, vocab, config)
    norm = optax.tree.norm(grads)
    good = jnp.isfinite(norm)
    if config.skip_norm:
        good &= norm <= config.skip_norm
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    def keep(new, old):
        return jnp.where(good, new, old)

    new_state = TrainState(
        state.step + 1,
        jax.tree.map(keep, params, state.params),
        jax.tree.map(keep, opt_state, state.opt_state),
        state.skipped + ~good,
    )
    return new_state, metrics(sums) | {"grad_norm": norm, "skipped": new_state.skipped}


def metrics(sums: LossSums) -> dict[str, jax.Array]:
    """Means of loss sums; what had no tokens is NaN."""
    named = {"loss": sums.loss / sums.count, "tokens": sums.count}
    for name, (entropy, hits, count) in (("text", sums.text), ("speech", sums.speech)):
        named |= {f"loss_{name}": entropy / count, f"accuracy_{name}": hits / count}
    return named
