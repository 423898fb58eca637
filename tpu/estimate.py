"""Reads a program that XLA compiled for a TPU: its cycles, attention kernels and collectives.

The TPU compiler writes its own `estimated_cycles` beside most operations. Summed through the loops,
over the clock, they rank programs well; they are an estimate, not a measurement. Attention kernels
carry no cycles and are counted at half of the peak; collectives that the compiler left synchronous
are counted at the rate of the interconnect.
"""

import dataclasses
import math
import re

WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
WIDTHS |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
KERNEL_SHARE = 0.5  # of the peak, that attention kernels are taken to reach


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU chip, from Google's published numbers.

    Attributes:
      hbm_bytes: memory that a program can use, as the compiler gives it.
      peak_flops: of bfloat16 matmuls, a second.
      hertz: clock that estimated cycles are of.
      ici_bytes: a second, over all links of the chip.
    """

    hbm_bytes: int
    peak_flops: float
    hertz: float
    ici_bytes: float


GIB = 1 << 30
CHIPS = {
    "v5e": Chip(int(15.75 * GIB), 197e12, 1.503e9, 180e9),
    "v5p": Chip(int(95.74 * GIB), 459e12, 1.751e9, 540e9),
    "v6e": Chip(int(31.25 * GIB), 918e12, 1.751e9, 360e9),
}


@dataclasses.dataclass
class Collective:
    """What collectives of one kind move in a step, a device: calls, and bytes of the whole arrays.

    The whole array is what a gather gives, and what a reduction is given.
    """

    calls: int = 0
    bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A step, by the compiler's own account.

    Attributes:
      cycle_seconds: of operations with estimated cycles.
      kernel_seconds: of attention kernels.
      collective_seconds: of synchronous collectives.
      kernel_calls: of attention kernels.
      stacked_gathers: gathers of parameters of all layers together, which there should be none of.
      collectives: by kind; asynchronous ones, which matmuls hide, with "-start" at the end.
    """

    cycle_seconds: float
    kernel_seconds: float
    collective_seconds: float
    kernel_calls: int
    collectives: dict[str, Collective]
    stacked_gathers: int

    @property
    def seconds(self) -> float:
        """All of it, one after another."""
        return self.cycle_seconds + self.kernel_seconds + self.collective_seconds


def computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by name, and the name of the entry."""
    found: dict[str, list[str]] = {}
    entry, lines = "", None
    for line in hlo.splitlines():
        if line == "}":
            lines = None
        elif lines is not None:
            lines.append(line)
        elif match := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            lines = found.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
    return found, entry


def estimate(hlo: str, chip: Chip, kernel_flops: float, layers: int) -> Estimate:
    """Adds up a compiled program.

    Args:
      hlo: what `compiled.as_text()` gives.
      chip: that it was compiled for.
      kernel_flops: floating-point operations of all attention kernels of a step, on one device.
      layers: of the model; parameters stacked for a scan have this first dimension.
    """
    bodies, entry = computations(hlo)
    cycles, kernels, moved, stacked = 0.0, 0, {}, 0
    of_all_layers = re.compile(rf"= \(?\w+\[{layers},\d+,\d+.* all-gather(-start)?\(")
    for name, times in _visits(bodies, entry):
        for line in bodies[name]:
            if match := re.search(r'"estimated_cycles":"(\d+)"', line):
                cycles += times * int(match[1])
            if 'custom_call_target="tpu_custom_call"' in line:
                kernels += times
            stacked += bool(of_all_layers.search(line))
            if found := _collective(line, bodies):
                kind, size = found
                total = moved.setdefault(kind, Collective())
                total.calls += times
                total.bytes += times * size
    waits = sum(
        # Every byte of an all-reduce is reduced on one device and then sent to all.
        total.bytes * (2 if kind == "all-reduce" else 1)
        for kind, total in moved.items()
        if kind in COLLECTIVES
    )
    return Estimate(
        cycles / chip.hertz,
        kernel_flops / (KERNEL_SHARE * chip.peak_flops),
        waits / chip.ici_bytes,
        kernels,
        moved,
        stacked,
    )


def _visits(bodies: dict[str, list[str]], entry: str):
    """(computation, times that a step runs it), through loops, calls and branches."""
    stack = [(entry, 1)]
    while stack:
        name, times = stack.pop()
        yield name, times
        for line in bodies[name]:
            if match := re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
                stack.append((match[2], times * _trips(line, bodies[match[1]])))
            elif match := re.search(
                r" (?:call|async-start)\(.*(?:to_apply|calls)=%?([\w.\-]+)", line
            ):
                stack.append((match[1], times))
            elif match := re.search(r" conditional\(.*branch_computations=\{([^}]*)\}", line):
                # Branches differ little in what this is used for: the first is counted.
                stack.append((match[1].split(",")[0].strip().lstrip("%"), times))


def _trips(line: str, condition: list[str]) -> int:
    if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(match[1])
    constants = [
        int(n) for text in condition for n in re.findall(r"s32\[\][^=]* constant\((\d+)\)", text)
    ]
    return max(constants, default=1)


def _collective(line: str, bodies: dict[str, list[str]]) -> tuple[str, int] | None:
    """(kind, bytes of the whole array) of a collective operation."""
    match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\(", line)
    if not match:
        return None
    name, shape, operation = match.groups()
    plain = operation.removesuffix("-start")
    if plain in COLLECTIVES:
        # What starts one gives its operands, then its results.
        sizes = _sizes(shape)
        whole = max(sizes) if operation != plain else sum(sizes)
        return operation, whole * (_group_size(line) if plain == "reduce-scatter" else 1)
    called = re.search(r"calls=%?([\w.\-]+)", line)
    if operation != "fusion" or not called:
        return None
    inside = bodies.get(called[1], [])
    if called[1].startswith("all-reduce-scatter"):  # how this compiler writes a reduce-scatter
        given = (text.split(" parameter(")[0] for text in inside if " parameter(" in text)
        return "reduce-scatter", sum(sum(_sizes(text)) for text in given)
    if name.startswith("async-collective-start"):  # its steps go on inside of matmuls
        for kind, size in filter(None, (_collective(text, {}) for text in inside)):
            return f"{kind}-start", size
    return None


def _group_size(line: str) -> int:
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    axes = dict(re.findall(r"'(axis_\d+)'=(\d+)", line))
    used = re.search(r"\{('axis_[^}]*)\}", line)
    return math.prod(int(axes[name]) for name in re.findall(r"axis_\d+", used[1])) if used else 1


def _sizes(shape: str) -> list[int]:
    """Bytes of each array of a shape, tuples taken apart."""
    return [
        WIDTHS[kind] * math.prod(int(n) for n in dims.split(",") if n)
        for kind, dims in re.findall(r"\b([a-z]+\d+|pred)\[([\d,]*)\]", shape)
        if kind in WIDTHS
    ]
