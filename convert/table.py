"""Conversion tables: rules that map source tensors to parameters, with a change of axes.

The table is strict: unknown source keys, missing or duplicate parameters and wrong shapes are
errors that name the key or parameter.
"""

import dataclasses
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from spirit_jax.checkpoint import flatten, unflatten
from spirit_jax.errors import InputError

_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxstring, _repr.maxother = 2, 60, 60


def show(value: Any) -> str:
    """A short representation of a value from a file, for messages."""
    return _repr.repr(value)


def keep(array: np.ndarray) -> np.ndarray:
    """The array, unchanged."""
    return array


def transpose(array: np.ndarray) -> np.ndarray:
    """Reverses all axes: torch's Linear (out, in) and Conv1d (out, in, k) to Flax's kernels."""
    return np.ascontiguousarray(array.T)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Maps source keys to parameters.

    Attributes:
      source: a regular expression for the whole key.
      target: a `/`-separated parameter path that may use the groups of `source` (`\\1`); None for
        keys that are not needed.
      turn: changes the axes of the array.
    """

    source: str
    target: str | None
    turn: Callable[[np.ndarray], np.ndarray] = keep


@dataclasses.dataclass(frozen=True)
class Step:
    """A planned conversion of a tensor: source key, parameter path, and change of axes."""

    source: str
    target: str
    turn: Callable[[np.ndarray], np.ndarray]


def plan(
    keys: Sequence[str], rules: Sequence[Rule], targets: Sequence[str], where: str
) -> list[Step]:
    """Plans the conversion of all tensors.

    Args:
      keys: names of the source tensors.
      rules: the table.
      targets: parameter paths.
      where: the file or folder, for messages.

    Returns:
      A step for each parameter, in the order of `targets`.

    Raises:
      InputError: a key is unknown, or a parameter is missing, duplicate or unknown.
    """
    steps: dict[str, Step] = {}
    known = set(targets)
    for key in keys:
        rule, match = find_rule(key, rules, where)
        if rule.target is None:
            continue
        target = match.expand(rule.target)
        if target in steps:
            raise InputError(f"{where}: '{steps[target].source}' and '{key}' both give '{target}'.")
        if target not in known:
            raise InputError(f"{where}: '{key}' gives '{target}', which the config does not have.")
        steps[target] = Step(key, target, rule.turn)
    missing = [target for target in targets if target not in steps]
    if missing:
        raise InputError(f"{where}: no tensor gives the parameter '{missing[0]}'.")
    return [steps[target] for target in targets]


def run(
    tensors: Mapping[str, np.ndarray],
    steps: Sequence[Step],
    abstract: Mapping[str, Any],
    where: str,
) -> Iterator[tuple[str, np.ndarray]]:
    """Reads and converts one array after another.

    Args:
      tensors: the source tensors.
      steps: from `plan`.
      abstract: tree of the parameters' shapes.
      where: the file or folder, for messages.

    Yields:
      (parameter path, array).

    Raises:
      InputError: an array has the wrong shape.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(abstract).items()}
    for step in steps:
        source = tensors[step.source]
        try:
            array = step.turn(source)
        except (ValueError, IndexError) as error:
            raise InputError(
                f"{where}: '{step.source}' has shape {source.shape}, which cannot become "
                f"{shapes[step.target]}, as the config asks for."
            ) from error
        if array.shape != shapes[step.target]:
            raise InputError(
                f"{where}: '{step.source}' has shape {source.shape}, which gives {array.shape} "
                f"where the config asks for {shapes[step.target]}."
            )
        _check_finite(array, f"{where}: '{step.source}'")
        yield step.target, array


def _check_finite(array: np.ndarray, name: str) -> None:
    """Raises `InputError` for weights that are NaN or infinite in float32, the networks' dtype."""
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(np.float32) if array.dtype == np.float64 else array)
    if not finite.all():
        raise InputError(
            f"{name} has NaN, infinity or numbers beyond float32 among its weights; is the "
            "checkpoint damaged, or of a training that diverged?"
        )


def convert(
    tensors: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    abstract: Mapping[str, Any],
    where: str,
) -> dict[str, Any]:
    """Converts all tensors.

    Args:
      tensors: the source tensors.
      rules: the table.
      abstract: tree of the parameters' shapes.
      where: the file or folder, for messages.

    Returns:
      The parameter tree.

    Raises:
      InputError: see `plan` and `run`.
    """
    steps = plan(list(tensors), rules, list(flatten(abstract)), where)
    return unflatten(dict(run(tensors, steps, abstract, where)))


def batches(
    arrays: Iterator[tuple[str, np.ndarray]], max_bytes: int = 256 << 20
) -> Iterator[dict[str, Any]]:
    """Collects (path, array) pairs into trees of about `max_bytes`, to be written in turn."""
    leaves: dict[str, np.ndarray] = {}
    for path, array in arrays:
        leaves[path] = array
        if sum(leaf.nbytes for leaf in leaves.values()) >= max_bytes:
            yield unflatten(leaves)
            leaves = {}
    if leaves:
        yield unflatten(leaves)


def select(state: Mapping[str, Any], rules: Sequence[Rule]) -> dict[str, Any]:
    """The entries of a checkpoint without those that a rule marks as not needed."""
    skipped = [rule for rule in rules if rule.target is None]
    return {
        key: value
        for key, value in state.items()
        if not any(re.fullmatch(rule.source, str(key)) for rule in skipped)
    }


def check_count(keys: Iterable[str], pattern: str, count: int, where: str, what: str) -> None:
    """Checks the number of layers or blocks in a config against the names in a checkpoint.

    Call it before a network of the config's size is traced or allocated.

    Args:
      keys: names in the checkpoint.
      pattern: regular expression for the start of a layer's names; group 1 is the layer's number.
      count: number of layers in the config.
      where: the file or folder, for messages.
      what: name of the layers in the plural, for messages.

    Raises:
      InputError: the checkpoint has fewer layers.
    """
    matches = (re.match(pattern, str(key)) for key in keys)
    numbers = {int(match[1]) for match in matches if match and len(match[1]) < 10}
    if max(numbers, default=-1) + 1 < count:
        raise InputError(
            f"{where}: its config asks for {count} {what}, but its tensors have "
            f"{max(numbers, default=-1) + 1}."
        )


def fold_weight_norm(
    tensors: Mapping[str, np.ndarray], dim: int, where: str
) -> dict[str, np.ndarray]:
    """Replaces the two tensors of weight normalisation over `dim` by the weight g v / |v|.

    Both naming schemes of torch are supported: `X.weight_g` with `X.weight_v`, and
    `X.parametrizations.weight.original0` with `original1`. `where` is the checkpoint's name.

    Raises:
      InputError: one of two tensors is missing, or their shapes do not match.
    """
    folded = {}
    for key, value in tensors.items():
        name, spelling = _split_weight_norm(key)
        if spelling is None:
            folded[key] = value
        elif spelling[0] == key[len(name) :]:
            direction_key = name + spelling[1]
            if direction_key not in tensors:
                raise InputError(f"{where}: '{key}' is there without '{direction_key}'.")
            v = tensors[direction_key]
            if v.ndim < 2 or value.ndim != v.ndim or value.size != v.shape[dim]:
                raise InputError(
                    f"{where}: '{key}' has shape {value.shape}, which does not match {v.shape} "
                    f"of '{direction_key}'."
                )
            with np.errstate(divide="ignore", invalid="ignore"):  # `run` names what is not finite
                folded[name + ".weight"] = v * (value / norm_over(v, dim))
        elif name + spelling[0] not in tensors:
            raise InputError(f"{where}: '{key}' is there without '{name + spelling[0]}'.")
    return folded


def norm_over(weight: np.ndarray, dim: int) -> np.ndarray:
    """The float32 norms of the parts of a weight along the axis `dim`; other axes have size 1."""
    axes = tuple(axis for axis in range(weight.ndim) if axis != dim % weight.ndim)
    return np.sqrt(np.sum(np.square(weight, dtype=np.float32), axis=axes, keepdims=True))


_SPELLINGS = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)


def _split_weight_norm(key: str) -> tuple[str, tuple[str, str] | None]:
    for spelling in _SPELLINGS:
        for suffix in spelling:
            if key.endswith(suffix):
                return key.removesuffix(suffix), spelling
    return key, None


def find_rule(key: str, rules: Sequence[Rule], where: str) -> tuple[Rule, re.Match]:
    """The first rule that matches a key, and its match.

    Args:
      key: name of a source tensor.
      rules: the table.
      where: the file or folder, for messages.

    Raises:
      InputError: no rule matches.
    """
    for rule in rules:
        match = re.fullmatch(rule.source, str(key))
        if match:
            return rule, match
    raise InputError(f"{where}: the key '{key}' is unknown.")
