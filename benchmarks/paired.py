"""Times two ways of doing one thing, turn about, so that a machine's swings hit both alike."""

import statistics
import time
from collections.abc import Callable


def paired_ratio(
    ours: Callable[[], object], peer: Callable[[], object], pairs: int
) -> dict[str, float]:
    """Seconds of both (medians) and the median of the pairs' ratios peer / ours.

    Both are called once before, to compile and to warm up. A ratio above 1 means that ours is
    faster.
    """
    ours(), peer()
    timings = [(_seconds(ours), _seconds(peer)) for _ in range(pairs)]
    return {
        "ours_seconds": statistics.median(a for a, _ in timings),
        "peer_seconds": statistics.median(b for _, b in timings),
        "ratio": statistics.median(b / a for a, b in timings),
    }


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
