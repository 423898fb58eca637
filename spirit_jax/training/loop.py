"""The training loop of all recipes: reads batches, runs steps, writes metrics and checkpoints.

Nothing here depends on the network: a `Recipe` provides the initial state, the loss and the data.
"""

import contextlib
import dataclasses
import functools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from spirit_jax import devices as device_facts
from spirit_jax import files, sharding
from spirit_jax.devices import peak_flops
from spirit_jax.errors import InputError
from spirit_jax.training import distributed, run_folder
from spirit_jax.training.checkpoints import Checkpoints
from spirit_jax.training.configs import LoopConfig
from spirit_jax.training.metrics import Clock, MetricsLog
from spirit_jax.training.recipe import Recipe
from spirit_jax.training.run_folder import RunFolder, say
from spirit_jax.training.step import Metrics, TrainState
from spirit_jax.training.watchdog import Watchdog

MAX_NOT_FINITE = 3  # consecutive steps with a loss of NaN or infinity that end a run
EVALUATED = "seconds_evaluation"  # only steps that were evaluated have this metric


@dataclasses.dataclass
class Training:
    """A recipe that is ready to run on a mesh.

    Attributes:
      recipe: defines the network, the loss and the data.
      state: the train state on the mesh; None after the loop has donated it to the first step.
      step: maps the number of a step to its compiled function, (state, batch) -> (state, metrics).
      stream: endless iterator over batches: arrays by name, with the rows of this process.
      checkpoints: the checkpoints of the run.
      rows: indices of the rows of a batch that this process reads.
    """

    recipe: Recipe
    state: TrainState | None
    step: Callable[[int], Callable[[TrainState, Any], tuple[TrainState, Metrics]]]
    stream: Any
    checkpoints: Checkpoints
    rows: list[int]


def train(
    recipe: Recipe, devices: list[jax.Device] | None = None, allow_changes: bool = False
) -> Iterator[dict[str, Any]]:
    """Trains to the last step, or resumes from the newest checkpoint of the run.

    SIGTERM, Ctrl-C or a preemption notice saves a checkpoint and ends the run.

    Args:
      recipe: defines the network, the loss and the data.
      devices: the devices of the mesh; all by default.
      allow_changes: whether to accept changed settings that are otherwise refused (see `record`).

    Yields:
      The metrics of each step; they are also written to `RUN/metrics.jsonl`.

    Raises:
      InputError: a folder, corpus, recording or checkpoint cannot be used, the mesh does not fit
        the devices, or a changed setting is refused.
    """
    config = recipe.config
    device_facts.warn_of_idle()
    mesh = config.mesh.make(jax.devices() if devices is None else devices)
    with (
        contextlib.suppress(distributed.Stopped),
        run_folder.open_run(config, recipe.describe, allow_changes) as folder,
    ):
        with folder.stop.droppable():
            recipe.prepare()  # outside the mesh: each process uses only its own devices
        with jax.set_mesh(mesh):
            with folder.stop.droppable():
                training = _start(recipe, mesh, folder)
            yield from _run(folder, mesh, training)


def _start(recipe: Recipe, mesh: jax.sharding.Mesh, folder: RunFolder) -> Training:
    """Opens the data, and initialises or restores the state."""
    rows = sharding.local_rows(recipe.config.data.batch_rows, mesh)
    stream = recipe.make_stream(rows)
    checkpoints = folder.open_checkpoints()
    abstract = recipe.abstract_state(mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    state = folder.resume(checkpoints, recipe.saved_part(abstract), stream)
    if state is None:
        state = recipe.first_state(mesh, shardings)
    else:
        state = recipe.complete(state, mesh)

    @functools.cache
    def compiled(gradients):
        return recipe.jit_step(gradients, shardings)

    def step(number: int):
        return compiled(recipe.gradients_of_step(number))

    return Training(recipe, state, step, stream, checkpoints, rows)


def _run(
    folder: RunFolder, mesh: jax.sharding.Mesh, training: Training
) -> Iterator[dict[str, Any]]:
    """Runs the remaining steps and yields the metrics of each, as Python numbers.

    To keep the devices busy, the next batch is read while they compute, and the metrics of a step
    are fetched only after the next step has been dispatched. Call it inside `jax.set_mesh`.
    """
    config = folder.config
    first = int(training.state.step)
    if first >= config.steps:
        say(
            f"{config.run_dir}: is already trained for {first} steps, and steps is "
            f"{config.steps}, so there is nothing to do. Increase steps to train further, or "
            "export the network with --export MODEL_DIR."
        )
    log = None
    try:
        log = MetricsLog(folder.path, first) if distributed.is_first() else None
        if log is not None:
            training.checkpoints.call_before_save(log.flush)
        _evaluate_again(folder, mesh, training, log, first)
        for metrics in _steps(folder, mesh, training, first):
            if log is not None:
                log.write(metrics)
            yield metrics
    except BaseException:
        # Report the error that ended the run, not errors of closing.
        with contextlib.suppress(InputError):
            training.checkpoints.close()
        raise
    else:
        training.checkpoints.close()
    finally:
        if log is not None:
            log.close()


def _evaluate_again(folder, mesh, training, log, first) -> None:
    """Evaluates the restored state, if the run was stopped before that evaluation had ended."""
    due = _is_evaluation_due(training.recipe, first) and log is not None and bool(log.last)
    if distributed.agree(due and log.last["step"] == first and EVALUATED not in log.last):
        clock = Clock()
        metrics = _evaluate(training.recipe, training.state, mesh, folder.stop)
        if metrics is not None and log is not None:
            clock.lap("evaluation")
            metrics = {name: float(value) for name, value in metrics.items()}
            log.amend(metrics | {EVALUATED: clock.take()[EVALUATED]})


def _is_evaluation_due(recipe: Recipe, number: int) -> bool:
    """Whether an evaluation is due after a step."""
    due = number == recipe.config.steps or _is_multiple(number, recipe.config.eval_every)
    return recipe.has_evaluation and number > 0 and due


def _evaluate(
    recipe: Recipe, state: TrainState, mesh: jax.sharding.Mesh, stop: distributed.Stop
) -> dict[str, float] | None:
    """Evaluates and writes the report; returns the metrics, or None if a signal interrupts it."""
    try:
        with stop.droppable():
            metrics = recipe.evaluate(state, mesh)
            _write_report(recipe, state)
            return {f"eval_{name}": value for name, value in metrics.items()}
    except distributed.Stopped:
        return None


def _write_report(recipe: Recipe, state: TrainState) -> None:
    """Writes the report if the recipe has one; only the first process's files are kept."""
    if not recipe.has_report:
        return
    with tempfile.TemporaryDirectory() as temporary:
        target = files.as_path(recipe.config.run_dir) / "report"
        is_local = distributed.is_first() and not files.is_bucket(target)
        folder = target if is_local else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        recipe.report(state, folder)
        if distributed.is_first() and not is_local:
            files.upload_folder(folder, target)


def _steps(folder, mesh, training, first) -> Iterator[dict[str, Any]]:
    """Runs the steps after `first`, evaluates and saves; yields metrics (see `_run`)."""
    config, recipe = folder.config, training.recipe
    state, stream = training.state, training.stream
    training.state = None  # its buffers are donated to the first step
    clock, saved_at = Clock(), time.monotonic()
    pending, finish = None, _Finish(recipe, mesh, clock)
    with (
        _profiler(config) as profile,
        ThreadPoolExecutor(1) as prefetch,
        Watchdog(config.stall_minutes) as watchdog,
    ):
        next_batch = prefetch.submit(next, stream) if first < config.steps else None
        for number in range(first + 1, config.steps + 1):
            batch = {
                name: sharding.place_rows(array, training.rows, config.data.batch_rows, mesh)
                for name, array in next_batch.result().items()
            }
            clock.lap("input")
            profile(number)
            state, metrics = training.step(number)(state, batch)
            clock.lap("step")
            if pending is not None:
                yield finish(*pending)
            watchdog.step_done()
            pending = number, dict(metrics)
            stopping = folder.stop(number)
            is_due = _is_checkpoint_due(config, number, saved_at)
            if _is_evaluation_due(recipe, number) and not stopping:
                with watchdog.suspended():
                    evaluated = _evaluate(recipe, state, mesh, folder.stop)
                if evaluated is not None:
                    pending[1].update(evaluated)
                    clock.lap("evaluation")
                stopping = folder.stop.asked
            ending = stopping or number == config.steps
            if ending or is_due:
                # A resumed run does not repeat this step, so its metrics are written before the
                # checkpoint.
                yield finish(*pending)
                pending = None
                # The next batch has not been requested yet, so the stream is where this step left
                # it.
                with watchdog.suspended():
                    position = distributed.gather(stream.get_state())
                    metadata = {"stream": position, "record": folder.record}
                    training.checkpoints.save(recipe.saved_part(state), metadata)
                saved_at = time.monotonic()
                clock.lap("checkpoint")
            if stopping and number < config.steps:
                say(f"{config.run_dir}: stopped after step {number}; the same command resumes.")
            if ending:
                break
            next_batch = prefetch.submit(next, stream)


class _Finish:
    """Waits for a step, checks its loss, and adds times and rates to its metrics."""

    def __init__(self, recipe: Recipe, mesh: jax.sharding.Mesh, clock: Clock):
        self._recipe, self._clock = recipe, clock
        self._check_loss = _LossCheck(recipe.config.run_dir)
        self._devices, self._peak = mesh.devices.size, peak_flops(mesh.devices.flat[0])

    def __call__(self, number: int, metrics: dict[str, Any]) -> dict[str, Any]:
        """The metrics of a step, as Python numbers."""
        values = {name: float(value) for name, value in metrics.items()}  # waits for the step
        self._check_loss(number, values)
        self._clock.lap("waiting")
        values = {"step": number} | values | self._clock.take()
        values["tokens_per_second"] = self._recipe.batch_tokens / values["seconds"]
        if self._recipe.flops and self._peak:
            flops = self._recipe.flops / values["seconds"]
            values["mfu"] = flops / self._peak / self._devices
        return values


class _LossCheck:
    """Ends a run when the loss of several consecutive steps is NaN or infinite."""

    def __init__(self, run_dir: str):
        self._run_dir, self._count = run_dir, 0

    def __call__(self, number: int, metrics: dict[str, float]) -> None:
        """Checks the loss of a step; raises `InputError` for the last of `MAX_NOT_FINITE`."""
        self._count = 0 if math.isfinite(metrics["loss"]) else self._count + 1
        # `train_step` skips an update that is not finite, so one bad batch does no damage.
        if self._count >= MAX_NOT_FINITE:
            raise InputError(
                f"{self._run_dir}: the loss of step {number} is {metrics['loss']}; check the data, "
                "or lower the learning rate and resume from the newest checkpoint."
            )


def _is_multiple(number: int, steps: int) -> bool:
    """Whether the number of a step is a multiple of `steps`; never if `steps` is 0."""
    return bool(steps) and number % steps == 0


def _is_checkpoint_due(config: LoopConfig, number: int, saved_at: float) -> bool:
    """Whether a checkpoint is due after a step; the last was saved at the time `saved_at`."""
    minutes = (time.monotonic() - saved_at) / 60
    is_time = bool(config.checkpoint_minutes) and _agree_on_time(
        number, minutes >= config.checkpoint_minutes
    )
    return is_time or _is_multiple(number, config.checkpoint_every)


def _agree_on_time(number: int, is_time: bool) -> bool:
    """Whether it is time for a checkpoint.

    With several processes the first one decides, every ten steps, so that all save the same step.
    """
    if jax.process_count() == 1:
        return is_time
    return number % 10 == 0 and distributed.agree(is_time)


@contextlib.contextmanager
def _profiler(config: LoopConfig) -> Iterator[Callable[[int], None]]:
    """Yields a function that starts and stops the profile; call it before each step."""
    tracing = False

    def profile(number: int) -> None:
        nonlocal tracing
        within = bool(config.profile_at) and 0 <= number - config.profile_at < config.profile_steps
        if within and not tracing:
            jax.profiler.start_trace(str(files.as_path(config.run_dir) / "profile"))
        if tracing and not within:
            jax.profiler.stop_trace()
        tracing = within

    try:
        yield profile
    finally:
        if tracing:
            jax.profiler.stop_trace()
