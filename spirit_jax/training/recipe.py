"""What the trainings of the speech networks have in common: a recipe each, run by the same loop.

These networks are small beside a language model: parameters are whole on every device of the mesh,
and batches are split over its `data` and `fsdp` axes.
"""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from spirit_jax import checkpoint, folders, sharding
from spirit_jax.data.manifest import Item
from spirit_jax.data.speech import SpeechStream, draw_items, read_items
from spirit_jax.errors import InputError
from spirit_jax.training import hosts, loop, record, run_folder
from spirit_jax.training.checkpoints import abstract_state
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
    allow_changes: bool = False,
) -> Iterator[dict[str, Any]]:
    """Runs a recipe to its last step, yielding each step's metrics; see `lm.train`."""
    with open_run(config, allow_changes) as folder:
        yield from train_in(folder, config, make, devices)


def open_run(
    config: RecipeConfig, allow_changes: bool = False
) -> AbstractContextManager[run_folder.RunFolder]:
    """Opens the folder of a run to train in; see `run_folder.open_run`."""
    return run_folder.open_run(config, lambda: describe(config), allow_changes)


def train_in(
    folder: run_folder.RunFolder,
    config: RecipeConfig,
    make: Callable[[Any], Recipe],
    devices: list[jax.Device] | None = None,
) -> Iterator[dict[str, Any]]:
    """As `train`, in a folder that is open; `config` may ask for fewer steps than the run's."""
    mesh = config.mesh.make(jax.devices() if devices is None else devices)
    with jax.set_mesh(mesh):
        with folder.stop.droppable():
            training = _prepare(config, make(config), mesh, folder)
        yield from loop.run(folder, config, mesh, training)


def describe(config: RecipeConfig, with_data: bool = True) -> dict[str, Any]:
    """The record of a run (see `record`).

    Args:
      config: of the run.
      with_data: a fingerprint of the recordings too, which must be there then.

    Raises:
      InputError: a recording or a folder that the config names cannot be read.
    """
    contents = {}
    if with_data:
        for name in ("sources", "held_out"):
            sources = getattr(config.data, name)
            if sources:
                contents[f"data.{name}"] = record.fingerprint_items(read_items(sources))
    for name, value in record.flatten(config):
        if isinstance(value, str) and value and name not in ("run_dir", "f0.folder", "recipe"):
            with contextlib.suppress(InputError):  # not every text is the name of a folder
                contents[name] = checkpoint.fingerprint(folders.find_model(value))
    return record.describe(config, contents)


def _prepare(
    config: RecipeConfig, recipe: Recipe, mesh: jax.sharding.Mesh, folder: run_folder.RunFolder
) -> loop.Training:
    rows = sharding.local_rows(config.data.batch_rows, mesh)
    stream = recipe.make_stream(rows)
    checkpoints = folder.open_checkpoints()
    state = folder.resume(checkpoints, _abstract(recipe, mesh), stream)
    everywhere = sharding.replicated(mesh)
    if state is None:
        state = jax.jit(recipe.init, out_shardings=everywhere)()

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
    config: RecipeConfig,
    recipe: Recipe,
    devices: list[jax.Device] | None = None,
    allow_changes: bool = False,
) -> Any:
    """The state of a run's newest whole checkpoint; nothing is changed in the run's folder.

    Raises:
      InputError: there is none, or the config is not that of the run.
    """
    mesh = config.mesh.make(jax.devices() if devices is None else devices)
    now = describe(config, with_data=False)
    return run_folder.read_newest(config, now, _abstract(recipe, mesh), allow_changes).state


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
    model, params = load(folders.find_network(config.start, network))
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
