"""The loop of every training: batches in, metrics and checkpoints out, stopped and gone on with.

It knows no network. A recipe gives it the state, the compiled step and the stream.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from spirit_jax import sharding
from spirit_jax.errors import InputError
from spirit_jax.training import hosts
from spirit_jax.training.checkpoints import Checkpoints
from spirit_jax.training.configs import LoopConfig
from spirit_jax.training.metrics import Clock, MetricsLog, peak_flops
from spirit_jax.training.run_folder import RunFolder, say

MAX_NOT_FINITE = 3  # steps in a row without a finite loss, where such steps change nothing
EVALUATED = "seconds_evaluation"  # a metric of each step after which there was an evaluation


@dataclasses.dataclass
class Training:
    """What a recipe gives to the loop.

    Attributes:
      state: with a `step`, on the mesh; given away to the loop.
      step: compiled, (state, batch) to (state, metrics), donating the state.
      stream: an endless iterator of dicts of arrays, this process's rows, with `get_state`.
      checkpoints: where the state goes.
      batch_rows: rows of a batch, over all processes.
      rows: those of this process.
      batch_tokens: what a batch counts as for the rate (tokens, samples, ...).
      flops: floating-point operations of a step over all devices; 0 if not known.
      evaluate: of a state, metrics by name.
    """

    state: Any
    step: Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]
    stream: Any
    checkpoints: Checkpoints
    batch_rows: int
    rows: list[int]
    batch_tokens: int
    flops: float = 0.0
    evaluate: Callable[[Any], dict[str, float]] | None = None


def run(
    folder: RunFolder, config: LoopConfig, mesh: jax.sharding.Mesh, training: Training
) -> Iterator[dict[str, Any]]:
    """Runs to the last step, yielding each step's metrics as plain numbers.

    The metrics of a step are fetched after the next one was sent, and its batch is made while the
    devices compute, so that they do not wait. Everything here is under `jax.set_mesh`.

    Args:
      folder: of the run.
      config: of the run, or of a part of it with fewer steps.
      mesh: of devices.
      training: what a recipe prepared.
    """
    first = int(training.state.step)
    if first >= folder.config.steps:
        say(
            f"{config.run_dir}: has done {first} steps already, and steps is "
            f"{folder.config.steps}: nothing is left to do. Raise steps to train on, or write the "
            "result with --export MODEL_DIR."
        )
    log = None
    try:
        log = MetricsLog(folder.path, first) if hosts.is_first() else None
        _evaluate_again(config, training, folder, log, first)
        for metrics in _steps(config, mesh, training, folder, first):
            if log is not None:
                log.write(metrics)
            yield metrics
    except BaseException:
        # What ended the run is told, and not what followed from it.
        with contextlib.suppress(InputError):
            training.checkpoints.close()
        raise
    else:
        training.checkpoints.close()
    finally:
        if log is not None:
            log.close()


def _evaluate_again(config, training, folder, log, first) -> None:
    """Evaluates the first state if that was due, and a signal came before it."""
    due = _is_due(config, training, first) and log is not None and bool(log.last)
    if hosts.agree(due and log.last["step"] == first and EVALUATED not in log.last):
        clock = Clock()
        metrics = _evaluate(training, training.state, folder.stop)
        if metrics is not None and log is not None:
            clock.lap("evaluation")
            metrics = {name: float(value) for name, value in metrics.items()}
            log.amend(metrics | {EVALUATED: clock.take()[EVALUATED]})


def _is_due(config, training, number: int) -> bool:
    """Whether an evaluation is due after a step."""
    due = number == config.steps or _every(config.eval_every, number)
    return training.evaluate is not None and number > 0 and due


def _evaluate(training: Training, state: Any, stop: hosts.Stop) -> dict[str, float] | None:
    """The metrics of an evaluation, None if a signal ended it."""
    try:
        with stop.droppable():
            return training.evaluate(state)
    except hosts.Stopped:
        return None


def _steps(config, mesh, training, folder, first) -> Iterator[dict[str, Any]]:
    state, stream = training.state, training.stream
    training.state = None  # each step gives the last one's memory away
    devices = mesh.devices.size
    peak = peak_flops(mesh.devices.flat[0])
    clock, saved_at = Clock(), time.monotonic()
    pending, check_loss = None, _LossCheck(config.run_dir)

    def finish(number: int, metrics: dict[str, Any]) -> dict[str, Any]:
        plain = {name: float(value) for name, value in metrics.items()}
        check_loss(number, plain)
        clock.lap("waiting")
        line = {"step": number} | plain | clock.take()
        line["tokens_per_second"] = training.batch_tokens / line["seconds"]
        if training.flops and peak:
            line["mfu"] = training.flops / line["seconds"] / peak / devices
        return line

    with _profiler(config) as profile, ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(next, stream) if first < config.steps else None
        for number in range(first + 1, config.steps + 1):
            batch = {
                name: sharding.place_rows(array, training.rows, training.batch_rows, mesh)
                for name, array in coming.result().items()
            }
            clock.lap("input")
            profile(number)
            state, metrics = training.step(state, batch)
            clock.lap("step")
            if pending is not None:
                yield finish(*pending)
            pending = number, dict(metrics)
            last = number == config.steps
            ending = folder.stop(number)
            due = config.checkpoint_minutes and _agreed_minutes(
                number, (time.monotonic() - saved_at) / 60 >= config.checkpoint_minutes
            )
            if _is_due(config, training, number) and not ending:
                evaluated = _evaluate(training, state, folder.stop)
                if evaluated is not None:
                    pending[1].update(evaluated)
                    clock.lap("evaluation")
                ending = folder.stop.asked
            stopped = ending and not last
            ending = ending or last
            if ending or due or _every(config.checkpoint_every, number):
                # A step that will not be done again has its metrics on disk.
                yield finish(*pending)
                pending = None
                # The stream stands behind this step: the next batch is not yet asked for.
                place = hosts.gather(stream.get_state())
                training.checkpoints.save(state, {"stream": place, "record": folder.record})
                saved_at = time.monotonic()
                clock.lap("checkpoint")
            if stopped:
                say(f"{config.run_dir}: stopped after step {number}; the same command resumes.")
            if ending:
                break
            coming = ahead.submit(next, stream)


class _LossCheck:
    """Ends a run whose loss is not finite, before such a step is saved."""

    def __init__(self, run_dir: str):
        self._run_dir, self._count = run_dir, 0

    def __call__(self, number: int, metrics: dict[str, float]) -> None:
        """Takes the metrics of a step; raises `InputError` where training makes no sense."""
        self._count = 0 if math.isfinite(metrics["loss"]) else self._count + 1
        # Where a step says what was skipped, it has changed nothing: another batch may be fine.
        if self._count >= (MAX_NOT_FINITE if "skipped" in metrics else 1):
            raise InputError(
                f"{self._run_dir}: the loss of step {number} is {metrics['loss']}; check the data, "
                "or lower the learning rate and resume from the newest checkpoint."
            )


def _every(steps: int, number: int) -> bool:
    return bool(steps) and number % steps == 0


def _agreed_minutes(number: int, due: bool) -> bool:
    """Whether a checkpoint is due, by the first process's clock, every ten steps."""
    if jax.process_count() == 1:
        return due
    return number % 10 == 0 and hosts.agree(due)


@contextlib.contextmanager
def _profiler(config: LoopConfig) -> Iterator[Callable[[int], None]]:
    """Gives what is called before each step; those to be profiled that run here are."""
    tracing = False

    def profile(number: int) -> None:
        nonlocal tracing
        within = bool(config.profile_at) and 0 <= number - config.profile_at < config.profile_steps
        if within and not tracing:
            jax.profiler.start_trace(str(Path(config.run_dir) / "profile"))
        if tracing and not within:
            jax.profiler.stop_trace()
        tracing = within

    try:
        yield profile
    finally:
        if tracing:
            jax.profiler.stop_trace()
