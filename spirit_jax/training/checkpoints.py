"""Checkpoints of a run: parameters, optimizer state and data stream, saved with Orbax.

    checkpoints/STEP/                      a checkpoint, whole or absent
    checkpoints/STEP/checksums/*.json      checksums of its files, one list per process
    checkpoints/damaged/STEP/              a checkpoint that could not be read

`checkpoint_folder` reads one of them.
"""

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp

from spirit_jax import files
from spirit_jax.errors import InputError
from spirit_jax.orbax_folder import COMMITTED, hide_orbax_logs
from spirit_jax.training import distributed
from spirit_jax.training.checkpoint_folder import (
    Damaged,
    check_shapes,
    describe_arrays,
    load,
    read_metadata,
    verify_checksums,
    write_checksums,
)

DAMAGED = "damaged"
UNFINISHED = ".orbax-checkpoint-tmp"  # in names of unfinished checkpoints
COMMIT_SECONDS = 600  # timeout for the first process to commit a checkpoint


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read.

    Attributes:
      step: number of steps done.
      state: the train state, with the requested shardings.
      metadata: "stream", the state of the data stream, and "record", the settings of the run.
    """

    step: int
    state: Any
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints in a folder.

    Saving continues in the background; `close` waits for it.
    """

    def __init__(self, folder: str | Path, keep: int = 0, check: Callable[[], None] | None = None):
        """Opens the folder; writes nothing.

        Args:
          folder: with the checkpoints.
          keep: how many of the newest are kept; 0 for reading only.
          check: called before each save; raises `InputError` to prevent it.
        """
        self._folder = files.as_path(folder).absolute()
        self._keep, self._before_save = keep, [check] if check else []
        self._checkpointer: ocp.training.Checkpointer | None = None
        self._background = ThreadPoolExecutor(1)
        self._saving: Future | None = None
        hide_orbax_logs()

    def steps(self) -> list[int]:
        """The steps of all checkpoints, newest first."""
        try:
            if files.is_bucket(self._folder):  # there a checkpoint is whole once it has this file
                names = [path.parent.name for path in self._folder.glob(f"*/{COMMITTED}")]
            else:
                names = [entry.name for entry in os.scandir(self._folder) if entry.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise InputError(
                f"{self._folder}: cannot be read ({files.describe(error)})."
            ) from error
        numbers = (name for name in names if name.isascii() and name.isdigit())
        return sorted((int(name) for name in numbers if len(name) < 19), reverse=True)

    def call_before_save(self, function: Callable[[], None]) -> None:
        """Adds a function that is called before each save, as `check` is."""
        self._before_save.append(function)

    def save(self, state: Any, metadata: dict[str, Any]) -> None:
        """Saves the state after a step.

        Args:
          state: a pytree with `step`.
          metadata: JSON values, see `Restored`.

        Raises:
          InputError: this checkpoint or the previous one could not be written (a full disk).
        """
        step = int(state.step)
        with self._writing(step):
            self._wait()
            for call in self._before_save:
                call()
            if distributed.from_first(lambda: step in self.steps()):
                return
            if self._checkpointer is None:
                self._checkpointer = self._open()
            response = self._checkpointer.save_async(
                step,
                state,
                force=True,
                custom_metadata=metadata | {"arrays": describe_arrays(state)},
            )
            self._saving = self._background.submit(self._seal, response, step)

    def restore(
        self, abstract: Any, check: Callable[[int, dict[str, Any]], None] = lambda *_: None
    ) -> Restored | None:
        """Reads the newest readable checkpoint.

        All processes skip the same unreadable checkpoints. They are reported on standard error and
        moved to `damaged/`, unless `keep` is 0.

        Args:
          abstract: shapes, dtypes and shardings of the state; `...` for arrays not to read.
          check: called with step and metadata by the first process before arrays are read; raises
            `InputError` for a checkpoint that must not be used.

        Returns:
          The checkpoint, or None if there are none.

        Raises:
          InputError: no checkpoint can be read, or memory, disk or permission is missing.
        """
        steps = distributed.from_first(self.steps)
        reasons: dict[int, str] = {}
        for step in steps:
            try:
                restored = self._read(step, abstract, check)
            except Damaged as error:
                reasons[step] = str(error)
                continue
            self._skip_damaged(reasons, step)
            return restored
        if steps:
            newest = f"checkpoint {steps[0]}: {reasons[steps[0]]}"
            raise InputError(
                f"{self._folder}: none of its {len(steps)} checkpoints can be read ({newest}). "
                "Use another run_dir, or move this folder away to start from the first step."
            )
        return None

    def close(self) -> None:
        """Waits for the last save; raises `InputError` if it failed."""
        with self._writing(None):
            try:
                self._wait()
            finally:
                self._background.shutdown()
                if self._checkpointer is not None:
                    checkpointer, self._checkpointer = self._checkpointer, None
                    checkpointer.close()

    def _open(self) -> ocp.training.Checkpointer:
        self._folder.mkdir(parents=True, exist_ok=True)
        distributed.from_first(self._set_aside_unreadable)
        return ocp.training.Checkpointer(
            str(self._folder),
            preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
            cleanup_tmp_directories=True,
        )

    def _wait(self) -> None:
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _seal(self, response: Any, step: int) -> None:
        """Waits for a save, and writes the checksums of this process's files."""
        response.result()
        folder = self._folder / str(step)
        deadline = time.monotonic() + COMMIT_SECONDS
        whole = folder / COMMITTED if files.is_bucket(folder) else folder
        while not whole.exists():  # the first process commits the checkpoint
            if time.monotonic() > deadline or jax.process_count() == 1:
                return
            time.sleep(0.1)
        write_checksums(folder)

    def _read(self, step: int, abstract: Any, check: Callable) -> Restored:
        """Reads a checkpoint; raises `Damaged` on all processes if one cannot read it."""
        folder = self._folder / str(step)
        self._together(lambda: verify_checksums(folder))

        def read_checked() -> dict[str, Any]:
            try:
                metadata = read_metadata(folder)
            except Damaged as error:
                return {"damaged": str(error)}
            check(step, metadata)
            check_shapes(folder, metadata.get("arrays"), describe_arrays(abstract))
            return {"metadata": metadata}

        outcome = distributed.from_first(read_checked)
        if "damaged" in outcome:
            raise Damaged(outcome["damaged"])
        state = self._together(lambda: load(folder, abstract))
        if int(state.step) != step:
            raise Damaged(f"it is of step {int(state.step)}")
        return Restored(step, state, outcome["metadata"])

    def _together(self, read: Callable[[], Any]) -> Any:
        """Calls `read` on every process; if it fails on one it fails on all."""
        result, reason, lack = None, "", ""
        try:
            result = read()
        except Exception as error:  # libraries raise all kinds for a damaged file
            lack, reason = files.find_resource_error(error), files.describe(error)
        worst = distributed.largest(2 if lack else bool(reason))
        if worst == 2:
            lack = lack or "another process lacks memory, files or permission"
            raise InputError(f"{self._folder}: cannot be read ({lack}).")
        if worst:
            raise Damaged(reason or "another process cannot read it")
        return result

    def _skip_damaged(self, reasons: dict[int, str], used: int) -> None:
        """Reports the checkpoints that could not be read, and moves them away."""

        def report() -> None:
            for step, reason in reasons.items():
                where = "is left where it is"
                if self._keep:
                    where = f"is kept in {self._set_aside(step)}"
                print(
                    f"checkpoint {step} of {self._folder.parent} cannot be read ({reason}); it "
                    f"{where}, and checkpoint {used} is used.",
                    file=sys.stderr,
                )

        if reasons:
            distributed.from_first(report)

    def _set_aside_unreadable(self) -> None:
        """Moves unreadable checkpoints away: Orbax reads all metadata and would fail.

        One that is older than the `keep` newest was being deleted when the run was killed, since
        Orbax deletes file by file: the rest of it is deleted.
        """
        readable = 0
        for step in self.steps():
            folder = self._folder / str(step)
            try:
                read_metadata(folder)
                readable += 1
            except Damaged as error:
                if readable >= self._keep:
                    files.remove_tree(folder)
                    continue
                print(
                    f"checkpoint {step} of {self._folder.parent} cannot be read ({error}); it is "
                    f"kept in {self._set_aside(step)}.",
                    file=sys.stderr,
                )

    def _set_aside(self, step: int) -> Path:
        folder = self._folder / DAMAGED
        target, number = folder / str(step), 1
        while target.exists():
            number += 1
            target = folder / f"{step}-{number}"
        try:
            folder.mkdir(exist_ok=True)
            (self._folder / str(step)).rename(target)
        except OSError as error:
            raise InputError(
                f"{self._folder / str(step)}: is damaged, and cannot be moved away "
                f"({files.describe(error)})."
            ) from error
        return target

    @contextlib.contextmanager
    def _writing(self, step: int | None) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # Orbax has no common error class for disk errors
            with contextlib.suppress(Exception):
                self._drop_unfinished()
            what = "a checkpoint" if step is None else f"checkpoint {step}"
            raise InputError(
                f"{self._folder}: {what} cannot be written ({files.describe(error)}); "
                f"{self._describe_whole()}"
            ) from error

    def _drop_unfinished(self) -> None:
        """Removes the files of a failed save."""
        if distributed.is_first():
            for path in self._folder.glob(f"*{UNFINISHED}*"):
                files.remove_tree(path)

    def _describe_whole(self) -> str:
        """Where the run can resume from, for an error message."""
        try:
            steps = self.steps()
        except InputError:
            return "it is not known whether earlier ones can be read."
        if steps:
            return f"once that is fixed, the run resumes from checkpoint {steps[0]}."
        if not self._folder.parent.is_dir():
            return "the run folder is gone."
        return "there is no earlier one, so the run starts from the first step again."
