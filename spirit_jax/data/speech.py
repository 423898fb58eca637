"""Batches of recordings, for the trainings of the speech networks.

What a row of a step is made of is a function of the seed and of the row's index alone, so that the
place in the stream is one number and the order does not depend on the number of hosts.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from spirit_jax.data.configs import SpeechDataConfig
from spirit_jax.data.manifest import Item, read_source
from spirit_jax.errors import InputError, InputWarning

Row = dict[str, np.ndarray]


def read_items(sources: Sequence[str]) -> list[Item]:
    """The recordings of manifests and folders.

    Raises:
      InputError: there are none, or one cannot be used.
    """
    found = []
    for source in sources:
        silent = 0
        for item in read_source(source):
            if item.problem:
                raise InputError(f"{source}: {item.id}: {item.problem}")
            if item.audio is not None:
                found.append(item)
            silent += item.audio is None
        if silent:
            reason = f"{silent} items are text without a recording, and are left out."
            warnings.warn(f"{source}: {reason}", InputWarning, stacklevel=2)
    if not found:
        raise InputError(f"There are no recordings in {', '.join(sources) or 'no sources'}.")
    return found


def draw_items(items: Sequence[Item], limit: int, seed: int) -> list[Item]:
    """`limit` of the items drawn at random, in their order; all for 0."""
    if not 0 < limit < len(items):
        return list(items)
    drawn = np.random.default_rng(seed).choice(len(items), limit, replace=False)
    return [items[place] for place in sorted(drawn)]


class SpeechStream(Iterator[Row]):
    """One host's rows of each step; endless, shuffled anew every epoch."""

    def __init__(
        self,
        items: Sequence[Any],
        make: Callable[[Any, np.random.Generator], Row],
        config: SpeechDataConfig,
        rows: Sequence[int] | None = None,
    ):
        """Nothing is read yet.

        Args:
          items: what rows are made of.
          make: the arrays of one row, the shapes of which do not change.
          config: says how many rows a step has, and the seed.
          rows: of a step, those that are this host's; all by default.
        """
        self._rows = range(config.batch_rows) if rows is None else rows
        self._batch_rows, self._step = config.batch_rows, 0
        source = grain.MapDataset.source(items).seed(config.seed)
        self._samples = source.shuffle().repeat().random_map(make)

    def __next__(self) -> Row:
        first = self._step * self._batch_rows
        made = [self._samples[first + row] for row in self._rows]
        self._step += 1
        return stack(made)

    def get_state(self) -> dict[str, Any]:
        """Where the stream stands."""
        return {"step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where a state was taken, on this or another number of hosts."""
        self._step = state["step"]


def stack(rows: Sequence[Row]) -> Row:
    """Rows as a batch, every array with a leading axis of rows."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
