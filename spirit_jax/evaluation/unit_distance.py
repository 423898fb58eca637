"""Quality of units: robustness to changes of the audio, and how well they predict phones.

Axes: t frames of a recording, n frames of all recordings, u units, p phones.
"""

from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein

from spirit_jax.units import dedup


def unit_edit_distance(clean_t: np.ndarray, changed_t: np.ndarray) -> float:
    """Edit distance between the deduplicated units of a recording and of a changed version of it.

    Source: arXiv 2209.15483, section 3.1, which reports the mean over recordings.

    Args:
      clean_t: integer units of the recording.
      changed_t: integer units of the changed recording.

    Returns:
      Edits per 100 units of the recording. If the recording has no units: 0 if the changed one
      has none either, else 100.
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
    """Accuracy of predicting the phone of a frame as the most frequent phone of its unit.

    This equals a linear classifier of one-hot units. For a unit that is not in the training frames,
    the most frequent phone of all is predicted.

    Args:
      train_units_n: integer units of the training frames.
      train_phones_n: names or numbers of their phones.
      test_units_n: integer units of the test frames.
      test_phones_n: names or numbers of their phones.

    Returns:
      Accuracy on the test frames, 0 to 1.
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
    """The label at the centre of each frame.

    Args:
      spans: (label, start, end) in seconds, in order, without overlap.
      frames: number of frames.
      rate: frames per second.
      center: centre of the first frame in seconds: half its receptive field (22.5 ms for the
        release's HuBERT).
      nothing: the label of a frame outside all spans.

    Returns:
      str (frames,).
    """
    times_t = center + np.arange(frames) / rate
    labels_t = np.full(frames, nothing, dtype=object)
    for label, start, end in spans:
        labels_t[(times_t >= start) & (times_t < end)] = label
    return labels_t.astype(str)
