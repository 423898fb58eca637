"""One training step of the language model: a pure function of state and batch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from spirit_jax import sharding
from spirit_jax.models.llama import Llama
from spirit_jax.training.configs import StepConfig
from spirit_jax.training.loss import LossSums, chunked_losses, next_tokens, token_losses
from spirit_jax.vocab import Vocab


@struct.dataclass
class TrainState:
    """What a run carries from step to step.

    Attributes:
      step: int32, batches seen.
      params: float32 master weights that are trained.
      frozen: the other parameters; a tree that has None where `params` has an array, and the
        other way round.
      opt_state: the optimiser's.
      skipped: int32, steps that changed nothing.
    """

    step: jax.Array
    params: Any
    frozen: Any
    opt_state: Any
    skipped: jax.Array

    @classmethod
    def create(
        cls, params: Any, optimizer: optax.GradientTransformation, frozen: Any = None
    ) -> "TrainState":
        """The state before the first step."""
        zero = jnp.zeros((), jnp.int32)
        return cls(zero, params, frozen, optimizer.init(params), zero)


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is computed of a batch: how well the next token is foretold.

    Attributes:
      model: with `dtype` of the computation; parameters are cast to it where they are used.
      vocab: of the model.
      config: of the step.
      sources: names of the data's sources, for metrics.
    """

    model: Llama
    vocab: Vocab
    config: StepConfig = StepConfig()
    sources: tuple[str, ...] = ("data",)

    def losses(self, params: Any, batch: dict[str, jax.Array]) -> LossSums:
        """Loss sums of a batch: a dict of (b, t) arrays as `data.pipeline.Stream` makes them."""
        x_btd, _ = self.model.apply(
            {"params": params},
            batch["tokens"],
            batch["segments"],
            batch["positions"],
            method="features",
        )
        tied = self.model.config.tie_embeddings
        head_dv = params["embed"]["embedding"].T if tied else params["head"]

        def sums_of(x_btd, targets, head_dv):
            x_nd = x_btd.reshape(-1, x_btd.shape[-1])
            targets = jax.tree.map(jnp.ravel, targets)
            z_loss, chunk = self.config.z_loss, self.config.loss_chunk
            told = (x_nd, head_dv, targets, self.vocab, len(self.sources), z_loss)
            return chunked_losses(*told, chunk) if chunk else token_losses(*told)

        rows = (x_btd, next_tokens(batch))
        return sharding.sum_over_rows(sums_of, rows, head_dv.astype(x_btd.dtype))

    def gradients(
        self, params: Any, batch: dict[str, jax.Array], frozen: Any = None
    ) -> tuple[Any, LossSums]:
        """The gradient of the mean loss over a batch's predicted tokens, and the sums.

        Parts of an accumulated batch are weighed by the tokens that they predict, so that the
        result is that of the whole batch; `frozen` is that of a `TrainState`.
        """
        count = jnp.maximum(next_tokens(batch).weights.sum(), 1)

        def loss_of(params, part):
            sums = self.losses(merge(params, frozen), part)
            return sums.loss / count, sums

        gradient_of = jax.grad(loss_of, has_aux=True)
        if self.config.accumulate == 1:
            return gradient_of(params, batch)

        def split(array):
            parts = array.reshape(-1, self.config.accumulate, *array.shape[1:]).swapaxes(0, 1)
            return sharding.constrain(parts, None, "batch", *(None,) * (array.ndim - 1))

        def add(carry, part):
            return jax.tree.map(jnp.add, carry, gradient_of(params, part)), None

        zeros = (jax.tree.map(jnp.zeros_like, params), LossSums.zeros(len(self.sources)))
        return jax.lax.scan(add, zeros, jax.tree.map(split, batch))[0]

    def metrics(self, sums: LossSums) -> dict[str, jax.Array]:
        """Means of loss sums; what had no tokens is NaN."""
        named = {"loss": sums.loss / sums.count, "tokens": sums.count}
        parts = dict(zip(("text", "speech"), sums.parts.sum(0), strict=True))
        if len(self.sources) > 1:
            for name, (text, speech) in zip(self.sources, sums.parts, strict=True):
                parts |= {name: text + speech, f"{name}_text": text, f"{name}_speech": speech}
        for name, (entropy, hits, count) in parts.items():
            named |= {f"loss_{name}": entropy / count, f"accuracy_{name}": hits / count}
        for name, part in zip(self.sources, sums.parts, strict=True):
            named[f"share_{name}"] = part[:, 2].sum() / sums.count
        return named


def train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    state: TrainState,
    batch: dict[str, jax.Array],
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update: the new state, and metrics as float32 scalars.

    Args:
      objective: what to compute.
      optimizer, schedule: what `make_optimizer` and `make_schedule` give.
      state: may be donated.
      batch: (b, t) arrays; b is a multiple of `config.accumulate`.
    """
    grads, sums = objective.gradients(state.params, batch, state.frozen)
    rate = schedule(state.step - state.skipped)  # a skipped step does not count for the schedule
    state, norm = update(optimizer, objective.config.skip_norm, state, grads)
    more = {"grad_norm": norm, "skipped": state.skipped, "learning_rate": rate}
    return state, objective.metrics(sums) | more


def update(
    optimizer: optax.GradientTransformation, skip_norm: float, state: TrainState, grads: Any
) -> tuple[TrainState, jax.Array]:
    """The state after a gradient, and the gradient's norm; see `StepConfig` for `skip_norm`."""
    norm = optax.tree.norm(grads)
    good = jnp.isfinite(norm)
    if skip_norm:
        good &= norm <= skip_norm
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    def keep(new, old):
        return jnp.where(good, new, old)

    new_state = state.replace(
        step=state.step + 1,
        params=jax.tree.map(keep, params, state.params),
        opt_state=jax.tree.map(keep, opt_state, state.opt_state),
        skipped=state.skipped + ~good,
    )
    return new_state, norm


def partition(params: Any, is_trained: Any) -> tuple[Any, Any]:
    """(trained, frozen) by a tree of booleans, each with None in the other's places."""
    trained = jax.tree.map(lambda leaf, yes: leaf if yes else None, params, is_trained)
    frozen = jax.tree.map(lambda leaf, yes: None if yes else leaf, params, is_trained)
    return trained, frozen


def merge(trained: Any, frozen: Any) -> Any:
    """The inverse of `partition`; `frozen` may be None for nothing."""
    if frozen is None:
        return trained
    return jax.tree.map(
        lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda leaf: leaf is None
    )
