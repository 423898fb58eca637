"""`spirit-jax train`: trains or exports a network, from a run config."""

import collections
import shlex
import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from spirit_jax import files, model_folder, network_folder, synthetic
from spirit_jax.cli import checks, processes
from spirit_jax.cli.options import Distributed, PeerTimeout
from spirit_jax.errors import InputError
from spirit_jax.training import find_recipe, read_run_config


def train(
    run: Annotated[Path, typer.Option("--config", help="YAML run config; see docs/train.md")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as steps=200")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Export the newest checkpoint to this folder")
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="With --export: store a language model as float16")
    ] = False,
    form: Annotated[
        str, typer.Option("--format", help="With --export, of a language model: or orbax")
    ] = network_folder.DEFAULT_FORM,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Resume although the settings have changed")
    ] = False,
    distributed: Distributed = False,
    peer_timeout: PeerTimeout = processes.PEER_TIMEOUT,
) -> None:
    """Train a network; an interrupted run resumes from its newest checkpoint.

    The `recipe` of the config names the network: lm, the language model, on prepared corpora (the
    default), or a network of the speech tokenizer, on recordings: hubert, quantizer, pitch, style
    or vocoder.

    Prints metrics every few seconds; all are in RUN_DIR/metrics.jsonl, and for TensorBoard in
    RUN_DIR/tensorboard. SIGTERM and Ctrl-C save a checkpoint and end the run. A run whose seed,
    corpus or network has changed only resumes with --allow-changes.

    In a run of several processes each runs this command, with --distributed or with
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """
    # Until the run is open, Ctrl-C ends the process by its default handler: a KeyboardInterrupt
    # within a callback of the garbage collector would be lost.
    handler = signal.SIG_DFL if export is None else signal.getsignal(signal.SIGINT)
    before = signal.signal(signal.SIGINT, handler)
    try:
        _train(run, overrides or [], export, half, form, allow_changes, distributed, peer_timeout)
    finally:
        signal.signal(signal.SIGINT, before)


def _train(
    run: Path,
    overrides: list[str],
    export: Path | None,
    half: bool,
    form: str,
    allow_changes: bool,
    distributed: bool,
    peer_timeout: int,
) -> None:
    """Trains or exports; the arguments are those of `train`."""
    settings = read_run_config(run, overrides)
    name = settings.recipe
    if half and (export is None or name != "lm"):
        raise InputError("--half is for --export of a language model; pack has its own --half.")
    is_default = network_folder.check_form(form) == network_folder.DEFAULT_FORM
    if not is_default and (export is None or name != "lm"):
        raise InputError("--format is for --export of a language model.")
    if export is None:
        _check_paths(settings)
    else:
        files.refuse_existing(export)
        checks.output_folder(export.absolute().parent)
    processes.join(distributed, peer_timeout)
    from spirit_jax.training import loop
    from spirit_jax.training.distributed import is_first
    from spirit_jax.training.export import export as write_export

    if name == "lm":
        settings = synthetic.write(settings) if export is None else synthetic.resolve(settings)
    recipe = find_recipe(name)(settings, **{"half": half, "form": form} if name == "lm" else {})
    if export is not None:
        step = write_export(recipe, export, allow_changes)
        print(f"{export}: exported step {step}")
        return
    started, last = time.monotonic(), 0.0
    pace = Pace(settings.steps)
    metrics = {}
    for metrics in loop.train(recipe, allow_changes=allow_changes):
        elapsed = time.monotonic() - started
        pace.add(metrics["step"], metrics["seconds"])
        is_due = elapsed - last >= 5 or metrics["step"] in (1, settings.steps)
        if is_due and is_first():
            last = elapsed
            print(_describe(metrics, pace), flush=True)
    if metrics.get("step") == settings.steps and is_first():
        print(
            f"{settings.run_dir}: all {settings.steps} steps are done and saved. Next, for a folder"
        )
        print(f"to use:  spirit-jax train --config {run}{_given(overrides)} --export OUTPUT")


def _check_paths(settings) -> None:
    """Raises an `InputError` if a model, corpus or recording of a run does not exist."""
    checks.output_folder(files.as_path(settings.run_dir))
    if settings.recipe == "lm":
        synthetic.resolve(settings)
        if not settings.model.startswith(synthetic.PREFIX):
            model_folder.find_language_model(settings.model)
        for source in (*settings.data.sources, *settings.eval_sources):
            if not source.path.startswith(synthetic.PREFIX):
                checks.existing(files.as_path(source.path))
        return
    if settings.start:
        model_folder.find_model(settings.start)
    if settings.recipe == "vocoder":
        model_folder.find_speech_tokenizer(settings.tokenizer)
    for path in (*settings.data.sources, *settings.data.held_out):
        if not path.startswith("tfds:"):
            checks.existing(files.as_path(path))


class Pace:
    """Estimates the remaining time of a run from its recent steps.

    The first steps after a start are not counted, since they include compilation.

    Args:
      steps: number of steps of the run.
    """

    SKIPPED, RECENT = 2, 50  # steps

    def __init__(self, steps: int):
        self.steps = steps
        self._added, self._step = 0, 0
        self._seconds: collections.deque[float] = collections.deque(maxlen=self.RECENT)

    def add(self, step: int, seconds: float) -> None:
        """Adds the duration of a step in seconds."""
        self._added, self._step = self._added + 1, step
        if self._added > self.SKIPPED:
            self._seconds.append(seconds)

    @property
    def left(self) -> float | None:
        """Remaining seconds; None before the first counted step."""
        if not self._seconds:
            return None
        return (self.steps - self._step) * sum(self._seconds) / len(self._seconds)


def _describe(metrics: dict, pace: Pace) -> str:
    """A line with the metrics of a step and the remaining time."""
    names = ("loss", "loss_text", "loss_speech", "eval_loss", "grad_norm", "mfu")
    shown = " ".join(f"{name} {metrics[name]:.4g}" for name in names if name in metrics)
    rate = f"{metrics['tokens_per_second']:.0f} tokens/s"
    if pace.left is not None:
        rate += f", {pace.left / 60:.1f} min left"
    return f"step {metrics['step']}/{pace.steps} {shown} ({rate})"


def _given(overrides: list[str]) -> str:
    """The overrides quoted for a shell, each after a space."""
    return "".join(f" {shlex.quote(override)}" for override in overrides)
