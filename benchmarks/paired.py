"""Times two implementations alternately, so that changes of a machine's load affect both."""

import statistics
import time
from collections.abc import Callable


def paired_ratio(
    ours: Callable[[], object], peer: Callable[[], object], pairs: int
) -> dict[str, float]:
    """Measures both implementations in pairs of calls.

    Args:
      ours: this package's implementation.
      peer: the implementation to compare with.
      pairs: number of calls of each, after one call to compile and warm up.

    Returns:
      "ours_seconds" and "peer_seconds", medians; "ratio", median of peer / ours over pairs, above 1
      if ours is faster.
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
