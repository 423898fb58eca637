"""How good units are: whether they stay when the sound changes, and whether they tell phones.

Letters: t frames of a recording, n frames of all recordings.
"""

from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein

from spirit_jax.units import dedup


def unit_edit_distance(clean_t: np.ndarray, changed_t: np.ndarray) -> float:
    """Edits from a recording's units to those of it changed, per 100 units of the former.

    Repeats are dropped from both. The measure of arXiv 2209.15483 (section 3.1), which takes its
    mean over recordings. No units on either side are 0 apart; any from none are 100.
    """
    clean, changed = (units_t[dedup(units_t)] for units_t in (clean_t, changed_t))
    if not len(clean):
        return 100.0 if len(changed) else 0.0
    return 100.0 * Levenshtein.distance(clean.tolist(), changed.tolist()) / len(clean)


def phone_probe(
    train_units_n: np.ndarray,
    train_phones_n: np.ndarray,
    test_units_n: np.ndarray,
    test_phones_n: np.ndarray,
) -> float:
    """Share of test frames whose phone is the one that their unit most often has in training.

    It is what a linear classifier of one-hot units comes to. A unit that training lacks stands for
    the phone that is most frequent there.

    Args:
      train_units_n, test_units_n: integers from 0, a unit a frame.
      train_phones_n, test_phones_n: names or numbers, as many.

    Returns:
      0 to 1.
    """
    names, train_n = np.unique(train_phones_n, return_inverse=True)
    units = int(max(np.max(train_units_n), np.max(test_units_n))) + 1
    counts_up = np.zeros((units, len(names)), np.int64)
    np.add.at(counts_up, (train_units_n, train_n), 1)
    best_u = np.where(counts_up.any(axis=1), counts_up.argmax(axis=1), counts_up.sum(0).argmax())
    return float(np.mean(names[best_u[test_units_n]] == np.asarray(test_phones_n)))


def labels_at_frames(
    spans: Sequence[tuple[str, float, float]],
    frames: int,
    rate: float = 25.0,
    center: float = 0.0225,
    nothing: str = "",
) -> np.ndarray:
    """What is said in the middle of every frame.

    Args:
      spans: (label, start, end) in seconds, in order, without overlap.
      frames: how many there are.
      rate: of frames, a second.
      center: in seconds, of the first frame: half of what it sees (22.5 ms for the release's).
      nothing: the label of a frame that is in no span.
    """
    times_t = center + np.arange(frames) / rate
    found_t = np.full(frames, nothing, dtype=object)
    for label, start, end in spans:
        found_t[(times_t >= start) & (times_t < end)] = label
    return found_t.astype(str)
