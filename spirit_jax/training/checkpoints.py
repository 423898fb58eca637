"""Checkpoints of a run: parameters, optimiser and data stream as one unit, through Orbax.

    checkpoints/STEP/                      a checkpoint, whole or absent
    checkpoints/STEP/checksums/*.json      checksums of its files, of each process that wrote some
    checkpoints/damaged/STEP/              one that could not be read

Metadata (the stream's place, the run's record, shapes) lies in Orbax's file with the rest.
"""

import contextlib
import dataclasses
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint.experimental.v1 as ocp

from spirit_jax import checksums, files
from spirit_jax.errors import InputError
from spirit_jax.training import distributed

DAMAGED = "damaged"
CHECKSUMS = "checksums"
OWN_FILES = "ocdbt.process_"  # begins the folder that a process writes alone
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of what Orbax is writing
COMMIT_SECONDS = 600  # the first process may take to commit what all have written


class _Damaged(Exception):
    """Says why a checkpoint cannot be read."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds.

    Attributes:
      step: after which it was saved.
      state: arrays, placed as was asked for.
      metadata: "stream", the place in the data, and "record", what the run was made of.
    """

    step: int
    state: Any
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints in a folder; the newest whole one counts.

    Saving goes on in the background; `close` waits for it.
    """

    def __init__(self, folder: str | Path, keep: int = 0, check: Callable[[], None] | None = None):
        """Nothing is written yet.

        Args:
          folder: of the checkpoints.
          keep: how many of the newest are kept; 0 to read only.
          check: called before each save; raises `InputError` if it must not be.
        """
        self._folder = Path(folder).absolute()
        self._keep, self._check = keep, check
        self._checkpointer: ocp.training.Checkpointer | None = None
        self._background = ThreadPoolExecutor(1)
        self._saving: Future | None = None
        _quieten()

    def steps(self) -> list[int]:
        """The steps of all checkpoints, newest first."""
        try:
            names = [entry.name for entry in os.scandir(self._folder) if entry.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise InputError(
                f"{self._folder}: cannot be read ({files.describe(error)})."
            ) from error
        numbers = (name for name in names if name.isascii() and name.isdigit())
        return sorted((int(name) for name in numbers if len(name) < 19), reverse=True)

    def save(self, state: Any, metadata: dict[str, Any]) -> None:
        """Saves the state after a step.

        Args:
          state: a pytree with `step`.
          metadata: what JSON holds, see `Restored`.

        Raises:
          InputError: this or the save before could not be written (a full disk).
        """
        step = int(state.step)
        with self._writing(step):
            self._wait()
            if self._check is not None:
                self._check()
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
        """The newest whole checkpoint; None if there is none.

        Those that cannot be read are passed over, the same by all processes, and named on standard
        error. They are set aside, unless this only reads.

        Args:
          abstract: shapes and dtypes with their places; `...` for what is not to be read.
          check: of a step and its metadata, called by the first process before arrays are read;
            raises `InputError` for a checkpoint that must not be used.

        Raises:
          InputError: there are checkpoints, and none can be read; or memory, disk or permission is
            lacking.
        """
        steps = distributed.from_first(self.steps)
        reasons: dict[int, str] = {}
        for step in steps:
            try:
                restored = self._read(step, abstract, check)
            except _Damaged as error:
                reasons[step] = str(error)
                continue
            self._pass_over(reasons, step)
            return restored
        if steps:
            newest = f"checkpoint {steps[0]}: {reasons[steps[0]]}"
            raise InputError(
                f"{self._folder}: none of its {len(steps)} checkpoints can be read ({newest}). "
                "Use another run_dir, or move this folder away to start from the first step."
            )
        return None

    def close(self) -> None:
        """Waits until all is on disk; raises `InputError` if it could not be written."""
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
        folder, process = self._folder / str(step), jax.process_index()
        deadline = time.monotonic() + COMMIT_SECONDS
        while not folder.is_dir():  # the first process commits for all
            if time.monotonic() > deadline or jax.process_count() == 1:
                return
            time.sleep(0.1)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        names = [path.relative_to(folder).as_posix() for path in paths]
        # Another process may be writing its own list just now.
        names = [name for name in names if not name.startswith(f"{CHECKSUMS}/")]
        own = sorted(name for name in names if _writer(name) == process)
        found = dict(zip(own, checksums.of_files(folder / n for n in own), strict=True))
        checksums.write_json(folder / CHECKSUMS / f"{process}.json", {"files": found})

    def _read(self, step: int, abstract: Any, check: Callable) -> Restored:
        """A checkpoint; raises `_Damaged` on all processes if it cannot be read on one."""
        folder = self._folder / str(step)
        self._together(lambda: _verify(folder))

        def read_metadata() -> dict[str, Any]:
            try:
                metadata = _read_metadata(folder)
            except _Damaged as error:
                return {"damaged": str(error)}
            check(step, metadata)
            _check_shapes(folder, metadata.get("arrays"), describe_arrays(abstract))
            return {"metadata": metadata}

        outcome = distributed.from_first(read_metadata)
        if "damaged" in outcome:
            raise _Damaged(outcome["damaged"])
        state = self._together(lambda: _load(folder, abstract))
        if int(state.step) != step:
            raise _Damaged(f"it is of step {int(state.step)}")
        return Restored(step, state, outcome["metadata"])

    def _together(self, read: Callable[[], Any]) -> Any:
        """What `read` returns; if it fails on one process it fails on all, for the worst reason."""
        result, reason, lack = None, "", ""
        try:
            result = read()
        except Exception as error:  # whatever a damaged file makes a library raise
            lack, reason = files.find_lack(error), files.describe(error)
        worst = distributed.largest(2 if lack else bool(reason))
        if worst == 2:
            lack = lack or "another process lacks memory, files or permission"
            raise InputError(f"{self._folder}: cannot be read ({lack}).")
        if worst:
            raise _Damaged(reason or "another process cannot read it")
        return result

    def _pass_over(self, reasons: dict[int, str], taken: int) -> None:
        """Names the checkpoints that were not readable, and sets them aside."""

        def pass_over() -> None:
            for step, reason in reasons.items():
                where = "is left where it is"
                if self._keep:
                    where = f"is kept in {self._set_aside(step)}"
                print(
                    f"checkpoint {step} of {self._folder.parent} cannot be read ({reason}); it "
                    f"{where}, and checkpoint {taken} is used.",
                    file=sys.stderr,
                )

        if reasons:
            distributed.from_first(pass_over)

    def _set_aside_unreadable(self) -> None:
        """Sets aside older checkpoints that Orbax, which reads the metadata of all, fails on."""
        for step in self.steps():
            try:
                _read_metadata(self._folder / str(step))
            except _Damaged as error:
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
        except Exception as error:  # the library has no one kind for what a disk does
            with contextlib.suppress(Exception):
                self._drop_unfinished()
            what = "a checkpoint" if step is None else f"checkpoint {step}"
            raise InputError(
                f"{self._folder}: {what} cannot be written ({files.describe(error)}); "
                f"{self._describe_whole()}"
            ) from error

    def _drop_unfinished(self) -> None:
        """Gives back the room that a failed save took."""
        if distributed.is_first():
            for path in self._folder.glob(f"*{UNFINISHED}*"):
                shutil.rmtree(path, ignore_errors=True)

    def _describe_whole(self) -> str:
        """What a run can resume from now."""
        try:
            steps = self.steps()
        except InputError:
            return "whether earlier ones can be read is not known."
        if steps:
            return f"the run resumes from checkpoint {steps[0]} once that is mended."
        if not self._folder.parent.is_dir():
            return "the run folder is gone."
        return "there is no earlier one, so the run starts from the first step again."


def abstract_state(state_shapes: Any, shardings: Any) -> Any:
    """What to restore: shapes and dtypes, each with its place."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state_shapes,
        shardings,
    )


def describe_arrays(tree: Any) -> dict[str, list]:
    """[shape, dtype] of every array of a tree, or of its shapes, by path.

    What is not to be read (`...`) has [].
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            [] if leaf is ... else [list(leaf.shape), str(jnp.dtype(leaf.dtype))]
        )
        for path, leaf in leaves
    }


def _writer(name: str) -> int:
    """The process that wrote a file of a checkpoint, by its name."""
    for part in name.split("/"):
        number = part.removeprefix(OWN_FILES)
        if number != part and number.isdigit():
            return int(number)
    return 0


def _verify(folder: Path) -> None:
    """Raises if a file is not as it was written; the processes share the files of a checkpoint.

    A checkpoint of an earlier version has no checksums.
    """
    known: dict[str, str] = {}
    for path in sorted((folder / CHECKSUMS).glob("*.json")):
        known |= checksums.read_json(path).get("files", {})
    own = sorted(known)[jax.process_index() :: jax.process_count()]
    for name, found in zip(own, checksums.of_files(folder / name for name in own), strict=True):
        if found != known[name]:
            raise _Damaged(f"{name} is not as it was written")


def _read_metadata(folder: Path) -> dict[str, Any]:
    try:
        metadata = ocp.metadata(folder).custom_metadata
    except Exception as error:  # whatever a damaged file makes a library raise
        lack = files.find_lack(error)
        if lack:
            raise InputError(f"{folder}: cannot be read ({lack}).") from error
        raise _Damaged(files.describe(error)) from error
    if not isinstance(metadata, dict) or not isinstance(metadata.get("stream"), dict):
        raise _Damaged("its metadata is not there")
    return metadata


def _load(folder: Path, abstract: Any) -> Any:
    """The arrays; each process reads its own, and waits for no other, which may have failed."""
    context = ocp.Context()
    if jax.process_count() > 1:
        process = jax.process_index()
        context.multiprocessing_options.primary_host = process
        context.multiprocessing_options.active_processes = {process}
        context.multiprocessing_options.barrier_sync_key_prefix = f"process{process}"
    with context:
        return ocp.load(folder, abstract)


def _check_shapes(folder: Path, stored: Any, wanted: dict[str, list]) -> None:
    """Raises `InputError` if a checkpoint holds other arrays than the network has now."""
    if not isinstance(stored, dict):
        return  # of an earlier version
    for name in dict.fromkeys((*wanted, *stored)):
        have, want = stored.get(name), wanted.get(name)
        if have != want and want != []:
            raise InputError(
                f"{folder}: does not fit this network: '{name}' is {_shape(have)} in the "
                f"checkpoint and {_shape(want)} in the network, so it cannot be resumed from."
            )


def _shape(about: list | None) -> str:
    return "absent" if about is None else f"{about[1]} {tuple(about[0])}"


class _NotOrbax(logging.Filter):
    """Drops Orbax's own reports; what fails is raised, and told by this module."""

    def filter(self, log: logging.LogRecord) -> bool:
        return "orbax" not in Path(log.pathname).parts


def _quieten() -> None:
    for logger in (logging.getLogger("absl"), logging.getLogger()):
        if not any(isinstance(known, _NotOrbax) for known in logger.filters):
            logger.addFilter(_NotOrbax())
