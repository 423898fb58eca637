"""AdamW with warm-up, a schedule and clipping."""

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


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimiser for a run of `steps`; clipping is in it."""
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []

    def decays(params):
        # A stacked vector has a second axis, so the name tells, not the shape.
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: path[-1].key not in VECTORS, params
        )

    adamw = optax.adamw(
        make_schedule(config, steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decays,
    )
    return optax.chain(*clip, adamw)


def with_epoch_decay(
    optimizer: optax.GradientTransformation, decay: float, epoch_steps: Callable[[], int]
) -> optax.GradientTransformation:
    """The same with updates multiplied by `decay` after every epoch.

    The update of AdamW is in proportion to its learning rate, so that is what decays.

    Args:
      optimizer: whose updates.
      decay: above 0 and at most 1.
      epoch_steps: how many steps an epoch has; asked when the first update is traced.
    """

    def share(step: jax.Array) -> jax.Array:
        return decay ** (step // epoch_steps())

    return optax.chain(optimizer, optax.scale_by_schedule(share))
