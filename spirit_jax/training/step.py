"""One training step of any network: a pure function of state and batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

Metrics = dict[str, jax.Array]  # scalars by name


@struct.dataclass
class TrainState:
    """What a run carries from step to step.

    Attributes:
      step: int32, batches seen.
      params: float32 parameters that the optimizer moves.
      extra: arrays that the optimizer does not move: frozen parameters (with LoRA, or of an
        encoder), or a codebook that follows moving averages. None for none.
      opt_state: the optimizer's.
      skipped: int32, steps that changed nothing, since their gradient was not finite or too large.
    """

    step: jax.Array
    params: Any
    extra: Any
    opt_state: Any
    skipped: jax.Array

    @classmethod
    def create(
        cls, params: Any, optimizer: optax.GradientTransformation, extra: Any = None
    ) -> "TrainState":
        """The state before the first step."""
        zero = jnp.zeros((), jnp.int32)
        return cls(zero, params, extra, optimizer.init(params), zero)


@struct.dataclass
class Gradients:
    """What a network computes of a batch.

    Attributes:
      of_params: a tree like the state's `params`; None in place of a part that is to stay as it is.
      metrics: scalars by name, "loss" among them.
      extra: the state's next `extra`.
    """

    of_params: Any
    metrics: Metrics
    extra: Any = None


def train_step(
    gradients: Callable[[TrainState, Any], Gradients],
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    state: TrainState,
    batch: Any,
    skip_norm: float = 0.0,
) -> tuple[TrainState, Metrics]:
    """One update: the new state, and metrics as float32 scalars.

    A step whose gradient norm is not finite changes nothing but the counts of steps.

    Args:
      gradients: of (state, batch).
      optimizer, schedule: see `optimizer.make_optimizer` and `make_schedule`.
      state: may be donated.
      batch: arrays with a leading axis of rows.
      skip_norm: a gradient of a larger norm changes nothing either; 0 for no such limit.
    """
    computed = gradients(state, batch)
    norm = optax.tree.norm(computed.of_params)
    good = jnp.isfinite(norm)
    if skip_norm:
        good &= norm <= skip_norm
    updates, opt_state = optimizer.update(computed.of_params, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    def keep(new, old):
        return jnp.where(good, new, old)

    new_state = TrainState(
        step=state.step + 1,
        params=jax.tree.map(keep, params, state.params),
        extra=jax.tree.map(keep, computed.extra, state.extra),
        opt_state=jax.tree.map(keep, opt_state, state.opt_state),
        skipped=state.skipped + ~good,
    )
    # A skipped step does not count for the schedule.
    rate = schedule(state.step - state.skipped)
    more = {"grad_norm": norm, "skipped": new_state.skipped, "learning_rate": rate}
    return new_state, computed.metrics | more


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
