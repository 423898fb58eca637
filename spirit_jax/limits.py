"""Limits of the numbers in network configs.

A config may come from a file that somebody else wrote, or that is damaged. Its numbers are checked
when it is made, before anything is allocated or traced with them. The limits are far above those of
any known network.
"""

import dataclasses
import math
import numbers
from collections.abc import Iterator
from typing import Any

from spirit_jax.errors import InputError

Limits = tuple[float, float]

WIDTH = (1, 1 << 18)  # channels
LAYERS = (1, 256)
HEADS = (1, 1 << 12)
KERNEL = (1, 1 << 14)  # of a conv, and its stride
IDS = (1, 1 << 24)  # rows of an embedding, labels
EPSILON = (0.0, 1.0)  # of a norm
SEED = (0, (1 << 32) - 1)  # of random draws; JAX keeps 32 bits
SAMPLE_RATE = (100, 1_000_000)  # Hz
MAX_ITEMS = 1024  # of a list of numbers
PRECISIONS = ("default", "high", "highest", "bfloat16", "tensorfloat32", "float32")


def check_seed(seed: Any) -> None:
    """Raises an `InputError` unless a number can be the seed of random draws."""
    least, most = SEED
    is_whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not is_whole or not least <= seed <= most:
        raise InputError(
            f"seed is {str(seed)[:40]}; expected a whole number from {least} to {most}."
        )


def may_be_zero(limits: Limits) -> Limits:
    """The same limits for a number that is 0 where a network lacks the part."""
    return type(limits[1])(0), limits[1]


def check_numbers(config: Any, **limits: Limits) -> None:
    """Checks the numbers of a network config, its booleans and its `precision`.

    Args:
      config: a dataclass.
      limits: the least and the largest value of a field, whole numbers for a field of whole
        numbers. Of a field that is a tuple, every number in it; None passes
        where it is the field's default.

    Raises:
      InputError: a number is of another type, not finite, or out of its limits.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    for name, (least, most) in limits.items():
        if fields[name].default is None and getattr(config, name) is None:
            continue
        numbers = getattr(config, name)
        if isinstance(numbers, tuple | list) and fields[name].type in (int, float, "int", "float"):
            raise InputError(f"{name} is {str(numbers)[:40]}; expected one number.")
        for value in _numbers(name, numbers):
            whole = isinstance(most, int)
            # bool is an int to Python.
            fits = type(value) is int or (not whole and isinstance(value, float))
            if not fits or not math.isfinite(value) or not least <= value <= most:
                kind = "a whole number" if whole else "a number"
                raise InputError(
                    f"{name} is {str(value)[:40]}; expected {kind} from {least} to {most}."
                )
    for field in fields.values():
        value = getattr(config, field.name)
        if isinstance(field.default, bool) and not isinstance(value, bool):
            raise InputError(f"{field.name} is {str(value)[:40]}; expected true or false.")
    precision = getattr(config, "precision", PRECISIONS[0])
    if precision not in PRECISIONS:
        raise InputError(f"precision is '{precision}'; expected one of {', '.join(PRECISIONS)}.")


def _numbers(name: str, value: Any) -> Iterator[Any]:
    """A value, or the values in a tuple at any depth."""
    if isinstance(value, tuple | list):
        if len(value) > MAX_ITEMS:
            raise InputError(f"{name} has {len(value)} items; at most {MAX_ITEMS} are known.")
        for item in value:
            yield from _numbers(name, item)
    else:
        yield value
