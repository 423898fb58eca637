"""What the trainings of the speech networks have in common: a recipe each, run by the same loop.

These networks are small beside a language model: parameters are whole on every device of the mesh,
and batches are split over its `data` and `fsdp` axes.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from spirit_jax import checkpoint, sharding
from spirit_jax.data.manifest import Item
from spirit_jax.data.speech import SpeechStream, draw_items, read_items
from spirit_jax.errors import InputError
from spirit_jax.training import hosts, loop
from spirit_jax.training.checkpoints import Checkpoints, abstract_state
from spirit_jax.training.configs import RecipeConfig


@dataclasses.dataclass
class Recipe:
    """What a recipe gives to `train`.

    Attributes:
      init: of nothing, the first state: a pytree with `step`.
      step: of (state, batch), the next state and metrics as scalars; pure, to be jitted. A batch
        has a leading axis of rows everywhere.
      make_stream: of this process's rows, the stream.
      batch_tokens: what a step counts as for the rate (frames, as a rule).
      evaluate: of the state, metrics by name; None for none.
      report: of the state and a folder, writes pictures and sounds to judge by; None for none. It
        is called after each evaluation by every process, since its programs may run on the devices
        of all; the first one's is kept.
    """

    init: Callable[[], Any]
    step: Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]
    make_stream: Callable[[list[int]], SpeechStream]
    batch_tokens: int
    evaluate: Callable[[Any], dict[str, float]] | None = None
    report: Callable[[Any, Path], None] | None = None


def train(
    config: RecipeConfig,
    make: Callable[[Any], Recipe],
    devices: list[jax.Device] | None = None,
    stop: hosts.Stop | None = None,
) -> Iterator[dict[str, Any]]:
    """Runs a recipe to its last step, yielding each step's metrics; see `lm.train`.

    SIGTERM ends it, or `stop` if there is one.
    """
    mesh = config.mesh.make(jax.devices() if devices is None else devices)
    watch = nullcontext(stop) if stop else hosts.watch_sigterm()
    with jax.set_mesh(mesh), watch as stop:
        yield from loop.run(config, mesh, _prepare(config, make(config), mesh), stop)


def _prepare(config: RecipeConfig, recipe: Recipe, mesh: jax.sharding.Mesh) -> loop.Training:
    rows = sharding.local_rows(config.data.batch_rows, mesh)
    stream = recipe.make_stream(rows)
    checkpoints = Checkpoints(Path(config.run_dir) / "checkpoints", config.keep)
    restored = checkpoints.restore(_abstract(recipe, mesh))
    everywhere = sharding.replicated(mesh)
    if restored is None:
        state = jax.jit(recipe.init, out_shardings=everywhere)()
    else:
        state, stream_state = restored
        stream.set_state(stream_state)

    def evaluate(state: Any) -> dict[str, float]:
        metrics = recipe.evaluate(state) if recipe.evaluate else {}
        if recipe.report:
            with tempfile.TemporaryDirectory() as elsewhere:
                folder = Path(config.run_dir) / "report" if hosts.is_first() else Path(elsewhere)
                folder.mkdir(parents=True, exist_ok=True)
                recipe.report(state, folder)
        return {f"eval_{name}": value for name, value in metrics.items()}

    return loop.Training(
        state,
        jax.jit(recipe.step, donate_argnums=0, out_shardings=(everywhere, None)),
        stream,
        checkpoints,
        config.data.batch_rows,
        rows,
        recipe.batch_tokens,
        evaluate=evaluate if recipe.evaluate or recipe.report else None,
    )


def newest_state(
    config: RecipeConfig, recipe: Recipe, devices: list[jax.Device] | None = None
) -> Any:
    """The state of a run's newest whole checkpoint.

    Raises:
      InputError: there is none.
    """
    mesh = config.mesh.make(jax.devices() if devices is None else devices)
    folder = Path(config.run_dir) / "checkpoints"
    checkpoints = Checkpoints(folder, config.keep)
    restored = checkpoints.restore(_abstract(recipe, mesh))
    checkpoints.close()
    if restored is None:
        raise InputError(f"{folder}: has no checkpoint yet.")
    return restored[0]


def read_start(
    config: Any, network: str, load: Callable[[Path], tuple[Any, Any]]
) -> tuple[Any, Any]:
    """Sizes and first parameters, None for random ones.

    Args:
      config: says `network`, and `start`, whose sizes go before.
      network: the name of the network's folder.
      load: reads that, as a model with `config` and its parameters.
    """
    if not config.start:
        return config.network, None
    model, params = load(checkpoint.find_network(config.start, network))
    return model.config, params


def add_up(sums: Iterable[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """The sums of several batches, at least one, by name."""
    return functools.reduce(lambda some, others: jax.tree.map(jnp.add, some, others), sums)


def training_items(config: RecipeConfig) -> list[Item]:
    """The recordings that a run learns from."""
    return draw_items(read_items(config.data.sources), config.max_recordings, config.data.seed)


def held_out_items(config: RecipeConfig) -> list[Item]:
    """The recordings that a run is judged by."""
    return draw_items(read_items(config.data.held_out), config.eval_recordings, config.data.seed)


def _abstract(recipe: Recipe, mesh: jax.sharding.Mesh) -> Any:
    shapes = jax.eval_shape(recipe.init)
    everywhere = sharding.replicated(mesh)
    return abstract_state(shapes, jax.tree.map(lambda _: everywhere, shapes))
