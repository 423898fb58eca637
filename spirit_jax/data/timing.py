"""Times of words: the rules they keep, and repair of the few that do not keep them.

Words are `(word, start, end)` in seconds, rising and disjoint. Other tools leave some without
times, of no length, or overlapping. Such a word gets the time between its neighbours, and an
overlap is cut at its middle, so that a bad word does not cost a recording. Times that contradict
each other or the recording in more than a few words are refused: they are of another recording.
"""

import bisect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from spirit_jax.errors import InputError

Word = tuple[str, float, float]
Words = tuple[Word, ...]

TOLERANCE = 0.05  # seconds that words may overlap or outlast their audio; they are cut
BEYOND = 0.5  # seconds that a word may outlast its audio and be repaired
SHORTEST = 0.001  # seconds of a word, once it is cut
GAP = 0.02  # seconds for each word without times that a gap between others must have
WRONG_SHARE = 10  # a recording is refused if more than one word, and one of so many, contradicts


class Entry(NamedTuple):
    """A word as another tool wrote it.

    Attributes:
      word: one or several, separated by spaces.
      start, end: seconds; None if they are not known.
      low, high: seconds between which it is, of its segment; None if they are not known.
    """

    word: str
    start: float | None = None
    end: float | None = None
    low: float | None = None
    high: float | None = None


class Fitted(NamedTuple):
    """Words with times that keep the rules, and how many had none or had to be repaired."""

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
    """Words as rising, disjoint times within the audio.

    Overlaps, and times beyond the audio, of up to `TOLERANCE` are cut.

    Args:
      words: in order.
      where: names the recording in messages.
      seconds: the audio's length, if it is known.

    Raises:
      InputError: a time that is none, a word that ends before it starts, or times further out.
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
            raise InputError(f"{what} is beyond the audio, which has {seconds:.3f} s.")
        start, end = max(start, last), end if seconds is None else min(end, seconds)
        if end - start < SHORTEST:
            raise InputError(f"{what} has no time of its own.")
        checked.append((word, round(start, 4), round(end, 4)))
        last = checked[-1][2]
    return tuple(checked)


def fit_words(entries: Sequence[Entry], where: str, seconds: float | None = None) -> Fitted:
    """Words with times that keep the rules of `check_words`; repairs those that do not.

    Args:
      entries: in the order in which they are spoken.
      where: names the recording in messages.
      seconds: the audio's length, if it is known.

    Raises:
      InputError: more than a few words contradict the others or the audio's length, or there is no
        time for a word.
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
    """The times of entries, None for bad ones, and how many contradict the others or the audio."""
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
    """The indices of the longest run of values, not necessarily next to each other, that rises."""
    tails: list[float] = []  # the least last value of a run of each length
    last_of: list[int] = []  # where that value is
    before: list[int] = []
    for index, value in enumerate(values):
        length = bisect.bisect_right(tails, value)
        before.append(last_of[length - 1] if length else -1)
        tails[length:] = [value] if length == len(tails) else [value, *tails[length + 1 :]]
        last_of[length : length + 1] = [index]
    chain = []
    index = last_of[-1] if last_of else -1
    while index >= 0:
        chain.append(index)
        index = before[index]
    return chain[::-1]


def _cut_overlaps(times: list[tuple[float, float] | None]) -> int:
    """Cuts overlaps of times in place; returns how many were larger than `TOLERANCE`."""
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
    """All words with times: those without share the gap between their neighbours.

    Where there is no gap they share a neighbour's time, one of the same segment if there is.
    """
    bounds = [(as_seconds(entry.low), as_seconds(entry.high)) for entry in entries]
    words: list[Word] = []
    segments: list[tuple] = []  # of the words so far
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
    """Seconds that a word, or several in one string, must have."""
    return 2 * SHORTEST * max(1, len(word.split()))


def share_time(words: Sequence[str], start: float, end: float) -> list[Word]:
    """Divides a stretch of time among words by their lengths in characters."""
    total = sum(map(len, words))
    shared, done = [], 0
    for word in words:
        first, done = done, done + len(word)
        at = [start + (end - start) * part / total for part in (first, done)]
        shared.append((word, *at))
    return shared
