"""The interface of a training: the methods of a recipe, and the code that recipes share.

A recipe defines the initial parameters (`init`), the loss, the stream of batches, the evaluation,
the report and the exported folder. `loop` runs it and `export` writes its result; these two own the
train state, the jitted step, checkpoints, metrics and resuming. See docs/add-a-network.md.
"""

import abc
import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import optax

from spirit_jax import model_folder, sharding
from spirit_jax.data.manifest import Item
from spirit_jax.data.speech import Row, draw_items, read_items
from spirit_jax.errors import InputError
from spirit_jax.training import record
from spirit_jax.training.configs import LoopConfig, RecipeConfig
from spirit_jax.training.optimizer import make_optimizer, make_schedule
from spirit_jax.training.step import Gradients, Metrics, TrainState, train_step

Config = TypeVar("Config", bound=LoopConfig)
SpeechConfig = TypeVar("SpeechConfig", bound=RecipeConfig)


class Recipe(abc.ABC, Generic[Config]):
    """The training of one network. The constructor derives everything else from the run config.

    Attributes:
      config: the run config.
      skip_norm: see `train_step`.
      compiler_options: XLA options for the training step.
      flops: floating-point operations of a step on all devices; 0 if unknown.
      has_evaluation: whether there is held-out data.
      saves_extra: whether checkpoints have the state's `extra`; if not, `read_extra` gives it.
    """

    saves_extra: bool = True
    skip_norm: float = 0.0
    compiler_options: dict[str, str] | None = None
    flops: float = 0.0
    has_evaluation: bool = False

    def __init__(self, config: Config):
        self.config = config

    # Methods that a network defines.

    @property
    @abc.abstractmethod
    def batch_tokens(self) -> int:
        """Tokens, or frames of speech, in a batch; for the metric tokens_per_second."""

    @abc.abstractmethod
    def init(self) -> tuple[Any, Any]:
        """Initial parameters and the state's initial `extra` (or None); must be jittable."""

    @abc.abstractmethod
    def loss(self, params: Any, state: TrainState, batch: Row) -> tuple[Metrics, Any]:
        """The loss of a batch; a pure function that JAX can trace.

        Args:
          params: the parameters that are differentiated.
          state: the train state; only `extra` and `step` may be used.
          batch: arrays by name, with the rows of the batch as first axis.

        Returns:
          Scalar metrics by name, which include "loss", and the next value of `extra`.
        """

    @abc.abstractmethod
    def make_stream(self, rows: list[int]) -> Iterator[Row]:
        """The endless stream of batches; it has `get_state` and `set_state` for resuming.

        Args:
          rows: indices of the rows of each batch that this process reads.
        """

    def evaluate(self, state: TrainState, mesh: jax.sharding.Mesh) -> dict[str, float]:
        """Metrics on held-out data; called if `has_evaluation` is set."""
        return {}

    @property
    def has_report(self) -> bool:
        """Whether `report` writes anything."""
        return type(self).report is not Recipe.report

    def report(self, state: TrainState, folder: Path) -> None:
        """Writes plots and audio of held-out data to an existing folder, after `evaluate`.

        Every process calls it, since its computations may use all devices; the files of the first
        process are kept.
        """

    @abc.abstractmethod
    def write(self, state: TrainState, output: Path) -> None:
        """Writes the trained network to an existing folder."""

    def prepare(self) -> None:
        """Does slow computations on the data; called once before the first step."""

    # Shared methods; a recipe may override them.

    @functools.cached_property
    def schedule(self) -> optax.Schedule:
        """Learning rate by step."""
        return make_schedule(self.config.optimizer, self.config.steps)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer of the state's `params`."""
        return make_optimizer(self.config.optimizer, self.schedule)

    def gradients(self, state: TrainState, batch: Row) -> Gradients:
        """The gradients of `loss`, its metrics and the next `extra`."""

        def loss(params):
            metrics, extra = self.loss(params, state, batch)
            return metrics["loss"], (metrics, extra)

        grads, (metrics, extra) = jax.grad(loss, has_aux=True)(state.params)
        return Gradients(grads, metrics, extra)

    def gradients_of_step(self, number: int) -> Callable[[TrainState, Row], Gradients]:
        """The gradient function of a step, counted from 1; each function is compiled once."""
        return self.gradients

    def first_state(self, mesh: jax.sharding.Mesh, places: TrainState) -> TrainState:
        """The state before the first step; `places` are the shardings of its arrays."""
        return jax.jit(self._creation, out_shardings=places)()

    def read_extra(self, mesh: jax.sharding.Mesh) -> Any:
        """The state's `extra`, which no step changes; called if `saves_extra` is not set."""
        raise NotImplementedError

    def saved_part(self, state: TrainState) -> TrainState:
        """The part of a state, or of its shapes, that checkpoints have."""
        return state if self.saves_extra else state.replace(extra=None)

    def complete(self, state: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
        """The inverse of `saved_part`."""
        return state if self.saves_extra else state.replace(extra=self.read_extra(mesh))

    def abstract_state(self, mesh: jax.sharding.Mesh) -> TrainState:
        """Shapes, dtypes and shardings of the state; replicated on every device by default."""
        shapes, replicated = jax.eval_shape(self._creation), sharding.replicated(mesh)
        return sharding.abstract_arrays(shapes, jax.tree.map(lambda _: replicated, shapes))

    def jit_step(
        self, gradients: Callable[[TrainState, Row], Gradients], places: TrainState
    ) -> Callable[[TrainState, Row], tuple[TrainState, Metrics]]:
        """The jitted training step; its input state is donated.

        Args:
          gradients: see `train_step`.
          places: shardings of the new state.
        """
        step = functools.partial(
            train_step, gradients, self.optimizer, self.schedule, skip_norm=self.skip_norm
        )
        return jax.jit(
            step,
            donate_argnums=0,
            out_shardings=(places, None),
            compiler_options=self.compiler_options or None,
        )

    @abc.abstractmethod
    def describe(self, with_data: bool = True) -> dict[str, Any]:
        """The settings and inputs of the run, to compare when it is resumed (see `record`).

        Args:
          with_data: whether to read the data and include their fingerprints.

        Raises:
          InputError: data or a folder of the config cannot be read.
        """

    @functools.cached_property
    def _creation(self) -> Callable[[], TrainState]:
        """`_create`, jitted: its shapes and its values need one trace."""
        return jax.jit(self._create)

    def _create(self) -> TrainState:
        params, extra = self.init()
        return TrainState.create(params, self.optimizer, extra)


class SpeechRecipe(Recipe[SpeechConfig]):
    """The training of a network of the speech tokenizer on recordings.

    These networks are small: parameters are replicated on all devices, and batches are split over
    the mesh axes `data` and `fsdp`.
    """

    def __init__(self, config: SpeechConfig):
        super().__init__(config)
        self.has_evaluation = bool(config.data.held_out)

    def training_items(self) -> list[Item]:
        """The recordings to train on."""
        data = self.config.data
        return draw_items(read_items(data.sources), self.config.max_recordings, data.seed)

    def held_out_items(self) -> list[Item]:
        """The recordings to evaluate on; empty if the config has no held-out data."""
        data = self.config.data
        if not data.held_out:
            return []
        return draw_items(read_items(data.held_out), self.config.eval_recordings, data.seed)

    def describe(self, with_data: bool = True) -> dict[str, Any]:
        """See `Recipe.describe`."""
        contents = {}
        if with_data:
            for name in ("sources", "held_out"):
                sources = getattr(self.config.data, name)
                if sources:
                    contents[f"data.{name}"] = record.fingerprint_items(read_items(sources))
        for name, value in record.flatten(self.config):
            if isinstance(value, str) and value and name not in ("run_dir", "f0.folder", "recipe"):
                with contextlib.suppress(InputError):  # most strings are not folders
                    contents[name] = model_folder.fingerprint(model_folder.find_model(value))
        return record.describe(self.config, contents)


def read_start(
    config: RecipeConfig, network: str, load: Callable[[Path], tuple[Any, Any]]
) -> tuple[Any, Any]:
    """The network's config and initial parameters.

    Args:
      config: the run config. With `start`, the network of that folder is used.
      network: name of the network's folder in a speech tokenizer, such as "pitch".
      load: reads a network folder; returns a model with `config`, and its parameters.

    Returns:
      The network's config, and parameters or None for random initialisation.

    Raises:
      InputError: the folder of `start` cannot be read.
    """
    if not config.start:
        return config.network, None
    model, params = load(model_folder.find_network(config.start, network))
    return model.config, params


def add_up(sums: Iterable[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """Adds up the dictionaries of several batches, name by name."""
    return functools.reduce(lambda total, batch: jax.tree.map(jnp.add, total, batch), sums)


def code_usage(counts_v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The fraction of codes that are used, and the perplexity of their distribution.

    Args:
      counts_v: float32 (v,), how often each code was used.
    """
    shares_v = counts_v / jnp.maximum(counts_v.sum(), 1)
    entropy = -jax.scipy.special.xlogy(shares_v, shares_v).sum()
    return (counts_v > 0).mean(), jnp.exp(entropy)
