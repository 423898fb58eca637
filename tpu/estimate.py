"""Estimates the time of a program that XLA compiled for a TPU.

The TPU compiler annotates most operations with `estimated_cycles`. Their sum over all loop
iterations, divided by the clock rate, ranks programs well; it is an estimate, not a measurement.
Attention kernels have no annotation and are assumed to reach half of the peak. Synchronous
collectives are assumed to run at the bandwidth of the interconnect, and reductions over several
slices at that of the data centre network, after the rest of the step.
"""

import dataclasses
import math
import re

WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
WIDTHS |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
DCN = "all-reduce over slices"
KERNEL_SHARE = 0.5  # fraction of the peak that attention kernels are assumed to reach


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU chip, with Google's published numbers.

    Attributes:
      hbm_bytes: memory for programs, as reported by the compiler.
      peak_flops: bfloat16 operations a second.
      hertz: clock rate of estimated cycles.
      ici_bytes: bytes a second over all links of the chip.
      dcn_bytes: bytes a second of the data centre network, a chip's share of what its host sends.
    """

    hbm_bytes: int
    peak_flops: float
    hertz: float
    ici_bytes: float
    dcn_bytes: float


GIB = 1 << 30
MAX_CHIPS = 1 << 14  # of a slice; the largest, of v5p, has 8960
CHIPS = {
    "v5e": Chip(int(15.75 * GIB), 197e12, 1.503e9, 180e9, 3.125e9),
    "v5p": Chip(int(95.74 * GIB), 459e12, 1.751e9, 540e9, 6.25e9),
    "v6e": Chip(int(31.25 * GIB), 918e12, 1.751e9, 360e9, 12.5e9),
}


@dataclasses.dataclass
class Collective:
    """The collectives of one kind in a step, per device.

    Attributes:
      calls: number of calls.
      bytes: of the whole arrays: outputs of gathers, inputs of reductions.
    """

    calls: int = 0
    bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimate of a step.

    Attributes:
      cycle_seconds: time of operations with estimated cycles.
      kernel_seconds: time of attention kernels.
      collective_seconds: time of synchronous collectives in a slice.
      dcn_seconds: time of reductions over slices.
      kernel_calls: number of calls of kernels.
      copied_bytes: what kernels without arithmetic declare to read and write.
      stacked_gathers: number of gathers of parameters of all layers at once; there should be none.
      collectives: by kind; the kinds of asynchronous collectives, which overlap with matmuls, end
        with "-start", and `DCN` is the kind of reductions over slices.
    """

    cycle_seconds: float
    kernel_seconds: float
    collective_seconds: float
    dcn_seconds: float
    kernel_calls: int
    copied_bytes: int
    collectives: dict[str, Collective]
    stacked_gathers: int

    @property
    def seconds(self) -> float:
        """The sum of all parts."""
        waits = self.collective_seconds + self.dcn_seconds
        return self.cycle_seconds + self.kernel_seconds + waits


def computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by name, and the name of the entry computation."""
    bodies: dict[str, list[str]] = {}
    entry, lines = "", None
    for line in hlo.splitlines():
        if line == "}":
            lines = None
        elif lines is not None:
            lines.append(line)
        elif match := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            lines = bodies.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
    return bodies, entry


def estimate(hlo: str, chip: Chip, kernel_flops: float, layers: int, slices: int = 1) -> Estimate:
    """Estimates the time of a compiled step.

    Args:
      hlo: from `compiled.as_text()`.
      chip: the chip that it was compiled for.
      kernel_flops: floating-point operations of the attention kernels of a step on a device.
      layers: number of layers, the first dimension of stacked parameters.
      slices: number of slices.

    Returns:
      The estimate.
    """
    bodies, entry = computations(hlo)
    cycles, kernels, copied, moved, stacked = 0.0, 0, 0, {}, 0
    of_all_layers = re.compile(rf"= \(?\w+\[{layers},\d+,\d+.* all-gather(-start)?\(")
    for name, times in visits(bodies, entry):
        for line in bodies[name]:
            if match := re.search(r'"estimated_cycles":"(\d+)"', line):
                cycles += times * int(match[1])
            if 'custom_call_target="tpu_custom_call"' in line:
                kernels += times
                copied += times * declared_bytes(line)
            stacked += bool(of_all_layers.search(line))
            if collective := _collective(line, bodies):
                kind, size = collective
                total = moved.setdefault(kind, Collective())
                total.calls += times
                total.bytes += times * size
    waits = sum(
        # An all-reduce is a reduce-scatter and an all-gather.
        total.bytes * (2 if kind == "all-reduce" else 1)
        for kind, total in moved.items()
        if kind in COLLECTIVES
    )
    # In a ring of slices, each sends its sums to the next one, and then the totals.
    sent = moved.get(DCN, Collective()).bytes * 2 * (slices - 1) / slices
    return Estimate(
        cycles / chip.hertz,
        kernel_flops / (KERNEL_SHARE * chip.peak_flops),
        waits / chip.ici_bytes,
        sent / chip.dcn_bytes,
        kernels,
        copied,
        moved,
        stacked,
    )


def declared_bytes(line: str) -> int:
    """Bytes that a kernel without arithmetic declares to read and write; 0 for another operation.

    Args:
      line: of the operation.
    """
    match = re.search(r'"cost_estimate":\{"flops":"0",[^}]*"bytes_accessed":"(\d+)"', line)
    return int(match[1]) if match else 0


def visits(bodies: dict[str, list[str]], entry: str):
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
    if operation == "send" and 'handler_name="xla_megascale_runtime"' in line:
        return DCN, _sizes(shape)[0]
    plain = operation.removesuffix("-start")
    if plain in COLLECTIVES:
        # The shape of a "-start" operation has its operands, then its results.
        sizes = _sizes(shape)
        whole = max(sizes) if operation != plain else sum(sizes)
        return operation, whole * (_group_size(line) if plain == "reduce-scatter" else 1)
    called = re.search(r"calls=%?([\w.\-]+)", line)
    if operation != "fusion" or not called:
        return None
    inside = bodies.get(called[1], [])
    if called[1].startswith("all-reduce-scatter"):  # a fused reduce-scatter
        inputs = (text.split(" parameter(")[0] for text in inside if " parameter(" in text)
        return "reduce-scatter", sum(sum(_sizes(text)) for text in inputs)
    if name.startswith("async-collective-start"):  # overlaps with matmuls
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
    """Bytes of each array of a shape, which may be a tuple."""
    return [
        WIDTHS[kind] * math.prod(int(n) for n in dims.split(",") if n)
        for kind, dims in re.findall(r"\b([a-z]+\d+|pred)\[([\d,]*)\]", shape)
        if kind in WIDTHS
    ]
