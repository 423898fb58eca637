"""Limits of the numbers in network configs.

A config file may be damaged or malicious. Its numbers are checked when the config is created,
before anything is allocated or traced. The limits are far above the sizes of known networks.
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
    """Raises an `InputError` unless a value is a valid random seed."""
    minimum, maximum = SEED
    is_whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not is_whole or not minimum <= seed <= maximum:
        raise InputError(
            f"seed is {str(seed)[:40]}; expected a whole number from {minimum} to {maximum}."
        )


def may_be_zero(limits: Limits) -> Limits:
    """The same limits, but 0 is allowed (for a network without this part)."""
    return type(limits[1])(0), limits[1]


def check_numbers(config: Any, **limits: Limits) -> None:
    """Checks the numbers of a network config, its booleans and its `precision`.

    Args:
      config: a dataclass object.
      limits: (smallest, largest) value by field name; two ints for a field of whole numbers. All
        numbers of a tuple are checked. None is accepted if it is the field's default.

    Raises:
      InputError: a number has the wrong type, is not finite, or is out of its limits.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    for name, (minimum, maximum) in limits.items():
        if fields[name].default is None and getattr(config, name) is None:
            continue
        numbers = getattr(config, name)
        if isinstance(numbers, tuple | list) and fields[name].type in (int, float, "int", "float"):
            raise InputError(f"{name} is {str(numbers)[:40]}; expected one number.")
        for value in _numbers(name, numbers):
            whole = isinstance(maximum, int)
            # `type`, since a bool is an instance of int.
            fits = type(value) is int or (not whole and isinstance(value, float))
            if not fits or not math.isfinite(value) or not minimum <= value <= maximum:
                kind = "a whole number" if whole else "a number"
                raise InputError(
                    f"{name} is {str(value)[:40]}; expected {kind} from {minimum} to {maximum}."
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
            raise InputError(f"{name} has {len(value)} items; at most {MAX_ITEMS} are allowed.")
        for item in value:
            yield from _numbers(name, item)
    else:
        yield value
