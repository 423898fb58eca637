"""AdamW with warm-up, a learning rate schedule and clipping."""

from collections.abc import Callable

import jax
import optax

from spirit_jax.training.configs import OptimizerConfig

VECTORS = ("scale", "bias", "mask")  # names of parameters


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step, for a run of `steps`."""
    peak, warmup = config.learning_rate, config.warmup_steps
    after = max(steps - warmup, 1)
    falls = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, peak * config.final_share, after),
        "cosine": lambda: optax.cosine_decay_schedule(peak, after, config.final_share),
    }
    fall = falls[config.schedule]()
    if not warmup:
        return fall
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), fall], [warmup])


def decay_by_epoch(
    schedule: optax.Schedule, decay: float, epoch_steps: Callable[[], int]
) -> optax.Schedule:
    """A schedule that is multiplied by `decay` after every epoch as well.

    Args:
      schedule: learning rate by step.
      decay: above 0 and at most 1.
      epoch_steps: gives the steps of an epoch; called when the first update is traced, since the
        recordings need not be there before.
    """

    def decayed(step: jax.Array) -> jax.Array:
        return schedule(step) * optax.exponential_decay(1, epoch_steps(), decay, staircase=True)(
            step
        )

    return decayed


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) after clipping by the global norm.

    Args:
      config: decay rates of moments, weight decay (vectors have none), and the largest norm.
      schedule: learning rate by step.
    """
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []

    def decays(params):
        # A stacked vector has a second axis, so the name says what is a vector, not the shape.
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: path[-1].key not in VECTORS, params
        )

    adamw = optax.adamw(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decays,
    )
    return optax.chain(*clip, adamw)
