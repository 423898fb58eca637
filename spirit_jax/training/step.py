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
    """The state of a run: the input and output of a training step.

    Attributes:
      step: int32, number of steps so far, skipped ones included.
      params: float32 parameters that the optimizer updates.
      extra: arrays that the optimizer does not update, such as the frozen parameters of the
        language model with LoRA or of an encoder, or a codebook that is a moving average; None if
        there are none.
      opt_state: state of the optimizer.
      skipped: int32, number of steps that were skipped because of their gradient norm.
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
    """The gradients of a batch, with metrics.

    Attributes:
      grads: a tree like the state's `params`; None for a part that is not updated.
      metrics: scalars by name; one of them is "loss".
      extra: the state's `extra` after the step.
    """

    grads: Any
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
    """One training step.

    If the gradient norm is not finite, or above `skip_norm`, the step is skipped: it only increases
    the state's `step` and `skipped`.

    Args:
      gradients: maps (state, batch) to `Gradients`.
      optimizer: see `optimizer.make_optimizer`.
      schedule: learning rate by step, see `optimizer.make_schedule`.
      state: the state before the step; its buffers may be donated.
      batch: arrays by name, with the rows as first axis.
      skip_norm: largest gradient norm; 0 for no limit.

    Returns:
      The state after the step, and metrics as float32 scalars.
    """
    computed = gradients(state, batch)
    norm = optax.tree.norm(computed.grads)
    accepted = jnp.isfinite(norm)
    if skip_norm:
        accepted &= norm <= skip_norm
    updates, opt_state = optimizer.update(computed.grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    def choose(new, old):
        return jnp.where(accepted, new, old)

    new_state = TrainState(
        step=state.step + 1,
        params=jax.tree.map(choose, params, state.params),
        extra=jax.tree.map(choose, computed.extra, state.extra),
        opt_state=jax.tree.map(choose, opt_state, state.opt_state),
        skipped=state.skipped + ~accepted,
    )
    # Skipped steps do not advance the learning rate schedule.
    rate = schedule(state.step - state.skipped)
    step_metrics = {"grad_norm": norm, "skipped": new_state.skipped, "learning_rate": rate}
    return new_state, computed.metrics | step_metrics


def partition(params: Any, is_trained: Any) -> tuple[Any, Any]:
    """Splits parameters by a tree of booleans.

    Returns:
      (trained, frozen), two trees with the structure of `params`; each has None for the leaves that
      are in the other.
    """
    trained = jax.tree.map(lambda leaf, yes: leaf if yes else None, params, is_trained)
    frozen = jax.tree.map(lambda leaf, yes: None if yes else leaf, params, is_trained)
    return trained, frozen


def merge(trained: Any, frozen: Any) -> Any:
    """The inverse of `partition`; `frozen` may be None if all parameters are trained."""
    if frozen is None:
        return trained
    return jax.tree.map(
        lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda leaf: leaf is None
    )
