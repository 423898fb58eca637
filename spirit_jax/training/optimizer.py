"""AdamW with gradient clipping, warm-up and a learning rate schedule."""

from collections.abc import Callable

import jax
import optax

from spirit_jax.training.configs import OptimizerConfig

VECTORS = ("scale", "bias", "mask")  # names of parameters without weight decay


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step, for a run of `steps`."""
    peak, warmup = config.learning_rate, config.warmup_steps
    decay_steps = max(steps - warmup, 1)
    schedules = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, peak * config.final_share, decay_steps),
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay_steps, config.final_share),
    }
    schedule = schedules[config.schedule]()
    if not warmup:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), schedule], [warmup])


def decay_by_epoch(
    schedule: optax.Schedule, decay: float, epoch_steps: Callable[[], int]
) -> optax.Schedule:
    """Multiplies a schedule by `decay` after every epoch.

    Args:
      schedule: learning rate by step.
      decay: above 0 and at most 1.
      epoch_steps: returns the steps of an epoch; called when the step is traced, since the
        recordings may not be read before.

    Returns:
      The learning rate by step.
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
      config: settings of AdamW and the largest gradient norm; vectors have no weight decay.
      schedule: learning rate by step.
    """
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []

    def decays(params):
        # By name: stacked over layers, a vector has two axes like a matrix.
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
