"""Runs a jitted function over items of many lengths, padded to a few shapes.

XLA compiles a function for each input shape. Items are padded to the next length in a short list
(a bucket) and batched, so that few shapes are compiled. Networks mask padding, so results do not
depend on it.
"""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from spirit_jax.errors import InputError

Item = tuple[np.ndarray, ...]


def as_list(batch: Any, what: str) -> list[Any]:
    """A batch as a list.

    Args:
      batch: an iterable of items; a string, bytes or a mapping is a single item.
      what: name of the items for the message, such as "prompts".

    Raises:
      InputError: `batch` is a single item.
    """
    if isinstance(batch, str | bytes | Mapping) or not isinstance(batch, Iterable):
        raise InputError(
            f"A list of {what} was expected, not {type(batch).__name__}; put it in []."
        )
    return list(batch)


def run(
    function: Callable[..., tuple[jax.Array, jax.Array]],
    items: Sequence[Item],
    buckets: Sequence[int],
    rows_of: Callable[[int], int],
    devices: int = 1,
) -> list[np.ndarray]:
    """Applies `function` to every item.

    The next batch is padded while the devices compute the one before.

    Args:
      function: jitted; takes padded arrays (rows, bucket, ...) and int32 lengths (rows,), and
        returns values (rows, n, ...) and int32 numbers of valid values (rows,).
      items: tuples of arrays of equal first length, at most that of the last bucket.
      buckets: lengths, ascending.
      rows_of: the number of rows of a device by bucket, if there are several items; smaller batches
        are padded with empty rows.
      devices: number of devices that share a batch.

    Returns:
      The valid values of each item, in order.
    """
    groups: dict[int, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(bucket_of(len(item[0]), buckets), []).append(index)
    results: list[np.ndarray] = [np.empty(0)] * len(items)
    pending: collections.deque[tuple[list[int], tuple[jax.Array, jax.Array]]] = collections.deque()

    def collect() -> None:
        batch, outputs = pending.popleft()
        values, counts = map(np.asarray, outputs)
        for row, index in enumerate(batch):
            results[index] = values[row, : counts[row]]

    for bucket, members in sorted(groups.items()):
        rows = (rows_of(bucket) if len(items) > 1 else 1) * devices
        for start in range(0, len(members), rows):
            batch = members[start : start + rows]
            lengths = np.zeros(rows, np.int32)
            lengths[: len(batch)] = [len(items[index][0]) for index in batch]
            padded = [_pad([items[i][k] for i in batch], rows, bucket) for k in _slots(items)]
            pending.append((batch, function(*padded, lengths)))
            if len(pending) == 2:
                collect()
    while pending:
        collect()
    return results


def bucket_of(length: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that is at least `length`."""
    return next(bucket for bucket in buckets if bucket >= length)


def power_of_two(size: int, smallest: int) -> int:
    """The smallest `smallest` * 2**n that is at least `size`."""
    while smallest < size:
        smallest *= 2
    return smallest


def _slots(items: Sequence[Item]) -> range:
    return range(len(items[0]))


def _pad(arrays: list[np.ndarray], rows: int, length: int) -> np.ndarray:
    padded = np.zeros((rows, length, *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in enumerate(arrays):
        padded[row, : len(array)] = array
    return padded
