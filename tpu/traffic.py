"""Counts the bytes that a program compiled by XLA for a TPU reads from the chip's memory (HBM)."""

import math
import re

from .estimate import WIDTHS, computations, declared_bytes, visits

# Operations that read nothing themselves: names of values, control flow, and the ends of
# asynchronous operations, which are counted at their start.
WITHOUT_READS = ("tuple", "get-tuple-element", "parameter", "constant", "bitcast", "iota")
WITHOUT_READS += (
    "while",
    "conditional",
    "call",
    "optimization-barrier",
    "after-all",
    "partition-id",
)
SLICES = ("slice", "dynamic-slice", "gather", "slice-start")
OPERATION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\(([^)]*)\)")
ARRAY = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\](\{[^}]*\})?")


def bytes_read(hlo: str) -> int:
    """Bytes that a step reads from HBM; arrays in the chip's other memories (S(1), ...) are free.

    Args:
      hlo: from `compiled.as_text()`. A loop without a known number of iterations counts once.

    Returns:
      The bytes. Of slices and gathers, only what they take out counts; of updates in place, only
      what they write, or half of the bytes that a kernel declares.
    """
    bodies, entry = computations(hlo)
    parsed = {name: [OPERATION.match(line) for line in lines] for name, lines in bodies.items()}
    program = {
        name: [(*match.groups()[:3], _names(match[4]), match.string) for match in matches if match]
        for name, matches in parsed.items()
    }
    total = 0
    for name, times in visits(bodies, entry):
        shapes = {result: shape for result, shape, *_ in program[name]}
        for operation in program[name]:
            for index, operand in enumerate(operation[3]):
                size = _size(shapes.get(operand, ""))
                total += times * _read(program, operation, index, size)
    return total


def _read(program: dict, operation: tuple, index: int, size: int) -> int:
    """Bytes that an operation reads of an operand of `size` bytes in HBM."""
    _, shape, kind, _, line = operation
    if size == 0 or kind in WITHOUT_READS or kind.endswith(("-done", "-update")):
        return 0
    if kind in SLICES and index == 0:
        # The shape of "slice-start" has its operand, the slice, and a flag.
        parts = [_size(part, any_memory=True) for part in _arrays(shape)]
        return min(size, parts[1] if kind == "slice-start" else sum(parts))
    if kind == "dynamic-update-slice" and index == 0:
        return 0
    if kind == "custom-call" and (declared := declared_bytes(line)):
        return min(size, declared // 2)  # it writes as much as it reads
    called = re.search(r"calls=%?([\w.\-]+)", line)
    if kind != "fusion" or not called:
        return size
    inside = program[called[1]]
    parameter = next(o[0] for o in inside if o[2] == "parameter" and f"parameter({index})" in o[4])
    return min(size, _read_inside(program, inside, parameter, size))


def _read_inside(program: dict, inside: list, value: str, size: int) -> int:
    total = 0
    for operation in inside:
        for index, operand in enumerate(operation[3]):
            if operand != value:
                continue
            if _is_view(program, operation):
                total += _read_inside(program, inside, operation[0], size)
            else:
                total += _read(program, operation, index, size)
    return total


def _is_view(program: dict, operation: tuple) -> bool:
    """Whether an operation inside a fusion gives its operand another shape, and reads nothing."""
    called = re.search(r"calls=%?([\w.\-]+)", operation[4])
    if operation[2] == "fusion" and called:
        return {inside[2] for inside in program[called[1]]} == {"parameter", "bitcast"}
    return operation[2] == "bitcast"


def _names(operands: str) -> list[str]:
    return re.findall(r"%([\w.\-]+)", operands)


def _arrays(shape: str) -> list[str]:
    return [match[0] for match in ARRAY.finditer(shape)]


def _size(shape: str, any_memory: bool = False) -> int:
    """Bytes of the arrays of a shape that are in HBM."""
    return sum(
        WIDTHS[kind] * math.prod(int(n) for n in dims.split(",") if n)
        for kind, dims, layout in ARRAY.findall(shape)
        if kind in WIDTHS and (any_memory or "S(" not in layout)
    )
