"""Trains the language model: next-token cross-entropy on packed sequences of text and units."""

import dataclasses
import functools
import operator
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from spirit_jax import (
    checkpoint,
    checksums,
    files,
    model_folder,
    network_folder,
    sharding,
    transcription,
)
from spirit_jax import config as config_lib
from spirit_jax.data import shard_list
from spirit_jax.data.pipeline import DataConfig, Stream
from spirit_jax.data.samples import SourceConfig
from spirit_jax.data.speech import Row
from spirit_jax.errors import InputError
from spirit_jax.models import llama, llama_weights
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.text import TextTokenizer, load_text_tokenizer
from spirit_jax.training import record
from spirit_jax.training.lm import lora
from spirit_jax.training.lm.config import LmRunConfig
from spirit_jax.training.lm.loss import LossSums, Objective
from spirit_jax.training.lm.samples import Sampler, make_unroll
from spirit_jax.training.optimizer import make_optimizer
from spirit_jax.training.recipe import Recipe
from spirit_jax.training.step import Gradients, Metrics, TrainState, merge, partition
from spirit_jax.vocab import Vocab


class LmRecipe(Recipe[LmRunConfig]):
    """The training of the language model; with LoRA, `extra` has the frozen parameters.

    Attributes:
      half: whether `write` stores float16 parameters.
      form: in which `write` stores the network; see `network_folder`.
      vocab: the vocabulary of the model.
      model: the network, with adapters if the run uses LoRA.
    """

    def __init__(
        self,
        config: LmRunConfig,
        half: bool = False,
        vocab: Vocab | None = None,
        form: str = network_folder.DEFAULT_FORM,
    ):
        """Reads the model folder's vocabulary and sizes.

        Args:
          config: the run config.
          half, form: see the class.
          vocab: the vocabulary of the model; by default it is read from the folder `config.model`.

        Raises:
          InputError: the model folder cannot be used.
        """
        super().__init__(config)
        self.half, self.form, self.model = half, form, make_model(config)
        self.vocab = vocab or read_vocab(config)
        if self.model.config.vocab_size != self.vocab.padded_size:
            raise InputError(
                f"The network has vocab_size {self.model.config.vocab_size}, but the vocabulary in "
                f"{config.model}/vocab.json needs {self.vocab.padded_size}."
            )
        sources = _names(config.data.sources) or ("data",)  # `tpu.plan` has no sources
        self.objective = Objective(self.model, self.vocab, config.step, sources)
        self.skip_norm = config.step.skip_norm
        self.compiler_options = config.compiler_options
        self.flops = token_flops(self.model.config, config.data.seq_len) * self.batch_tokens
        self.has_evaluation = bool(config.eval_sources or config.samples)
        self.saves_extra = not config.lora.rank  # the frozen parameters are those of the model
        # The stream of held-out batches, and its state before the first batch.
        self._held_out: tuple[Stream, dict[str, Any]] | None = None

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch."""
        return self.config.data.batch_rows * self.config.data.seq_len

    @functools.cached_property
    def folder(self) -> Path:
        """The model folder to start from."""
        return model_folder.find_language_model(self.config.model)

    @functools.cached_property
    def tokenizer(self) -> TextTokenizer:
        """The text tokenizer of the model folder."""
        return load_text_tokenizer(self.folder / "text_tokenizer", self.vocab)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer; with LoRA the rows of text tokens are frozen."""
        optimizer = make_optimizer(self.config.optimizer, self.schedule)
        if self.config.lora.rank:
            optimizer = optax.chain(optimizer, lora.only_new_rows(self.vocab))
        return optimizer

    def init(self) -> tuple[Any, None]:
        """Random parameters; `first_state` reads those of a model folder."""
        ones = jnp.ones((1, 1), jnp.int32)
        variables = self.model.init(jax.random.key(self.config.seed), ones, ones, ones)
        return nn.unbox(variables["params"]), None

    def first_state(self, mesh: jax.sharding.Mesh, places: TrainState) -> TrainState:
        """The state before the first step; parameters of a folder are read shard by shard."""
        if self.config.random_init:
            return super().first_state(mesh, places)
        params, frozen = self._read_params(mesh), None
        if self.config.lora.rank:
            params, frozen = lora.first_params(self.model, params, self.config.seed, places)
        create = jax.jit(
            lambda params: TrainState.create(params, self.optimizer),
            out_shardings=places.replace(extra=None),
            donate_argnums=0,
        )
        return create(params).replace(extra=frozen)

    def _read_params(self, mesh: jax.sharding.Mesh) -> Any:
        """The parameters of the model folder; with LoRA in the dtype of computation."""
        rank, scan_layers = self.config.lora.rank, self.config.scan_layers
        dtype = jnp.dtype(self.config.compute_dtype) if rank else jnp.float32
        return llama_weights.load(self.folder / "llama", mesh, dtype, scan_layers=scan_layers)[1]

    def read_extra(self, mesh: jax.sharding.Mesh) -> Any:
        """See `Recipe.read_extra`: the frozen parameters of a run with LoRA."""
        return lora.frozen_params(self.model, self._read_params(mesh))

    def abstract_state(self, mesh: jax.sharding.Mesh) -> TrainState:
        """Shapes, dtypes and shardings of the state; moments are sharded like their parameters."""
        boxed = llama_weights.abstract_params(self.model, boxed=True)
        shapes, shardings = nn.unbox(boxed), sharding.param_shardings(boxed, mesh)
        frozen = frozen_shardings = None
        if self.config.lora.rank:
            is_trained = lora.is_trained(shapes)
            shapes, frozen = partition(shapes, is_trained)
            shardings, frozen_shardings = partition(shardings, is_trained)
            dtype = jnp.dtype(self.config.compute_dtype)
            frozen = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), frozen)
        state = jax.eval_shape(lambda p, f: TrainState.create(p, self.optimizer, f), shapes, frozen)
        replicated = sharding.replicated(mesh)
        opt_shardings = optax.tree_utils.tree_map_params(
            self.optimizer,
            lambda _, param_sharding: param_sharding,
            state.opt_state,
            shardings,
            transform_non_params=lambda _: replicated,
        )
        return sharding.abstract_arrays(
            state,
            TrainState(replicated, shardings, frozen_shardings, opt_shardings, replicated),
        )

    def loss(self, params: Any, state: TrainState, batch: Row) -> tuple[Metrics, Any]:
        """See `Recipe.loss`: next-token cross-entropy."""
        sums = self.objective.losses(merge(params, state.extra), batch)
        return self.objective.metrics(sums), state.extra

    def gradients(self, state: TrainState, batch: Row) -> Gradients:
        """Gradients of the mean loss over a batch's tokens; see `Objective.gradients`."""
        return self.objective.step_gradients(state, batch)

    def make_stream(self, rows: list[int]) -> Stream:
        """See `Recipe.make_stream`."""
        return self._stream(self.config.data, rows)

    def _stream(self, data: DataConfig, rows: list[int]) -> Stream:
        networks = model_folder.read_unit_hashes(self.folder)
        return Stream(data, self.tokenizer, self.vocab, rows, networks)

    @functools.cached_property
    def _held_out_objective(self) -> Objective:
        return dataclasses.replace(self.objective, sources=_names(self.config.eval_sources))

    @functools.cached_property
    def _held_out_sums(self) -> Any:
        def sums(state: TrainState, batch: Row) -> LossSums:
            return self._held_out_objective.losses(merge(state.params, state.extra), batch)

        return jax.jit(sums)

    def evaluate(self, state: TrainState, mesh: jax.sharding.Mesh) -> dict[str, float]:
        """The metrics on held-out batches, which are the same in every evaluation."""
        if not self.config.eval_sources:
            return {}
        batch_rows = self.config.data.batch_rows
        rows = sharding.local_rows(batch_rows, mesh)
        if self._held_out is None:  # opened only once, since opening checks the whole corpus
            data = dataclasses.replace(
                self.config.data, sources=self.config.eval_sources, workers=0
            )
            stream = self._stream(data, rows)
            self._held_out = stream, stream.get_state()
        stream, start = self._held_out
        stream.set_state(start)
        sums = []
        for _ in range(self.config.eval_batches):
            batch = {
                name: sharding.place_rows(array, rows, batch_rows, mesh)
                for name, array in next(stream).items()
            }
            sums.append(self._held_out_sums(state, batch))
        total = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), sums)
        return self._held_out_objective.metrics(total)

    @functools.cached_property
    def _sampler(self) -> Sampler:
        cfg, config = self.model.config, self.config
        return Sampler(self.folder, self.vocab, cfg, config.samples, config.seed)

    def prepare(self) -> None:
        """See `Recipe.prepare`: reads the prompts of samples, so that mistakes show at once."""
        if self.config.samples:
            _ = self._sampler

    @property
    def has_report(self) -> bool:
        """Whether there are prompts to continue."""
        return bool(self.config.samples)

    def report(self, state: TrainState, folder: Path) -> None:
        """See `Recipe.report`: continues the prompts of `samples`."""
        mesh = state.step.sharding.mesh
        cfg, dtype = self.model.config, self.model.dtype
        model, unroll = make_unroll(cfg, dtype, mesh, self.config.scan_layers)
        params = unroll(plain_params(state, self.config))
        self._sampler.write(model, params, int(state.step), folder / "samples")

    def describe(self, with_data: bool = True) -> dict[str, Any]:
        """See `Recipe.describe`."""
        vocab = config_lib.read_mapping(self.folder / "vocab.json")
        contents = {"model/vocab.json": checksums.of_value(vocab)}
        # Of the speech tokenizer only the units matter: training does not use its vocoder.
        if units := model_folder.read_unit_hashes(self.folder):
            contents["model/speech_tokenizer"] = checksums.of_value(units)
        for name in ("text_tokenizer", "llama"):
            if (self.folder / name).is_dir():
                contents[f"model/{name}"] = model_folder.fingerprint(self.folder / name)
        if not self.saves_extra and "model/llama" in contents:  # the checkpoints need this model
            contents["model/llama (frozen)"] = contents.pop("model/llama")
        if with_data:
            data, held_out = self.config.data.sources, self.config.eval_sources
            for name, sources in (("data.sources", data), ("eval_sources", held_out)):
                for number, source in enumerate(sources):
                    contents[f"{name}[{number}].path"] = shard_list.fingerprint(source.path)
        return record.describe(self.config, contents, self.model.config)

    def write(self, state: TrainState, output: Path) -> None:
        """Writes a model folder: the trained network and the other files of `config.model`."""
        name = model_folder.SPEECH_TOKENIZER
        not_copied = shutil.ignore_patterns("llama", name, transcription.CONFIG_NAME)
        files.copy_tree(self.folder, output, ignore=not_copied, dirs_exist_ok=True)
        transcription.copy_config(self.folder, output)
        if (self.folder / name).is_dir():
            model_folder.copy_speech_tokenizer(self.folder / name, output / name)
        parts = _by_layer(plain_params(state, self.config), self.model.config.num_layers)
        if self.half:
            parts = (jax.tree.map(checkpoint.halve, part) for part in parts)
        sizes = _with_length(self.model.config, self.config)
        checkpoint.save_network(output / "llama", sizes, parts, self.form)


def make_model(config: LmRunConfig) -> llama.Llama:
    """The network of a run, without parameters."""
    sizes = config.sizes
    if sizes is None:
        path = model_folder.find_language_model(config.model) / "llama" / "config.json"
        sizes = config_lib.read(LlamaConfig, path)
    sizes.check_float(config.model)
    model = llama.Llama(
        sizes,
        jnp.dtype(config.compute_dtype),
        scan_layers=config.scan_layers,
        remat=config.remat,
        attention=config.attention,
    )
    return lora.add_to(model, config.lora)


def read_vocab(config: LmRunConfig) -> Vocab:
    """The vocabulary of the folder `config.model`."""
    return config_lib.read(Vocab, model_folder.find_language_model(config.model) / "vocab.json")


def token_flops(cfg: LlamaConfig, seq_len: int) -> float:
    """Floating-point operations of training per token: 6 N + 6 L D S (arXiv 2001.08361).

    N is the number of parameters with the head and without the input embedding, L the number of
    layers, D the width of all heads together and S the sequence length. Only the causal half of
    attention is counted; recomputation (remat) is not.
    """
    leaves = jax.tree.leaves(llama_weights.abstract_params(llama.Llama(cfg)))
    embedding = 0 if cfg.tie_embeddings else cfg.vocab_size * cfg.hidden_size
    n = sum(leaf.size for leaf in leaves) - embedding
    return 6 * n + 6 * cfg.num_layers * cfg.num_heads * cfg.head_dim * seq_len


def plain_params(state: TrainState, config: LmRunConfig) -> Any:
    """The parameters of a model without adapters: they are merged into the matrices they adapt."""
    params = merge(state.params, state.extra)
    return lora.merge_products(params, config.lora) if config.lora.rank else params


def _names(sources: tuple[SourceConfig, ...]) -> tuple[str, ...]:
    """Names of data sources for metrics: the given name, or the format; duplicates are numbered.

    "text" and "speech" are renamed, since they name the metrics of all tokens of a modality.
    """
    names = [source.name or source.format for source in sources]
    names = [f"{name}_alone" if name in ("text", "speech") else name for name in names]
    return tuple(
        name if names.count(name) == 1 else f"{name}{number}" for number, name in enumerate(names)
    )


def _with_length(sizes: LlamaConfig, config: LmRunConfig) -> LlamaConfig:
    """Sets `trained_positions`; it stays 0 (unknown) if the initial model does not know it."""
    if not config.random_init and not sizes.trained_positions:
        return sizes
    start = 0 if config.random_init else sizes.trained_positions
    return dataclasses.replace(sizes, trained_positions=max(start, config.data.seq_len))


def _by_layer(params: Any, num_layers: int) -> Iterator[Any]:
    """The parameters as numpy arrays, one layer at a time; stacked layers are split."""
    yield jax.tree.map(np.asarray, {name: params[name] for name in params if name != "layers"})
    layers = params["layers"]
    for number in range(num_layers):
        layer = layers.get(str(number))
        if layer is None:
            layer = jax.tree.map(operator.itemgetter(number), layers)
        yield {"layers": {str(number): jax.tree.map(np.asarray, layer)}}
