"""`spirit-jax train`: every network, by a run config."""

import collections
import dataclasses
import time
from pathlib import Path
from typing import Annotated

import typer

from spirit_jax import files, folders
from spirit_jax.cli import checks, processes
from spirit_jax.cli.options import Distributed, PeerTimeout
from spirit_jax.errors import InputError
from spirit_jax.training import find_recipe, read_run_config


def train(
    run: Annotated[Path, typer.Option("--config", help="Run config, YAML; see RunConfig")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as steps=200")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write the newest checkpoint as a folder to use, and end")
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="With --export: a language model in float16")
    ] = False,
    distributed: Distributed = False,
    peer_timeout: PeerTimeout = processes.PEER_TIMEOUT,
) -> None:
    """Train a network; a run that was stopped goes on.

    The config's `recipe` says which: lm, the language model, on prepared corpora (the default), or
    a network of the speech tokenizer, on recordings: units, quantizer, pitch, style or vocoder.

    Prints a line of metrics now and then; all are in RUN_DIR/metrics.jsonl, and for TensorBoard in
    RUN_DIR/tensorboard. SIGTERM saves a checkpoint and ends the run. Of several processes every one
    runs this same command, with --distributed or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID set.
    """
    settings = read_run_config(run, overrides or [])
    name = settings.recipe
    if half and (export is None or name != "lm"):
        raise InputError("--half is for --export of a language model; pack has one of its own.")
    _check_paths(settings)
    if export is not None:
        files.refuse_existing(export)
        checks.output_folder(export.absolute().parent)
    processes.join(distributed, peer_timeout)
    from spirit_jax.training import export as export_lib
    from spirit_jax.training import hosts

    recipe = find_recipe(name)
    if name == "lm":
        settings = _make_up(settings)
    if export is not None:
        if name == "lm":
            step = export_lib.export(settings, export, half)
        else:
            step = recipe.export(settings, export)
        print(f"{export}: the network after step {step}")
        return
    started, last = time.monotonic(), 0.0
    pace = Pace(settings.steps)
    for metrics in recipe.train(settings):
        elapsed = time.monotonic() - started
        pace.add(metrics["step"], metrics["seconds"])
        told = elapsed - last >= 5 or metrics["step"] in (1, settings.steps)
        if told and hosts.is_first():
            last = elapsed
            print(_describe(metrics, pace), flush=True)


def _make_up(settings):
    """Makes what a run's config says is to be made, "made:KIND" and "made:COUNT", in its folder."""
    from spirit_jax.data.toy import write_toy_corpus
    from spirit_jax.random_model import write_random_model

    folder = Path(settings.run_dir) / "made"

    def corpora(sources, seed):
        made = []
        for source in sources:
            kind, _, count = source.path.partition(":")
            if kind == "made":
                if not count.isdigit() or not int(count):
                    raise InputError(f"'{source.path}' is no corpus to make; write made:200.")
                path = folder / f"corpus-{seed}-{count}"
                write_toy_corpus(path, int(count), seed)
                source = dataclasses.replace(source, path=str(path))
            made.append(source)
        return tuple(made)

    kind, _, name = settings.model.partition(":")
    if kind == "made":
        if not (folder / name).is_dir():
            write_random_model(folder / name, name)
        settings = dataclasses.replace(settings, model=str(folder / name))
    data = dataclasses.replace(settings.data, sources=corpora(settings.data.sources, 0))
    held_out = corpora(settings.eval_sources, 1)
    return dataclasses.replace(settings, data=data, eval_sources=held_out)


def _check_paths(settings) -> None:
    """Raises an `InputError` for a model, corpus or recording of a run that is not there."""
    checks.output_folder(Path(settings.run_dir))
    if settings.recipe == "lm":
        if not settings.model.startswith("made:"):
            folders.find_language_model(settings.model)
        for source in (*settings.data.sources, *settings.eval_sources):
            if not source.path.startswith("made:"):
                checks.existing(Path(source.path))
        return
    if settings.start:
        folders.find_model(settings.start)
    if settings.recipe == "vocoder":
        folders.find_speech_tokenizer(settings.tokenizer)
    for path in (*settings.data.sources, *settings.data.held_out):
        if not path.startswith("tfds:"):
            checks.existing(Path(path))


class Pace:
    """The time that is left of a run, by its recent steps; the first ones of a start compile.

    Args:
      steps: of the run.
    """

    SKIPPED, RECENT = 2, 50  # steps

    def __init__(self, steps: int):
        self.steps = steps
        self._added, self._step = 0, 0
        self._seconds: collections.deque[float] = collections.deque(maxlen=self.RECENT)

    def add(self, step: int, seconds: float) -> None:
        """Notes how long a step took."""
        self._added, self._step = self._added + 1, step
        if self._added > self.SKIPPED:
            self._seconds.append(seconds)

    @property
    def left(self) -> float | None:
        """Seconds; None as long as there is no step to judge by."""
        if not self._seconds:
            return None
        return (self.steps - self._step) * sum(self._seconds) / len(self._seconds)


def _describe(metrics: dict, pace: Pace) -> str:
    """A line about a step, with the time that is left."""
    names = ("loss", "loss_text", "loss_speech", "eval_loss", "grad_norm", "mfu")
    shown = " ".join(f"{name} {metrics[name]:.4g}" for name in names if name in metrics)
    rate = f"{metrics['tokens_per_second']:.0f} tokens/s"
    if pace.left is not None:
        rate += f", {pace.left / 60:.1f} min left"
    return f"step {metrics['step']}/{pace.steps} {shown} ({rate})"
