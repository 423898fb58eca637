"""Damage for the fuzzers: mutants of bytes, texts and JSON values, each from a seed.

A fuzzer checks every mutant of a valid input: the result must be right, or an `InputError`.

    @seeds
    def test_damaged_manifests(seeds, tmp_path):
        for seed in seeds:
            path.write_bytes(mutate_bytes(VALID, seed))
            result = attempt(lambda: read(path), seed)  # None after an InputError
            assert result is None or is_right(result)
"""

import contextlib
import copy
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from marks import slow

from spirit_jax.errors import InputError

MAX_SECONDS = 20  # for one mutant; longer is a hang

seeds = pytest.mark.parametrize("seeds", [range(50), slow(range(50, 20_000))], ids=str)

STRINGS = (
    "",
    " ",
    "\x00",
    "\ufeff",
    "\u2028",
    "\ud83d",  # half a surrogate pair
    "e\u0301",
    "\u0130",
    "../../x",
    "[Hu5][Speech]",
    "NaN",
    "x" * 5_000,
    "-1",
    "²",
)
VALUES = (
    *STRINGS,
    None,
    True,
    0,
    -1,
    10**30,
    -(10**30),
    0.5,
    1e300,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    {"": None},
)


def attempt(call: Callable[[], Any], seed: int) -> Any:
    """The result of `call`, or None after an `InputError`.

    Args:
      call: reads the mutant.
      seed: of the mutant, for the message if the call fails otherwise or takes too long.

    Raises:
      AssertionError: any other exception, or more than `MAX_SECONDS`.
    """
    try:
        with time_limit(MAX_SECONDS):
            return call()
    except InputError as error:
        assert str(error).strip(), f"seed {seed}: the error has no message"
        return None
    except Exception as error:
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises a `TimeoutError` after `seconds`; works only in the main thread."""

    def stop(*_):
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def mutate_bytes(data: bytes, seed: int) -> bytes:
    """Data with 1 to 4 errors: bits flipped, bytes set, deleted, inserted, repeated, cut off."""
    rng = random.Random(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = _damage_bytes(data, rng)
    return data


def mutate_text(text: str, seed: int) -> str:
    """A text with 1 to 4 errors: parts deleted, repeated, reversed, or unusual ones inserted."""
    rng = random.Random(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        start, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        end = min(end, start + rng.choice((1, 4, 64)))
        piece = text[start:end]
        new = rng.choice(("", piece * 2, piece[::-1], rng.choice(STRINGS), str(rng.random())))
        text = text[:start] + new + text[end:]
    return text


def mutate_json(value: Any, seed: int) -> Any:
    """A JSON value with 1 to 4 of its parts replaced, deleted, repeated or renamed."""
    rng = random.Random(seed)
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(value))
        if not places:
            return rng.choice(VALUES)
        holder, key = rng.choice(places)
        change = rng.choice(("replace", "replace", "delete", "repeat", "rename"))
        if change == "delete":
            del holder[key]
        elif change == "repeat" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif change == "rename" and isinstance(holder, dict):
            holder[rng.choice(STRINGS)] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(list or object, index or key) of every part of a JSON value."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _damage_bytes(data: bytes, rng: random.Random) -> bytes:
    # Headers are short and matter most: half of the damage is in the first 256 bytes.
    end = min(len(data), 256) if rng.random() < 0.5 else len(data)
    place = rng.randrange(end + 1)
    size = rng.choice((1, 1, 2, 4, 16, 256))
    before, piece, after = data[:place], data[place : place + size], data[place + size :]
    match rng.choice(("flip", "set", "delete", "insert", "repeat", "cut")):
        case "flip":
            mask = 1 << rng.randrange(8)
            piece = bytes([piece[0] ^ mask]) + piece[1:] if piece else piece
        case "set":
            piece = bytes([rng.choice((0, 0x7F, 0x80, 0xFF, rng.randrange(256)))]) * len(piece)
        case "delete":
            piece = b""
        case "insert":
            piece = rng.randbytes(size) + piece
        case "repeat":
            piece = piece * 2
        case "cut":
            return before
    return before + piece + after
