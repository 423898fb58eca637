"""The folder of a run: locking, comparing settings, and resuming.

RUN/run.json        settings and inputs of the run (`record`)
RUN/run.lock        lock of the process that trains in it (`spirit_jax.lock`)
RUN/checkpoints/    states of the run (`checkpoints`)
RUN/metrics.jsonl   metrics of each step (`metrics`)
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spirit_jax import checksums
from spirit_jax.errors import InputError, LackError
from spirit_jax.lock import Lock, hold
from spirit_jax.training import distributed, record
from spirit_jax.training.checkpoints import Checkpoints, Restored
from spirit_jax.training.configs import LoopConfig

RECORD = "run.json"
# Prefixes of the names of changes after which the data stream starts from the beginning.
RESTARTS_STREAM = ("data.", "content of data.", "content of model/")


@dataclasses.dataclass
class RunFolder:
    """A run folder that this process trains in.

    Attributes:
      config: the run config.
      stop: whether the run has been asked to stop.
      record: the record of the run with this config (see `record`).
      allow_changes: accepts changes of settings that are refused otherwise.
      lock: of the folder; None on all processes but the first.
      changes: settings that changed since the loaded checkpoint; None before `resume`.
    """

    config: LoopConfig
    stop: distributed.Stop
    record: dict[str, Any]
    allow_changes: bool = False
    lock: Lock | None = None
    changes: record.Changes | None = None

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.config.run_dir)

    def open_checkpoints(self) -> Checkpoints:
        """The checkpoints, for reading and writing."""
        check = self.lock.check if self.lock else None
        return Checkpoints(self.path / "checkpoints", self.config.keep, check)

    def resume(self, checkpoints: Checkpoints, abstract: Any, stream: Any) -> Any:
        """Restores the newest readable checkpoint and the position of the data stream.

        Args:
          checkpoints: of the run.
          abstract: the state to restore, see `Checkpoints.restore`.
          stream: the data stream; it starts from the beginning if changed data were allowed.

        Returns:
          The state, or None without a checkpoint.

        Raises:
          InputError: a setting changed that must not change, or no checkpoint can be read.
        """
        restored = checkpoints.restore(abstract, self._check)
        first_time = self.changes is None
        self.changes = self.changes or record.Changes()
        if restored is not None:
            self.changes = _changes(restored, self.record, type(self.config), self.path)
            _set_stream(stream, restored, self.changes.refused)
        if distributed.is_first() and first_time:
            if restored is not None:
                _announce(self.config.run_dir, restored, self.changes)
            checksums.write_json(self.path / RECORD, self.record)
        return restored and restored.state

    def _check(self, step: int, metadata: dict[str, Any]) -> None:
        """Raises `InputError` if settings changed that must not change."""
        refuse(metadata, self.record, type(self.config), self.config.run_dir, self.allow_changes)


@contextlib.contextmanager
def open_run(
    config: LoopConfig, describe: Callable[[], dict[str, Any]], allow_changes: bool = False
) -> Iterator[RunFolder]:
    """Opens and locks a run folder, and handles SIGTERM and Ctrl-C.

    Args:
      config: of the run.
      describe: returns the record of the run; called by the first process.
      allow_changes: see `RunFolder`.

    Yields:
      The folder.

    Raises:
      InputError: another process trains in the folder, or it cannot be written.
      Stopped: a signal came before the first step; this was printed.
    """
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(distributed.watch_signals())
        locks: list[Lock] = []

        def lock_and_describe() -> dict[str, Any]:
            locks.append(stack.enter_context(hold(config.run_dir)))
            return describe()

        try:
            with stop.droppable():
                described = distributed.from_first(lock_and_describe)
            yield RunFolder(config, stop, described, allow_changes, locks[0] if locks else None)
        except distributed.Stopped:
            say(f"{config.run_dir}: stopped before a step was done; the same command starts again.")
            raise


def read_newest(
    config: LoopConfig, now: dict[str, Any], abstract: Any, allow_changes: bool
) -> Restored:
    """Reads the newest readable checkpoint of a run, which may be training; changes nothing.

    Args:
      config: of the run.
      now: the record of `config`.
      abstract: see `Checkpoints.restore`.
      allow_changes: accepts settings that differ from those of the checkpoint.

    Returns:
      The checkpoint.

    Raises:
      InputError: there is no checkpoint, or its settings differ.
    """
    folder = Path(config.run_dir) / "checkpoints"
    checkpoints = Checkpoints(folder)

    def check(step: int, metadata: dict[str, Any]) -> None:
        refuse(metadata, now, type(config), config.run_dir, allow_changes)

    restored = checkpoints.restore(abstract, check)
    checkpoints.close()
    if restored is None:
        raise InputError(f"{folder}: has no checkpoint yet.")
    return restored


def say(message: str) -> None:
    """Prints a message on standard error, on the first process only."""
    if distributed.is_first():
        print(message, file=sys.stderr, flush=True)


def refuse(
    metadata: dict[str, Any],
    now: dict[str, Any],
    config_cls: type,
    run_dir: str,
    allow_changes: bool,
) -> None:
    """Compares the settings of a checkpoint with those of the run.

    Args:
      metadata: of the checkpoint.
      now: the record of the run with the current config.
      config_cls: class of the config.
      run_dir: of the run.
      allow_changes: accepts all changes.

    Raises:
      InputError: a setting changed that must not change.
    """
    before = _record_of(metadata, Path(run_dir))
    if before is None or allow_changes:
        return
    refused = record.compare(before, now, config_cls).refused
    if refused:
        raise InputError(
            f"{run_dir}: was trained with other settings: {'; '.join(map(str, refused))}. Set them "
            "back, use another run_dir, or accept the changes with --allow-changes."
        )


def _record_of(metadata: dict[str, Any], run_dir: Path) -> dict[str, Any] | None:
    """The record of a checkpoint, else of the run folder; None if written by an old version."""
    if record.is_record(metadata.get("record")):
        return metadata["record"]
    try:
        known = checksums.read_json(run_dir / RECORD)
    except LackError:
        raise
    except InputError:
        return None
    return known if record.is_record(known) else None


def _changes(restored: Restored, now: dict[str, Any], cls: type, run_dir: Path) -> record.Changes:
    before = _record_of(restored.metadata, run_dir)
    return record.Changes() if before is None else record.compare(before, now, cls)


def _set_stream(stream: Any, restored: Restored, allowed: tuple[record.Change, ...]) -> None:
    """Restores the position of the data stream, or says that it starts from the beginning."""
    state, named = restored.metadata["stream"], [change.name for change in allowed]
    has_shards = "shards" in state  # otherwise only a number of steps, which fits any data
    if has_shards and any(name.startswith(RESTARTS_STREAM) for name in named):
        say(f"The data changed ({', '.join(named)}): its stream starts again from the beginning.")
    else:
        stream.set_state(state)


def _announce(run_dir: str, restored: Restored, changes: record.Changes) -> None:
    """Prints the step after which a run resumes, and the settings that changed."""
    free = "; ".join(map(str, changes.free))
    say(f"{run_dir}: resumes after step {restored.step}." + (f" Changed: {free}." if free else ""))
    if changes.announced or changes.refused:
        what = "; ".join(map(str, (*changes.announced, *changes.refused)))
        say(f"notice: from step {restored.step + 1} on, settings are different: {what}.")
    if "record" not in restored.metadata:
        say(
            f"notice: checkpoint {restored.step} was written by an earlier version, which did "
            "not record settings, so they were not compared."
        )
