"""The interface of every training: what a network's folder gives, and what all of them share.

A training is the parameters at the start (`init`), a loss, a stream of rows, an evaluation, a
report and a network folder to export. `loop` runs it and `export` writes its result; the train
state, the optimizer, checkpoints, metrics and resuming are theirs. See docs/add-a-network.md.
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
from spirit_jax.training.checkpoints import abstract_state
from spirit_jax.training.configs import LoopConfig, RecipeConfig
from spirit_jax.training.optimizer import make_optimizer, make_schedule
from spirit_jax.training.step import Gradients, Metrics, TrainState, train_step

Config = TypeVar("Config", bound=LoopConfig)
SpeechConfig = TypeVar("SpeechConfig", bound=RecipeConfig)


class Recipe(abc.ABC, Generic[Config]):
    """The training of one network, resolved from its run config once.

    Attributes:
      config: of the run.
      skip_norm: see `train_step`.
      compiler_options: of XLA, for the training step.
      flops: floating-point operations of a step over all devices; 0 if not known.
      has_evaluation: whether there are held-out data to evaluate on.
    """

    skip_norm: float = 0.0
    compiler_options: dict[str, str] | None = None
    flops: float = 0.0
    has_evaluation: bool = False

    def __init__(self, config: Config):
        self.config = config

    # What a network gives.

    @property
    @abc.abstractmethod
    def batch_tokens(self) -> int:
        """What a step counts as for the rate: tokens, or frames of speech."""

    @abc.abstractmethod
    def init(self) -> tuple[Any, Any]:
        """Parameters at the start, and the state's `extra` (None for none); traceable by JAX."""

    @abc.abstractmethod
    def loss(self, params: Any, state: TrainState, batch: Row) -> tuple[Metrics, Any]:
        """The loss of a batch; pure and traceable.

        Args:
          params: those to differentiate by.
          state: for `extra` and `step`.
          batch: arrays with a leading axis of rows.

        Returns:
          Scalars by name, "loss" among them, and the next `extra`.
        """

    @abc.abstractmethod
    def make_stream(self, rows: list[int]) -> Iterator[Row]:
        """The endless stream of batches, with `get_state` and `set_state`.

        Args:
          rows: of each batch, those that this process reads.
        """

    def evaluate(self, state: TrainState, mesh: jax.sharding.Mesh) -> dict[str, float]:
        """Metrics on held-out data; called if `has_evaluation`."""
        return {}

    def report(self, state: TrainState, folder: Path) -> None:
        """Writes pictures and sounds of held-out data to a folder; called after `evaluate`.

        Every process calls it, since its programs may run on the devices of all; what the first
        one writes is kept.
        """

    @abc.abstractmethod
    def write(self, state: TrainState, output: Path) -> None:
        """Writes the trained network to a folder that is there, for use without the run."""

    def prepare(self) -> None:
        """Computes what the data need and what takes long; called once, before the first step."""

    # What all share; the language model changes some of it.

    @functools.cached_property
    def schedule(self) -> optax.Schedule:
        """Learning rate by step."""
        return make_schedule(self.config.optimizer, self.config.steps)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """Of the state's `params`."""
        return make_optimizer(self.config.optimizer, self.schedule)

    def gradients(self, state: TrainState, batch: Row) -> Gradients:
        """The gradients of `loss`, with its metrics."""

        def loss(params):
            metrics, extra = self.loss(params, state, batch)
            return metrics["loss"], (metrics, extra)

        of_params, (metrics, extra) = jax.grad(loss, has_aux=True)(state.params)
        return Gradients(of_params, metrics, extra)

    def gradients_of_step(self, number: int) -> Callable[[TrainState, Row], Gradients]:
        """The function that gives the gradients of a step, counted from 1; compiled once each."""
        return self.gradients

    def first_state(self, mesh: jax.sharding.Mesh, places: TrainState) -> TrainState:
        """The state before the first step, its arrays placed as `places` says."""
        return jax.jit(self._create, out_shardings=places)()

    def abstract_state(self, mesh: jax.sharding.Mesh) -> TrainState:
        """Shapes, dtypes and places of the state; whole on every device by default."""
        shapes, everywhere = jax.eval_shape(self._create), sharding.replicated(mesh)
        return abstract_state(shapes, jax.tree.map(lambda _: everywhere, shapes))

    def jit_step(
        self, gradients: Callable[[TrainState, Row], Gradients], places: TrainState
    ) -> Callable[[TrainState, Row], tuple[TrainState, Metrics]]:
        """The compiled training step, which donates the state."""
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
        """The record of the run (see `record`).

        Args:
          with_data: fingerprints of the data too, which must be there then.

        Raises:
          InputError: data or a folder that the config names cannot be read.
        """

    def _create(self) -> TrainState:
        params, extra = self.init()
        return TrainState.create(params, self.optimizer, extra)


class SpeechRecipe(Recipe[SpeechConfig]):
    """The training of a network of the speech tokenizer, on recordings.

    These networks are small beside a language model: parameters are whole on every device of the
    mesh, and batches are split over its `data` and `fsdp` axes.
    """

    def __init__(self, config: SpeechConfig):
        super().__init__(config)
        self.has_evaluation = bool(config.data.held_out)

    def training_items(self) -> list[Item]:
        """The recordings to train on."""
        data = self.config.data
        return draw_items(read_items(data.sources), self.config.max_recordings, data.seed)

    def held_out_items(self) -> list[Item]:
        """The recordings to evaluate on; none if the config names none."""
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
                with contextlib.suppress(InputError):  # not every text is the name of a folder
                    contents[name] = model_folder.fingerprint(model_folder.find_model(value))
        return record.describe(self.config, contents)


def read_start(
    config: RecipeConfig, network: str, load: Callable[[Path], tuple[Any, Any]]
) -> tuple[Any, Any]:
    """The network's sizes and the parameters to start from, None for random ones.

    Args:
      config: `start` names a folder, whose sizes are used; without it those of `network` are.
      network: the name of the network's folder in a set, such as "pitch".
      load: reads that folder: a model with `config`, and its parameters.
    """
    if not config.start:
        return config.network, None
    model, params = load(model_folder.find_network(config.start, network))
    return model.config, params


def add_up(sums: Iterable[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """The sums of several batches, at least one, by name."""
    return functools.reduce(lambda some, others: jax.tree.map(jnp.add, some, others), sums)


def code_usage(counts_v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The share of codes that are used, and their perplexity.

    Args:
      counts_v: how often each code was used.
    """
    shares_v = counts_v / jnp.maximum(counts_v.sum(), 1)
    entropy = -jax.scipy.special.xlogy(shares_v, shares_v).sum()
    return (counts_v > 0).mean(), jnp.exp(entropy)
