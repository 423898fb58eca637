"""Checkpoints of a run: parameters, optimiser and data stream as one unit, through Orbax."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp

from spirit_jax.errors import InputError
from spirit_jax.training.step import TrainState


class Checkpoints:
    """The checkpoints in a folder; the newest whole one counts.

    Saving goes on in the background; `close` waits for it.
    """

    def __init__(self, folder: str | Path, keep: int):
        """`keep`: how many of the newest are kept."""
        self._folder = Path(folder).absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._checkpointer = ocp.training.Checkpointer(
            str(self._folder),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def save(self, state: TrainState, stream: dict[str, Any]) -> None:
        """Saves the state after a step, with where the data stream stands then.

        Raises:
          InputError: this or the save before could not be written (a full disk).
        """
        step = int(state.step)
        with self._writing():
            self._checkpointer.wait()
            latest = self._checkpointer.latest
            if latest is None or latest.step < step:
                self._checkpointer.save_async(
                    step, state, force=True, custom_metadata={"stream": stream}
                )

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest whole checkpoint, placed as `abstract` says; None if there is none.

        One that cannot be read is passed over, and named on standard error.

        Raises:
          InputError: there are checkpoints, and none can be read.
        """
        found = sorted(self._checkpointer.checkpoints, key=lambda one: one.step, reverse=True)
        for one in found:
            try:
                state = self._checkpointer.load(one.step, abstract)
                return state, self._checkpointer.metadata(one.step).custom_metadata["stream"]
            except Exception as error:  # whatever a damaged file makes a library raise
                reason = str(error).splitlines()[0][:200]
                print(f"checkpoint {one.step} cannot be read: {reason}", file=sys.stderr)
        if found:
            raise InputError(f"{self._folder}: none of its {len(found)} checkpoints can be read.")
        return None

    def close(self) -> None:
        """Waits until all is on disk; raises `InputError` if it could not be written."""
        with self._writing():
            self._checkpointer.wait()
            self._checkpointer.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the library has no one kind for what a disk does
            reason = str(error).strip().splitlines()[0][:200]
            raise InputError(
                f"{self._folder}: a checkpoint cannot be written ({reason}); the ones before are "
                "whole, and the run goes on from the newest of them."
            ) from error


def abstract_state(state_shapes: TrainState, shardings: TrainState) -> TrainState:
    """What to restore: shapes and dtypes, each with its place."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state_shapes,
        shardings,
    )
