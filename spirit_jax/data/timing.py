"""Validation and repair of word times.

Words are `(word, start, end)` in seconds, in order and disjoint. Other tools write some words
without times, with no length, or overlapping. Such a word gets the time between its neighbours, and
an overlap is cut at its middle, so that a few bad words do not cost a recording. If more than a few
times contradict each other or the length of the recording, the recording is rejected.
"""

import bisect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from spirit_jax.errors import InputError

Word = tuple[str, float, float]
Words = tuple[Word, ...]

TOLERANCE = 0.05  # seconds by which words may overlap or exceed the audio; they are cut
BEYOND = 0.5  # seconds by which a word may exceed the audio and still be repaired
SHORTEST = 0.001  # seconds, shortest word
GAP = 0.02  # seconds of a gap that are needed for each word without times
WRONG_SHARE = 10  # rejected if more than one word, and more than one in this many, contradict


class Entry(NamedTuple):
    """A word as another tool wrote it.

    Attributes:
      word: one or several, separated by spaces.
      start, end: seconds; None if unknown.
      low, high: bounds of its segment in seconds; None if unknown.
    """

    word: str
    start: float | None = None
    end: float | None = None
    low: float | None = None
    high: float | None = None


class Fitted(NamedTuple):
    """Words with valid times, and the number of words that were repaired."""

    words: Words
    repaired: int = 0


def as_seconds(value: Any) -> float | None:
    """A time from a file; None if it is not a finite number."""
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) and not isinstance(value, bool) else None


def check_words(words: Sequence[Word], where: str, seconds: float | None = None) -> Words:
    """Checks that words are in order, disjoint and within the audio.

    Overlaps, and times beyond the audio, of up to `TOLERANCE` are cut.

    Args:
      words: in order.
      where: name of the recording, for messages.
      seconds: length of the audio, if known.

    Returns:
      The words, with times rounded to 0.1 ms.

    Raises:
      InputError: a time is not finite, a word ends before it starts, or words overlap or exceed
        the audio by more.
    """
    checked: list[Word] = []
    last = 0.0
    for word, start, end in words:
        what = f"{where}: the word '{word}' from {start} to {end} s"
        if not (math.isfinite(start) and math.isfinite(end) and start < end):
            raise InputError(f"{what} does not end after it starts.")
        if start < last - TOLERANCE:
            raise InputError(f"{what} starts before the word before it ends, at {last} s.")
        if seconds is not None and end > seconds + TOLERANCE:
            raise InputError(f"{what} is beyond the audio of {seconds:.3f} s.")
        start, end = max(start, last), end if seconds is None else min(end, seconds)
        if end - start < SHORTEST:
            raise InputError(f"{what} is within the word before it.")
        checked.append((word, round(start, 4), round(end, 4)))
        last = checked[-1][2]
    return tuple(checked)


def fit_words(entries: Sequence[Entry], where: str, seconds: float | None = None) -> Fitted:
    """Repairs words whose times violate the rules of `check_words`.

    Args:
      entries: in spoken order.
      where: name of the recording, for messages.
      seconds: length of the audio, if known.

    Returns:
      Words with valid times, and the number of repaired words.

    Raises:
      InputError: more than a few words contradict the others or the length of the audio, or there
        is no time for a word.
    """
    if all(entry.start is not None and entry.end is not None for entry in entries):
        try:
            return Fitted(check_words([entry[:3] for entry in entries], where, seconds))
        except InputError as error:
            problem = error
    else:
        problem = None
    times, contradictions = _drop_bad(entries, seconds)
    allowed = max(1, len(entries) // WRONG_SHARE) if len(entries) > 2 else 0
    if problem is not None and contradictions > allowed:
        raise problem
    if contradictions > allowed:
        raise InputError(
            f"{where}: the times of {contradictions} of {len(entries)} words contradict the others "
            "or the length of the audio; are they of this recording?"
        )
    cut = _cut_overlaps(times)
    words = _fill(entries, times, where, seconds)
    repaired = sum(time is None for time in times) + cut
    return Fitted(check_words(words, where, seconds), repaired)


def _drop_bad(
    entries: Sequence[Entry], seconds: float | None
) -> tuple[list[tuple[float, float] | None], int]:
    """(times of entries, None for invalid ones; number that contradict others or the audio)."""
    times: list[tuple[float, float] | None] = []
    contradictions = 0
    for entry in entries:
        start, end = as_seconds(entry.start), as_seconds(entry.end)
        if start is None or end is None:
            times.append(None)
            continue
        if seconds is not None and end > seconds + BEYOND:
            contradictions += 1
            times.append(None)
            continue
        start, end = max(start, 0.0), end if seconds is None else min(end, seconds)
        times.append((start, end) if end - start >= _least(entry.word) else None)
    known = [index for index, time in enumerate(times) if time is not None]
    in_order = set(_longest_rising([times[index][0] for index in known]))
    for place, index in enumerate(known):
        if place not in in_order:
            contradictions += 1
            times[index] = None
    return times, contradictions


def _longest_rising(values: Sequence[float]) -> list[int]:
    """The indices of the longest non-decreasing subsequence."""
    tails: list[float] = []  # the smallest last value of a subsequence of each length
    last_of: list[int] = []  # the index of that value
    previous: list[int] = []  # the index before each value in its subsequence
    for index, value in enumerate(values):
        length = bisect.bisect_right(tails, value)
        previous.append(last_of[length - 1] if length else -1)
        tails[length:] = [value] if length == len(tails) else [value, *tails[length + 1 :]]
        last_of[length : length + 1] = [index]
    chain = []
    index = last_of[-1] if last_of else -1
    while index >= 0:
        chain.append(index)
        index = previous[index]
    return chain[::-1]


def _cut_overlaps(times: list[tuple[float, float] | None]) -> int:
    """Cuts overlaps in place; returns the number of those larger than `TOLERANCE`."""
    cut, last = 0, None
    for index, time in enumerate(times):
        if time is None:
            continue
        start, end = time
        if last is not None and start < times[last][1]:
            before, before_end = times[last]
            if before_end - start > TOLERANCE:
                cut += 1
                middle = (max(start, before) + min(end, before_end)) / 2
            else:
                middle = before_end
            if middle - before < SHORTEST or end - middle < SHORTEST:
                times[index] = None
                continue
            times[last], times[index] = (before, min(before_end, middle)), (middle, end)
        last = index
    return cut


def _fill(
    entries: Sequence[Entry],
    times: Sequence[tuple[float, float] | None],
    where: str,
    seconds: float | None,
) -> list[Word]:
    """All words with times: words without times share the gap between their neighbours.

    If there is no gap, they share the time of a neighbour, if possible of the same segment.
    """
    bounds = [(as_seconds(entry.low), as_seconds(entry.high)) for entry in entries]
    words: list[Word] = []
    segments: list[tuple] = []  # bounds of the segment of each word in `words`
    index = 0
    while index < len(entries):
        if times[index] is not None:
            words.append((entries[index].word, *times[index]))
            segments.append(bounds[index])
            index += 1
            continue
        after = index
        while after < len(entries) and times[after] is None and bounds[after] == bounds[index]:
            after += 1
        segment = bounds[index]
        run = [entry.word for entry in entries[index:after]]
        index = after
        following = next((time[0] for time in times[after:] if time is not None), None)
        starts = (words[-1][2] if words else None, segment[0])
        start = max((time for time in starts if time is not None), default=None)
        ends = (following, segment[1], seconds)
        end = min((time for time in ends if time is not None), default=None)
        while start is None or end is None or end - start < GAP * len(run):
            has_next = after < len(entries) and times[after] is not None
            prefers_next = has_next and bounds[after] == segment
            if words and (segments[-1] == segment or not prefers_next):
                word, start, word_end = words.pop()
                segments.pop()
                run, end = [word, *run], max(word_end, end or 0.0)
            elif has_next:
                next_start, end = times[after]
                run, start = [*run, entries[after].word], next_start if start is None else start
                after = index = after + 1
            elif start is not None and end is not None and end - start >= _least(" ".join(run)):
                break
            else:
                raise InputError(f"{where}: has no time for the word '{run[0]}'.")
        for word, word_start, word_end in share_time(run, start, end):
            words += share_time(word.split(), word_start, word_end)
        segments += [segment] * (len(words) - len(segments))
    return words


def _least(word: str) -> float:
    """Shortest time in seconds of a word, or of several in one string."""
    return 2 * SHORTEST * max(1, len(word.split()))


def share_time(words: Sequence[str], start: float, end: float) -> list[Word]:
    """Divides a time span among words in proportion to their numbers of characters.

    Args:
      words: in order.
      start: of the span, in seconds.
      end: of the span, in seconds.

    Returns:
      (word, start, end) of each word.
    """
    total = sum(map(len, words))
    shared, done = [], 0
    for word in words:
        first, done = done, done + len(word)
        at = [start + (end - start) * part / total for part in (first, done)]
        shared.append((word, *at))
    return shared
