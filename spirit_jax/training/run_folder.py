"""The folder of a run: locking, comparing settings, and resuming.

RUN/run.json        settings and fingerprints of the inputs (`record`)
RUN/run.lock        lock of the process that trains in the folder (`files.lock`)
RUN/checkpoints/    checkpoints (`checkpoints`)
RUN/metrics.jsonl   metrics of each step (`metrics`)
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spirit_jax import checksums, files
from spirit_jax.errors import InputError, ResourceError
from spirit_jax.files.lock import Lock, hold
from spirit_jax.training import distributed, record
from spirit_jax.training.checkpoints import Checkpoints, Restored
from spirit_jax.training.configs import LoopConfig

RECORD = "run.json"
# The data stream starts from the beginning after a change whose name begins with one of these.
RESTARTS_STREAM = ("data.", "content of data.", "content of model/")


@dataclasses.dataclass
class RunFolder:
    """A run folder that this process trains in.

    Attributes:
      config: the run config.
      stop: tells whether the run must stop early; it handles signals.
      record: the record of the run with this config (see `record`).
      allow_changes: accepts changes of settings that are refused otherwise.
      lock: the lock of the folder; None on all processes but the first.
      changes: what differs from the restored checkpoint's record; None before `resume`.
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
        return files.as_path(self.config.run_dir)

    def open_checkpoints(self) -> Checkpoints:
        """The checkpoints of the run, for reading and writing."""
        check = self.lock.check if self.lock else None
        return Checkpoints(self.path / "checkpoints", self.config.keep, check)

    def resume(self, checkpoints: Checkpoints, abstract: Any, stream: Any) -> Any:
        """Restores the newest readable checkpoint and the position of the data stream.

        Args:
          checkpoints: of the run.
          abstract: the state to restore, see `Checkpoints.restore`.
          stream: the data stream; it starts from the beginning if a change of data was allowed.

        Returns:
          The state, or None if there is no checkpoint.

        Raises:
          InputError: a change of the record is refused, or no checkpoint can be read.
        """
        restored = checkpoints.restore(abstract, self._check)
        first_time = self.changes is None  # a second call prints and writes nothing
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
        """Raises `InputError` if a checkpoint's record has changes that are refused."""
        refuse(metadata, self.record, type(self.config), self.config.run_dir, self.allow_changes)


@contextlib.contextmanager
def open_run(
    config: LoopConfig, describe: Callable[[], dict[str, Any]], allow_changes: bool = False
) -> Iterator[RunFolder]:
    """Opens and locks a run folder, and handles SIGTERM and Ctrl-C.

    Args:
      config: the run config.
      describe: returns the record of the run; only the first process calls it.
      allow_changes: see `RunFolder`.

    Yields:
      The run folder.

    Raises:
      InputError: another process trains in the folder, or it cannot be written.
      Stopped: a signal came before the first step; a message has been printed.
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
    """Reads the newest readable checkpoint of a run, even during training; changes no file.

    Args:
      config: the run config.
      now: the record of the run with this config.
      abstract: see `Checkpoints.restore`.
      allow_changes: accepts all differences from the checkpoint's record.

    Returns:
      The checkpoint.

    Raises:
      InputError: there is no checkpoint, or a difference from its record is refused.
    """
    folder = files.as_path(config.run_dir) / "checkpoints"
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
    """Checks that no change of the record since a checkpoint is refused.

    Args:
      metadata: the metadata of the checkpoint.
      now: the record of the run with the current config.
      config_cls: class of the run config.
      run_dir: the run folder.
      allow_changes: accepts all changes.

    Raises:
      InputError: a setting or an input has changed, and the change is refused.
    """
    before = _record_of(metadata, files.as_path(run_dir))
    if before is None or allow_changes:
        return
    refused = record.compare(before, now, config_cls).refused
    if refused:
        raise InputError(
            f"{run_dir}: was trained with other settings: {'; '.join(map(str, refused))}. Set them "
            "back, use another run_dir, or accept the changes with --allow-changes."
        )


def _record_of(metadata: dict[str, Any], run_dir: Path) -> dict[str, Any] | None:
    """The record in a checkpoint, else in the run folder; None if an old version wrote neither."""
    if record.is_record(metadata.get("record")):
        return metadata["record"]
    try:
        known = checksums.read_json(run_dir / RECORD)
    except ResourceError:  # of memory, for example: the file may be intact
        raise
    except InputError:
        return None
    return known if record.is_record(known) else None


def _changes(restored: Restored, now: dict[str, Any], cls: type, run_dir: Path) -> record.Changes:
    """The changes of the record since a checkpoint; none if it has no record."""
    before = _record_of(restored.metadata, run_dir)
    return record.Changes() if before is None else record.compare(before, now, cls)


def _set_stream(stream: Any, restored: Restored, allowed: tuple[record.Change, ...]) -> None:
    """Restores the position of the data stream, or says that it starts from the beginning."""
    state, named = restored.metadata["stream"], [change.name for change in allowed]
    # A state without shards is only a number of steps, which is valid for any data.
    has_shards = "shards" in state
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
