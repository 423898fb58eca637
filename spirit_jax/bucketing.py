"""Runs a compiled function over items of many lengths, padded to a few shapes.

A function compiled by XLA has one shape. Items are padded to the next length of a short list and
gathered in rows, so that a folder of recordings compiles a handful of programs. The networks mask
what is padded, so results do not depend on it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from spirit_jax.errors import InputError

Item = tuple[np.ndarray, ...]


def as_list(batch: Any, what: str) -> list[Any]:
    """The items of a batch; raises `InputError` for one item in place of a batch.

    Args:
      batch: of items; a string, or bytes, is no batch of its letters.
      what: the items are, for the message: "prompts".
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
) -> list[np.ndarray]:
    """Applies `function` to every item.

    Args:
      function: compiled; takes the padded arrays of an item, each (rows, bucket, ...), then int32
        lengths (rows,), and returns (rows, n, ...) values and int32 counts of valid ones.
      items: tuples of arrays that share their first length, at most the last of `buckets`.
      buckets: the lengths that items are padded to, rising.
      rows_of: how many rows a batch of a bucket has, once there is more than one item; fewer are
        filled up with empty rows.

    Returns:
      The valid values of each item, in order.
    """
    groups: dict[int, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(bucket_of(len(item[0]), buckets), []).append(index)
    results: list[np.ndarray] = [np.empty(0)] * len(items)
    for bucket, members in sorted(groups.items()):
        rows = rows_of(bucket) if len(items) > 1 else 1
        for start in range(0, len(members), rows):
            batch = members[start : start + rows]
            lengths = np.zeros(rows, np.int32)
            lengths[: len(batch)] = [len(items[index][0]) for index in batch]
            padded = [_pad([items[i][k] for i in batch], rows, bucket) for k in _slots(items)]
            values, counts = (np.asarray(array) for array in function(*padded, lengths))
            for row, index in enumerate(batch):
                results[index] = values[row, : counts[row]]
    return results


def bucket_of(length: int, buckets: Sequence[int]) -> int:
    """The least bucket that holds `length`."""
    return next(bucket for bucket in buckets if bucket >= length)


def power_of_two(size: int, smallest: int) -> int:
    """The least power of two times `smallest` that holds `size`."""
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
