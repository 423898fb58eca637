"""Checkpoints of a very small training state, for tests that damage them."""

import jax
import jax.numpy as jnp
from flax import struct

from spirit_jax.sharding import abstract_arrays
from spirit_jax.training.checkpoints import Checkpoints

PLACE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@struct.dataclass
class State:
    """A step, and arrays that it determines."""

    step: jax.Array
    params: dict[str, jax.Array]


def make_state(step):
    """The state after a step."""
    params = {"noise": jax.random.normal(jax.random.key(step), (40, 50)), "bias": jnp.ones(3)}
    return jax.device_put(State(jnp.array(step, jnp.int32), params), PLACE)


ABSTRACT = abstract_arrays(make_state(0), jax.tree.map(lambda _: PLACE, make_state(0)))


def write_checkpoints(folder, steps=(2, 4, 6)):
    """Saves the states after some steps."""
    checkpoints = Checkpoints(folder, keep=5)
    for step in steps:
        checkpoints.save(make_state(step), {"stream": {"step": step}})
    checkpoints.close()


def is_as_saved(restored):
    """Whether a restored checkpoint equals the state saved at its step, bit for bit."""
    pairs = jax.tree.map(
        lambda a, b: bool((a == b).all()), restored.state, make_state(restored.step)
    )
    return all(jax.tree.leaves(pairs)) and restored.metadata["stream"] == {"step": restored.step}
