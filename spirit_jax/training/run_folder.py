"""The folder of a run while a process trains in it: locked, recorded, and resumed from.

RUN/run.json        what the run is made of (`record`)
RUN/run.lock        which process trains in it (`spirit_jax.lock`)
RUN/checkpoints/    the state after some steps (`checkpoints`)
RUN/metrics.jsonl   the metrics of each step (`metrics`)
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
RESTARTS_STREAM = ("data.", "content of data.", "content of model/")  # begin names of changes


@dataclasses.dataclass
class RunFolder:
    """A run folder that this process trains in.

    Attributes:
      config: of the run.
      stop: whether the run is to stop early.
      record: what the run is made of now.
      allow_changes: changes that are refused otherwise are taken.
      lock: None on all processes but the first.
      changes: those since the checkpoint that was loaded; None before one is.
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
        """The checkpoints, to read and to write."""
        check = self.lock.check if self.lock else None
        return Checkpoints(self.path / "checkpoints", self.config.keep, check)

    def resume(self, checkpoints: Checkpoints, abstract: Any, stream: Any) -> Any:
        """The newest whole checkpoint's state, with the stream set to where it was; None if none.

        Args:
          checkpoints: of the run.
          abstract: the state to restore, see `Checkpoints.restore`.
          stream: the data stream; it starts again where a change of the data was allowed.

        Raises:
          InputError: a setting changed that must not, or nothing can be read.
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
        """Raises `InputError` for changes since a checkpoint that must not be."""
        refuse(metadata, self.record, type(self.config), self.config.run_dir, self.allow_changes)


@contextlib.contextmanager
def open_run(
    config: LoopConfig, describe: Callable[[], dict[str, Any]], allow_changes: bool = False
) -> Iterator[RunFolder]:
    """Opens a run folder to train in: SIGTERM and Ctrl-C are watched, and the folder is locked.

    Args:
      config: of the run.
      describe: gives the record of the run; called by the first process.
      allow_changes: see `RunFolder`.

    Raises:
      InputError: another process trains in the folder, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(distributed.watch_signals())
        held: list[Lock] = []

        def begin() -> dict[str, Any]:
            held.append(stack.enter_context(hold(config.run_dir)))
            return describe()

        try:
            with stop.droppable():
                made_of = distributed.from_first(begin)
            yield RunFolder(config, stop, made_of, allow_changes, held[0] if held else None)
        except distributed.Stopped:
            say(f"{config.run_dir}: stopped before a step was done; the same command starts again.")


def read_newest(
    config: LoopConfig, now: dict[str, Any], abstract: Any, allow_changes: bool
) -> Restored:
    """The newest whole checkpoint of a run, which may be running; nothing is changed.

    Args:
      config: of the run.
      now: the record of `config`.
      abstract: see `Checkpoints.restore`.
      allow_changes: of settings.

    Raises:
      InputError: there is none, or it was made of something else.
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
    """Tells the user something, once a run: on standard error of the first process."""
    if distributed.is_first():
        print(message, file=sys.stderr, flush=True)


def refuse(
    metadata: dict[str, Any],
    now: dict[str, Any],
    config_cls: type,
    run_dir: str,
    allow_changes: bool,
) -> None:
    """Raises `InputError` if a checkpoint was made of what a run now is not.

    Args:
      metadata: of the checkpoint.
      now: the record of the run now.
      config_cls: of the run.
      run_dir: for the message.
      allow_changes: nothing is refused.
    """
    before = _record_of(metadata, Path(run_dir))
    if before is None or allow_changes:
        return
    refused = record.compare(before, now, config_cls).refused
    if refused:
        raise InputError(
            f"{run_dir}: was trained with other settings: {'; '.join(map(str, refused))}. Set them "
            "back, use another run_dir, or take the changes with --allow-changes."
        )


def _record_of(metadata: dict[str, Any], run_dir: Path) -> dict[str, Any] | None:
    """The record of a checkpoint, or of its folder if it has none; None for an earlier version."""
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
    """Sets the stream to where it was, or says that it starts again."""
    state, named = restored.metadata["stream"], [change.name for change in allowed]
    has_shards = "shards" in state  # one without is only a number of steps, which fits any data
    if has_shards and any(name.startswith(RESTARTS_STREAM) for name in named):
        say(f"The data changed ({', '.join(named)}): its stream starts again from the beginning.")
    else:
        stream.set_state(state)


def _announce(run_dir: str, restored: Restored, changes: record.Changes) -> None:
    """Says where a run resumes, and what changed."""
    free = "; ".join(map(str, changes.free))
    say(f"{run_dir}: resumes after step {restored.step}." + (f" Changed: {free}." if free else ""))
    if changes.announced or changes.refused:
        what = "; ".join(map(str, (*changes.announced, *changes.refused)))
        say(f"notice: from step {restored.step + 1} on, other settings count: {what}.")
    if "record" not in restored.metadata:
        say(
            f"notice: checkpoint {restored.step} is of an earlier version, which did not record "
            "what a run was made of, so its settings were not compared."
        )
