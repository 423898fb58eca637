"""Batches of recordings, for training the speech networks.

A row is a function of the seed and its index only. So the position in the stream is one number, and
the order does not depend on the number of hosts.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from spirit_jax.data.configs import SpeechDataConfig
from spirit_jax.data.manifest import Item, read_source
from spirit_jax.errors import InputError, InputWarning, plural

Row = dict[str, np.ndarray]


def read_items(sources: Sequence[str]) -> list[Item]:
    """The recordings of manifests and folders.

    Raises:
      InputError: there are none, or one cannot be used.
    """
    recordings = []
    for source in sources:
        texts = 0
        for item in read_source(source):
            if item.problem:
                raise InputError(f"{source}: {item.id}: {item.problem}")
            if item.audio is not None:
                recordings.append(item)
            texts += item.audio is None
        if texts:
            reason = f"left out {plural(texts, 'item')} of text without a recording."
            warnings.warn(f"{source}: {reason}", InputWarning, stacklevel=2)
    if not recordings:
        raise InputError(f"There are no recordings in {', '.join(sources) or 'no sources'}.")
    return recordings


def draw_items(items: Sequence[Item], limit: int, seed: int) -> list[Item]:
    """Draws items at random without replacement, and keeps their order.

    Args:
      items: to draw from.
      limit: number of items to draw; 0 for all.
      seed: random seed.
    """
    if not 0 < limit < len(items):
        return list(items)
    indices = np.random.default_rng(seed).choice(len(items), limit, replace=False)
    return [items[i] for i in sorted(indices)]


class SpeechStream(Iterator[Row]):
    """An infinite iterator over the rows of one host, reshuffled every epoch."""

    def __init__(
        self,
        items: Sequence[Any],
        make: Callable[[Any, np.random.Generator], Row],
        config: SpeechDataConfig,
        rows: Sequence[int] | None = None,
    ):
        """Creates the stream; reads nothing yet.

        Args:
          items: one for each row of an epoch.
          make: (item, rng) to the arrays of a row, of fixed shapes.
          config: rows of a step, and the seed.
          rows: indices of this host's rows among the `batch_rows` of a step; all by default.
        """
        self._rows = range(config.batch_rows) if rows is None else rows
        self._batch_rows, self._step = config.batch_rows, 0
        source = grain.MapDataset.source(items).seed(config.seed)
        self._samples = source.shuffle().repeat().random_map(make)

    def __next__(self) -> Row:
        first = self._step * self._batch_rows
        rows = [self._samples[first + row] for row in self._rows]
        self._step += 1
        return stack(rows)

    def get_state(self) -> dict[str, Any]:
        """The position in the stream."""
        return {"step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state of `get_state`, also with another number of hosts."""
        self._step = state["step"]


def stack(rows: Sequence[Row]) -> Row:
    """A batch of rows: every array gets a leading axis."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
