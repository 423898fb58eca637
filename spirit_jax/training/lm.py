"""Training the language model: from a run config to checkpoints and metrics."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from spirit_jax import checkpoint, checksums, folders, sharding
from spirit_jax import config as config_lib
from spirit_jax.data import records
from spirit_jax.data.pipeline import Stream
from spirit_jax.data.samples import SourceConfig
from spirit_jax.errors import InputError
from spirit_jax.models import llama
from spirit_jax.speech_tokenizer import read_unit_hashes
from spirit_jax.text import load_text_tokenizer
from spirit_jax.training import loop, lora, record, run_folder
from spirit_jax.training.checkpoints import abstract_state
from spirit_jax.training.optimizer import make_optimizer, make_schedule
from spirit_jax.training.run_configs import LmRunConfig as RunConfig
from spirit_jax.training.step import (
    Objective,
    TrainState,
    merge,
    partition,
    train_step,
)
from spirit_jax.vocab import Vocab


def train(
    config: RunConfig, devices: list[jax.Device] | None = None, allow_changes: bool = False
) -> Iterator[dict[str, Any]]:
    """Runs to the last step, yielding each step's metrics as plain numbers.

    They are also lines of `RUN/metrics.jsonl`. SIGTERM, Ctrl-C or a notice of preemption saves a
    checkpoint and ends the run.

    Args:
      config: the run.
      devices: to use; all by default.
      allow_changes: resume with settings that make it another run (see `record`).

    Raises:
      InputError: a folder, corpus or checkpoint that cannot be used, a mesh that does not fit, or a
        setting that changed since the run was stopped and must not.
    """
    mesh = config.mesh.make(jax.devices() if devices is None else devices)
    with (
        jax.set_mesh(mesh),
        run_folder.open_run(config, lambda: describe(config), allow_changes) as opened,
    ):
        with opened.stop.droppable():
            training = _prepare(config, mesh, opened)
        yield from loop.run(opened, config, mesh, training)


def describe(config: RunConfig, with_data: bool = True) -> dict[str, Any]:
    """The record of a run (see `record`).

    Args:
      config: of the run.
      with_data: fingerprints of the corpora too, which must be there then.

    Raises:
      InputError: the model folder or a corpus cannot be read.
    """
    model = folders.find_language_model(config.model)
    contents = {
        "model/vocab.json": checksums.of_value(config_lib.read_mapping(model / "vocab.json"))
    }
    if units := read_unit_hashes(model):  # of its networks, the vocoder does not act here
        contents["model/speech_tokenizer"] = checksums.of_value(units)
    for name in ("text_tokenizer", "llama"):
        if (model / name).is_dir():
            contents[f"model/{name}"] = checkpoint.fingerprint(model / name)
    if with_data:
        corpora = {"data.sources": config.data.sources, "eval_sources": config.eval_sources}
        for name, sources in corpora.items():
            for number, source in enumerate(sources):
                contents[f"{name}[{number}].path"] = records.fingerprint(source.path)
    return record.describe(config, contents, make_model(config).config)


def make_model(config: RunConfig) -> llama.Llama:
    """The model of a run, without parameters."""
    sizes = config.sizes
    if sizes is None:
        path = folders.find_language_model(config.model) / "llama" / "config.json"
        sizes = config_lib.read(llama.LlamaConfig, path)
    model = llama.Llama(
        sizes,
        jnp.dtype(config.compute_dtype),
        scan_layers=config.scan_layers,
        remat=config.remat,
        attention=config.attention,
    )
    return lora.add_to(model, config.lora)


def read_vocab(config: RunConfig) -> Vocab:
    """The vocabulary of the model that a run starts from."""
    return config_lib.read(Vocab, folders.find_language_model(config.model) / "vocab.json")


def make_optimizers(config: RunConfig, vocab: Vocab) -> optax.GradientTransformation:
    """The optimiser of a run."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    return optax.chain(optimizer, lora.only_new_rows(vocab)) if config.lora.rank else optimizer


def jit_step(config: RunConfig, objective: Objective, optimizer, places: TrainState):
    """The compiled training step: (state, batch) to (state, metrics)."""
    schedule = make_schedule(config.optimizer, config.steps)
    return jax.jit(
        functools.partial(train_step, objective, optimizer, schedule),
        donate_argnums=0,
        out_shardings=(places, None),
        compiler_options=config.compiler_options or None,
    )


def abstract_train_state(
    config: RunConfig, model: llama.Llama, optimizer, mesh: jax.sharding.Mesh
) -> tuple[TrainState, TrainState]:
    """Shapes and shardings of the state; moments lie where their parameters do."""
    boxed = llama.abstract_params(model, boxed=True)
    shapes, places = nn.unbox(boxed), sharding.param_shardings(boxed, mesh)
    if config.lora.rank:
        is_trained = lora.is_trained(shapes)
        shapes, frozen = partition(shapes, is_trained)
        places, frozen_places = partition(places, is_trained)
        dtype = jnp.dtype(config.compute_dtype)
        frozen = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), frozen)
    else:
        frozen = frozen_places = None
    state = jax.eval_shape(lambda p, f: TrainState.create(p, optimizer, f), shapes, frozen)
    everywhere = sharding.replicated(mesh)
    opt_places = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, place: place,
        state.opt_state,
        places,
        transform_non_params=lambda _: everywhere,
    )
    return state, TrainState(everywhere, places, frozen_places, opt_places, everywhere)


def token_flops(cfg: llama.LlamaConfig, seq_len: int) -> float:
    """Floating-point operations of training on a token: 6 N + 6 L D S.

    N counts the head and not the input embedding; attention counts as its causal half; what is
    computed again is not counted.
    """
    leaves = jax.tree.leaves(llama.abstract_params(llama.Llama(cfg)))
    embedding = 0 if cfg.tie_embeddings else cfg.vocab_size * cfg.hidden_size
    n = sum(leaf.size for leaf in leaves) - embedding
    return 6 * n + 6 * cfg.num_layers * cfg.num_heads * cfg.head_dim * seq_len


def _prepare(
    config: RunConfig, mesh: jax.sharding.Mesh, opened: run_folder.RunFolder
) -> loop.Training:
    """Opens the data, and makes or restores the state."""
    folder = folders.find_language_model(config.model)
    vocab = read_vocab(config)
    tokenizer = load_text_tokenizer(folder / "text_tokenizer", vocab)
    rows = sharding.local_rows(config.data.batch_rows, mesh)
    networks = read_unit_hashes(folder)
    stream = Stream(config.data, tokenizer, vocab, rows, networks)
    model = make_model(config)
    if model.config.vocab_size != vocab.padded_size:
        raise InputError(
            f"The model has {model.config.vocab_size} rows of embeddings, and "
            f"{config.model}/vocab.json says {vocab.padded_size}."
        )
    optimizer = make_optimizers(config, vocab)
    shapes, places = abstract_train_state(config, model, optimizer, mesh)
    checkpoints = opened.open_checkpoints()
    state = opened.resume(checkpoints, abstract_state(shapes, places), stream)
    if state is None:
        state = _first_state(config, folder, model, optimizer, mesh, places)
    objective = Objective(model, vocab, config.step, _names(config.data.sources))
    tokens = config.data.batch_rows * config.data.seq_len
    evaluate = None
    if config.eval_sources:
        evaluate = _make_evaluation(config, mesh, objective, tokenizer, rows, networks)
    return loop.Training(
        state,
        jit_step(config, objective, optimizer, places),
        stream,
        checkpoints,
        config.data.batch_rows,
        rows,
        tokens,
        token_flops(model.config, config.data.seq_len) * tokens,
        evaluate,
    )


def _names(sources: tuple[SourceConfig, ...]) -> tuple[str, ...]:
    """Names of sources for metrics: as given, else their format, numbered where it is not alone.

    "text" and "speech" alone are the metrics of all tokens of a modality.
    """
    names = [source.name or source.format for source in sources]
    names = [f"{name}_alone" if name in ("text", "speech") else name for name in names]
    return tuple(
        name if names.count(name) == 1 else f"{name}{number}" for number, name in enumerate(names)
    )


def _first_state(config, folder, model, optimizer, mesh, places) -> TrainState:
    if config.random_init:

        def create():
            ones = jnp.ones((1, 1), jnp.int32)
            variables = model.init(jax.random.key(config.seed), ones, ones, ones)
            return TrainState.create(nn.unbox(variables["params"]), optimizer)

        return jax.jit(create, out_shardings=places)()
    rank = config.lora.rank
    dtype = jnp.dtype(config.compute_dtype) if rank else jnp.float32
    _, params = llama.load(folder / "llama", mesh, dtype, scan_layers=config.scan_layers)
    frozen = None
    if rank:
        params, frozen = lora.first_params(model, params, config.seed, places)
    create = functools.partial(TrainState.create, optimizer=optimizer)
    made = jax.jit(
        lambda params: create(params), out_shardings=places.replace(frozen=None), donate_argnums=0
    )(params)
    return made.replace(frozen=frozen)


def _make_evaluation(config, mesh, objective, tokenizer, rows, networks):
    """A function of the state: losses on the same held-out batches every time."""
    data = dataclasses.replace(config.data, sources=config.eval_sources)
    objective = dataclasses.replace(objective, sources=_names(config.eval_sources))

    @jax.jit
    def sums_of(state, batch):
        return objective.losses(merge(state.params, state.frozen), batch)

    @functools.cache
    def opened() -> tuple[Stream, dict[str, Any]]:
        stream = Stream(data, tokenizer, objective.vocab, rows, networks)
        return stream, stream.get_state()

    def evaluate(state: TrainState) -> dict[str, float]:
        stream, first = opened()
        stream.set_state(first)
        total = None
        for _ in range(config.eval_batches):
            batch = {
                name: sharding.place_rows(array, rows, data.batch_rows, mesh)
                for name, array in next(stream).items()
            }
            sums = sums_of(state, batch)
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        return {f"eval_{name}": value for name, value in objective.metrics(total).items()}

    return evaluate
