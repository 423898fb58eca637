"""Training the language model: from a run config to checkpoints and metrics."""

import contextlib
import dataclasses
import functools
import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from spirit_jax import config as config_lib
from spirit_jax import sharding
from spirit_jax.data.pipeline import DataConfig, Stream
from spirit_jax.errors import InputError
from spirit_jax.models import llama
from spirit_jax.text import load_text_tokenizer
from spirit_jax.training.checkpoints import Checkpoints, abstract_state
from spirit_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from spirit_jax.training.step import StepConfig, TrainState, train_step
from spirit_jax.vocab import Vocab


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; one may be -1, for as many as are left."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1

    def make(self, devices: list[jax.Device]) -> jax.sharding.Mesh:
        """The mesh; raises `InputError` where the sizes do not make up the devices."""
        sizes = dict(vars(self))
        known = math.prod(size for size in sizes.values() if size > 0)
        free = [name for name, size in sizes.items() if size == -1]
        if len(free) == 1 and len(devices) % known == 0:
            sizes[free[0]] = len(devices) // known
        if min(sizes.values()) < 1:
            raise InputError(f"A mesh of {sizes} does not divide {len(devices)} devices.")
        return sharding.make_mesh(**sizes, devices=devices)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A training run.

    Attributes:
      run_dir: where checkpoints and metrics go; a run that was stopped goes on from there.
      model: the model folder to start from; its vocabulary and tokenizer are used.
      sizes: of a model that starts from random parameters; those of `model` by default.
      random_init: start from random parameters, with the vocabulary and tokenizer of `model`.
      steps: updates in all.
      compute_dtype: "float32" or "bfloat16"; master weights are float32.
      scan_layers, remat, attention: see `Llama`.
      compiler_options: of XLA, for the training step, by name.
      topology: of the TPU slice that this is for, such as "v5e:16x16"; for `tpu/plan.py`.
      checkpoint_every, keep: steps between checkpoints, and how many are kept.
      seed: of random parameters.
    """

    run_dir: str
    model: str
    sizes: llama.LlamaConfig | None = None
    random_init: bool = False
    steps: int = 100
    compute_dtype: str = "float32"
    scan_layers: bool = True
    remat: str = "none"
    attention: str = "auto"
    compiler_options: dict[str, str] = dataclasses.field(default_factory=dict)
    topology: str = ""
    checkpoint_every: int = 100
    keep: int = 3
    seed: int = 0
    mesh: MeshConfig = MeshConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    step: StepConfig = StepConfig()

    def __post_init__(self):
        if self.compute_dtype not in ("float32", "bfloat16"):
            raise InputError(
                f"compute_dtype is '{self.compute_dtype}', expected float32 or bfloat16."
            )
        if min(self.steps, self.checkpoint_every, self.keep) < 1:
            raise InputError("steps, checkpoint_every and keep must be at least 1.")
        if self.sizes is not None and not self.random_init:
            raise InputError("sizes are those of a random start: set random_init too.")


def train(config: RunConfig, devices: list[jax.Device] | None = None) -> Iterator[dict[str, Any]]:
    """Runs to the last step, yielding each step's metrics as plain numbers.

    The metrics of a step are fetched after the next one was sent, so that devices do not wait. They
    are also lines of `RUN/metrics.jsonl`. SIGTERM saves a checkpoint and ends the run.

    Args:
      config: the run.
      devices: to use; all by default.

    Raises:
      InputError: a folder, corpus or checkpoint that cannot be used, or a mesh that does not fit.
    """
    run_dir, folder = Path(config.run_dir), Path(config.model)
    mesh = config.mesh.make(jax.devices() if devices is None else devices)
    vocab = config_lib.read(Vocab, folder / "vocab.json")
    tokenizer = load_text_tokenizer(folder / "text_tokenizer", vocab)
    stream = Stream(config.data, tokenizer, vocab)
    optimizer = make_optimizer(config.optimizer, config.steps)
    rate = make_schedule(config.optimizer, config.steps)
    with jax.set_mesh(mesh), _sigterm() as stopping:
        model = make_model(config)
        shapes, shardings = abstract_train_state(model, optimizer, mesh)
        checkpoints = Checkpoints(run_dir / "checkpoints", config.keep)
        restored = checkpoints.restore(abstract_state(shapes, shardings))
        if restored is None:
            state = _first_state(config, folder, model, optimizer, mesh, shardings)
        else:
            state, stream_state = restored
            stream.set_state(stream_state)
        step = jit_step(config, model, optimizer, vocab, shardings)
        first = int(state.step)
        log = _open_log(run_dir / "metrics.jsonl", first)
        pending = None
        try:
            for number in range(first, config.steps):
                batch = {k: sharding.place_batch(v, mesh) for k, v in next(stream).items()}
                state, metrics = step(state, batch)
                if pending is not None:
                    yield _write(log, *pending)
                pending = number + 1, metrics | {"learning_rate": rate(number)}
                if stopping or (number + 1) % config.checkpoint_every == 0:
                    checkpoints.save(state, stream.get_state())
                if stopping:
                    break
            if pending is not None:
                checkpoints.save(state, stream.get_state())
                yield _write(log, *pending)
        finally:
            checkpoints.close()
            log.close()


def make_model(config: RunConfig) -> llama.Llama:
    """The model of a run, without parameters."""
    path = Path(config.model) / "llama" / "config.json"
    return llama.Llama(
        config.sizes or config_lib.read(llama.LlamaConfig, path),
        jnp.dtype(config.compute_dtype),
        scan_layers=config.scan_layers,
        remat=config.remat,
        attention=config.attention,
    )


def jit_step(config: RunConfig, model: llama.Llama, optimizer, vocab: Vocab, shardings: TrainState):
    """The compiled training step: (state, batch) to (state, metrics)."""
    step = functools.partial(train_step, model, optimizer, vocab, config.step)
    return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(shardings, None),
        compiler_options=config.compiler_options or None,
    )


def abstract_train_state(
    model: llama.Llama, optimizer, mesh: jax.sharding.Mesh
) -> tuple[TrainState, TrainState]:
    """Shapes and shardings of the state; moments lie where their parameters do."""
    boxed = llama.abstract_params(model, boxed=True)
    places = sharding.param_shardings(boxed, mesh)
    shapes = jax.eval_shape(lambda p: TrainState.create(p, optimizer), nn.unbox(boxed))
    everywhere = sharding.replicated(mesh)
    opt_places = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, place: place,
        shapes.opt_state,
        places,
        transform_non_params=lambda _: everywhere,
    )
    return shapes, TrainState(everywhere, places, opt_places, everywhere)


def _first_state(config, folder, model, optimizer, mesh, shardings) -> TrainState:
    if config.random_init:

        def create():
            ones = jnp.ones((1, 1), jnp.int32)
            variables = model.init(jax.random.key(config.seed), ones, ones, ones)
            return TrainState.create(nn.unbox(variables["params"]), optimizer)

        return jax.jit(create, out_shardings=shardings)()
    _, params = llama.load(folder / "llama", mesh, jnp.float32, scan_layers=config.scan_layers)
    create = functools.partial(TrainState.create, optimizer=optimizer)
    return jax.jit(create, out_shardings=shardings, donate_argnums=0)(params)


def _open_log(path: Path, first: int):
    """The metrics file, without lines of steps that will be done again."""
    lines = path.read_text().splitlines() if path.is_file() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= first]
    path.write_text("".join(line + "\n" for line in kept))
    return path.open("a")


def _write(log, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
    line = {"step": step} | {name: float(value) for name, value in metrics.items()}
    log.write(json.dumps(line) + "\n")
    log.flush()
    return line


@contextlib.contextmanager
def _sigterm() -> Iterator[list[int]]:
    """A list that is not empty once SIGTERM came."""
    came: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    except ValueError:  # not the main thread, which alone may listen
        yield came
        return
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)
