"""Counts the bytes that a program compiled by XLA for a TPU reads from the chip's memory (HBM)."""

import math
import re
from typing import NamedTuple

from .estimate import WIDTHS, computations, declared_bytes, visits

# Operations that read no memory themselves: other names or shapes of values, constants, and control
# flow, whose bodies are counted.
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


class _Operation(NamedTuple):
    """A line of a compiled program: `name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    operands: list[str]
    line: str


_Program = dict[str, list[_Operation]]  # by name of the computation


def bytes_read(hlo: str) -> int:
    """Bytes that a step reads from HBM, without arrays in other memories of the chip (S(1), ...).

    Args:
      hlo: from `compiled.as_text()`. A loop without a known number of iterations counts once.

    Returns:
      The bytes. A slice or gather counts only the values that it takes out of its operand. An
      update in place counts only the new values; for a kernel, half of the bytes that it declares.
    """
    bodies, entry = computations(hlo)
    parsed = {name: [OPERATION.match(line) for line in lines] for name, lines in bodies.items()}
    program = {
        name: [
            _Operation(*match.groups()[:3], _names(match[4]), match.string)
            for match in matches
            if match
        ]
        for name, matches in parsed.items()
    }
    total = 0
    for name, times in visits(bodies, entry):
        shapes = {operation.name: operation.shape for operation in program[name]}
        for operation in program[name]:
            for index, operand in enumerate(operation.operands):
                size = _size(shapes.get(operand, ""))
                total += times * _read(program, operation, index, size)
    return total


def _read(program: _Program, operation: _Operation, index: int, size: int) -> int:
    """Bytes that an operation reads of operand number `index`, which has `size` bytes in HBM."""
    opcode, line = operation.opcode, operation.line
    if size == 0 or opcode in WITHOUT_READS:
        return 0
    if opcode.endswith(("-done", "-update")):
        return 0  # parts of an asynchronous operation, which is counted at its start
    if opcode in SLICES and index == 0:
        # The shape of "slice-start" has its operand, the slice, and a flag.
        parts = [_size(part, any_memory=True) for part in _arrays(operation.shape)]
        return min(size, parts[1] if opcode == "slice-start" else sum(parts))
    if opcode == "dynamic-update-slice" and index == 0:
        return 0
    if opcode == "custom-call" and (declared := declared_bytes(line)):
        return min(size, declared // 2)  # it writes as much as it reads
    called = re.search(r"calls=%?([\w.\-]+)", line)
    if opcode != "fusion" or not called:
        return size
    inside = program[called[1]]
    parameter = next(
        each.name
        for each in inside
        if each.opcode == "parameter" and f"parameter({index})" in each.line
    )
    return min(size, _read_inside(program, inside, parameter, size))


def _read_inside(program: _Program, inside: list[_Operation], value: str, size: int) -> int:
    """Bytes of a value, or of views of it, that the operations inside a fusion read."""
    total = 0
    for operation in inside:
        for index, operand in enumerate(operation.operands):
            if operand != value:
                continue
            if _is_view(program, operation):
                total += _read_inside(program, inside, operation.name, size)
            else:
                total += _read(program, operation, index, size)
    return total


def _is_view(program: _Program, operation: _Operation) -> bool:
    """Whether an operation inside a fusion only gives its operand another shape."""
    called = re.search(r"calls=%?([\w.\-]+)", operation.line)
    if operation.opcode == "fusion" and called:
        return {inside.opcode for inside in program[called[1]]} == {"parameter", "bitcast"}
    return operation.opcode == "bitcast"


def _names(operands: str) -> list[str]:
    return re.findall(r"%([\w.\-]+)", operands)


def _arrays(shape: str) -> list[str]:
    return [match[0] for match in ARRAY.finditer(shape)]


def _size(shape: str, any_memory: bool = False) -> int:
    """Bytes of the arrays of a shape that are in HBM, or with `any_memory` of all of them."""
    return sum(
        WIDTHS[dtype] * math.prod(int(n) for n in dims.split(",") if n)
        for dtype, dims, layout in ARRAY.findall(shape)
        if dtype in WIDTHS and (any_memory or "S(" not in layout)
    )
