"""Times two implementations alternately, so that changes of a machine's load affect both."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path


def paired_ratio(
    ours: Callable[[], object],
    peer: Callable[[], object],
    pairs: int,
    warm_up: Callable[[], object] | None = None,
) -> dict[str, float]:
    """Measures both implementations in pairs of calls, and prints each pair to standard error.

    Args:
      ours: this package's implementation.
      peer: the implementation to compare with.
      pairs: number of calls of each, after the warm-up.
      warm_up: compiles and warms up; if not given, one call of each.

    Returns:
      "ours_seconds" and "peer_seconds", medians; "ratio", median of peer / ours over pairs, above 1
      if ours is faster.
    """
    if warm_up is None:
        ours(), peer()
    else:
        warm_up()
    timings = []
    for number in range(1, pairs + 1):
        a, b = _seconds(ours), _seconds(peer)
        timings.append((a, b))
        progress = f"pair {number} of {pairs}: {a:.1f} s and {b:.1f} s, ratio {b / a:.2f}"
        print(progress, file=sys.stderr, flush=True)
    return {
        "ours_seconds": statistics.median(a for a, _ in timings),
        "peer_seconds": statistics.median(b for _, b in timings),
        "ratio": statistics.median(b / a for a, b in timings),
    }


def cpu_name() -> str:
    """The CPU's name, its widest vector instructions and the number of cores that may be used."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = fields.get("flags", "").split()
    vectors = [label for flag, label in VECTORS.items() if flag in flags][:1]
    return ", ".join([name, *vectors, f"{os.cpu_count()} cores"])


VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}  # flags of /proc/cpuinfo, the widest first


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
