"""Reads word times from the files of other tools.

Supported are TextGrids of the Montreal Forced Aligner, and the JSON of WhisperX and, with word
timestamps, of Whisper, faster-whisper and whisper-timestamped. Words are `(word, start, end)` in
seconds. `labels` distinguishes words from labels, and `timing` repairs invalid times.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spirit_jax import files
from spirit_jax.data.folder import list_files
from spirit_jax.data.labels import UNKNOWN, normalise_words, read_label, split_words
from spirit_jax.data.timing import (
    SHORTEST,
    TOLERANCE,
    Entry,
    Words,
    as_seconds,
    check_words,
    fit_words,
    share_time,
)
from spirit_jax.errors import InputError

__all__ = [
    "Imported",
    "Words",
    "check_words",
    "find_files",
    "finish",
    "normalise_words",
    "read_textgrid",
    "read_whisperx",
]

SHOWN = 60  # characters of a value in a message
SUFFIXES = {"textgrid": ".TextGrid", "whisperx": ".json"}


class Imported(NamedTuple):
    """The words of a file.

    Attributes:
      words: lower case without punctuation, with valid times (see `check_words`).
      repaired: number of words whose times were missing or impossible.
      unknown: number of labels of unknown words; they are not among the words.
    """

    words: Words
    repaired: int = 0
    unknown: int = 0


def finish(
    entries: Sequence[Entry], where: str, seconds: float | None = None, text: str = ""
) -> Imported:
    """The words of a file's entries, with valid times.

    Args:
      entries: from a reader below.
      where: name of the file, for messages.
      seconds: length of the recording, if known.
      text: the transcript, if known; its words replace unknown words.

    Returns:
      The words, and numbers of repaired and unknown words.

    Raises:
      InputError: see `timing.fit_words`.
    """
    divided: list[Entry] = []
    for entry in _name_unknown(entries, split_words(text)):
        words = entry.word.split()
        start, end = as_seconds(entry.start), as_seconds(entry.end)
        if start is None or end is None or end - start < 2 * SHORTEST * len(words):
            divided.append(entry)
        else:
            shared = share_time(words, start, end)
            divided += [Entry(*word, entry.low, entry.high) for word in shared]
    fitted = fit_words(divided, where, seconds)
    known = tuple(word for word in fitted.words if word[0] != UNKNOWN)
    return Imported(known, fitted.repaired, len(fitted.words) - len(known))


def _name_unknown(entries: Sequence[Entry], words: Sequence[str]) -> list[Entry]:
    """Entries whose unknown words are replaced by the words of a text."""
    named = list(entries)
    if not words or all(entry.word != UNKNOWN for entry in entries):
        return named
    owner = [index for index, entry in enumerate(entries) for _ in entry.word.split()]
    listed = [word for entry in entries for word in entry.word.split()]
    matcher = difflib.SequenceMatcher(None, listed, words, autojunk=False)
    for kind, first, last, low, high in matcher.get_opcodes():
        if kind != "replace" or set(listed[first:last]) != {UNKNOWN}:
            continue
        parts = [words[low:high]] if last - first == 1 else [[word] for word in words[low:high]]
        if len(parts) == last - first and UNKNOWN not in words[low:high]:
            for place, part in zip(owner[first:last], parts, strict=True):
                named[place] = named[place]._replace(word=" ".join(part))
    return named


def read_textgrid(path: str | Path, tier: str = "words") -> Words:
    """The words of a Praat TextGrid, in its long or short text form, UTF-8 or UTF-16.

    Args:
      path: the file.
      tier: name of the tier. "words" also matches MFA's "SPEAKER - words".

    Returns:
      The words, in order.

    Raises:
      InputError: the file is not such a TextGrid, or has no or several such tiers.
    """
    return finish(textgrid_entries(path, tier), str(path)).words


def textgrid_entries(path: str | Path, tier: str = "words") -> list[Entry]:
    """The intervals of a tier that are words, or `UNKNOWN`; see `read_textgrid`."""
    tiers = _parse_textgrid(path)
    wanted = tier.casefold()
    for is_same in (
        lambda name: name == tier,
        lambda name: name.casefold() == wanted,
        lambda name: name.casefold().endswith(f" - {wanted}"),
    ):
        matching = [candidate for candidate in tiers if is_same(candidate.name)]
        if matching:
            break
    if len(matching) != 1:
        names = ", ".join(candidate.name for candidate in tiers if candidate.items is not None)
        raise InputError(
            f"{path}: has {len(matching) or 'no'} tiers '{tier}' among {names or 'none'}; name one."
        )
    words_tier = matching[0]
    if words_tier.items is None:
        raise InputError(f"{path}: the tier '{words_tier.name}' has points instead of intervals.")
    entries = []
    for label, start, end in words_tier.items:
        meaning = read_label(label, is_textgrid=True)
        word = meaning if meaning is not None else " ".join(normalise_words(label))
        if word:
            entries.append(Entry(word, start, end, max(words_tier.start, 0.0), words_tier.end))
    return entries


# Praat reads quoted strings, flags in <> and separate numbers, and ignores everything else. After
# an exclamation mark, the rest of a line is a comment.
_TOKEN = re.compile(
    r'(?<![^\s"])!(?P<comment>[^\n]*)'
    r'|"(?P<string>(?:[^"]|"")*)"'
    r"|(?<!\S)<(?P<flag>\w+)>"
    r"|(?<!\S)(?P<number>[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?!\S)"
)


class _Tier(NamedTuple):
    """A tier from `start` to `end` s with (label, start, end) items; None for a tier of points."""

    name: str
    start: float
    end: float
    items: list[tuple[str, float, float]] | None


class _Tokens:
    """The strings and numbers of a TextGrid, in order."""

    def __init__(self, text: str):
        self._tokens: Iterator[str | float] = (
            self._value(match) for match in _TOKEN.finditer(text) if match["comment"] is None
        )
        self.next = next(self._tokens, None)

    @staticmethod
    def _value(match: re.Match) -> str | float:
        if match["number"] is not None:
            return float(match["number"])
        return match["flag"] if match["string"] is None else match["string"].replace('""', '"')

    def take(self, kind: type) -> Any:
        """The next token; raises `ValueError` if it has another type."""
        token, self.next = self.next, next(self._tokens, None)
        if token is None:
            raise ValueError("it ends early")
        if not isinstance(token, kind):
            raise ValueError(f"unexpected {token!r}")
        return token


def _parse_textgrid(path: str | Path) -> list[_Tier]:
    """All tiers. The counts in the file are not used, since some programs write wrong ones."""
    text = files.read_text(path)
    if text.startswith("ooBinaryFile"):
        raise InputError(f"{path}: is a binary TextGrid, which is not supported; save it as text.")
    tokens = _Tokens(text)
    tiers = []
    try:
        if not tokens.take(str).startswith("ooTextFile") or tokens.take(str) != "TextGrid":
            raise ValueError("it has another header")
        tokens.take(float), tokens.take(float)
        count = tokens.take(float) if tokens.take(str) == "exists" else 0
        while tokens.next is not None:
            tiers.append(_take_tier(tokens))
        if len(tiers) < count:
            raise ValueError(f"it has {len(tiers)} of {count:g} tiers")
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path}: is not a whole TextGrid in text form ({error}).") from error
    return tiers


def _take_tier(tokens: _Tokens) -> _Tier:
    kind, name = tokens.take(str), tokens.take(str)
    if kind not in ("IntervalTier", "TextTier"):
        raise ValueError(f"{kind!r} is not a kind of tier")
    start, end, count = (tokens.take(float) for _ in range(3))
    items = []
    while isinstance(tokens.next, float):
        low = tokens.take(float)
        high = tokens.take(float) if kind == "IntervalTier" else low
        items.append((tokens.take(str), low, high))
    if len(items) != count:
        _check_whole(name, start, end, int(count), items)
    return _Tier(name, start, end, items if kind == "IntervalTier" else None)


def _check_whole(name: str, start: float, end: float, count: int, items: Sequence) -> None:
    """Raises `ValueError` if intervals overlap or have gaps; `count` is the announced number."""
    last = start
    for _, low, high in [*items, ("", end, end)]:
        if low < last - TOLERANCE:
            raise ValueError(f"the tier '{name}' has intervals that overlap at {low:g} s")
        if low > last + TOLERANCE:
            raise ValueError(
                f"the tier '{name}' has {len(items)} of {count} intervals, but none from "
                f"{last:g} to {low:g} s; it is truncated or incomplete"
            )
        last = max(last, high)


def read_whisperx(path: str | Path) -> Words:
    """The words of a WhisperX JSON file.

    Words without times (WhisperX writes none for numbers) share the gap between their neighbours
    or, if there is no gap, a neighbour's time. The words of a segment that could not be aligned
    share the time of the segment.

    Raises:
      InputError: the file is not such JSON, or no word of a segment has times.
    """
    return finish(whisperx_entries(path), str(path)).words


def whisperx_entries(path: str | Path) -> list[Entry]:
    """The words of all segments, sorted by time; see `read_whisperx`."""
    data = files.read_json(path, finite=False)  # NaN is the time of a word that was not aligned
    try:
        segments = _object(data, "the file").get("segments") or []
        if not segments and data.get("word_segments"):
            segments = [{"words": data["word_segments"]}]
        if not segments and "segments" not in data:
            raise ValueError("it has no segments")
        segments = [_object(segment, "a segment") for segment in _list(segments, "segments")]
        starts = [as_seconds(segment.get("start")) for segment in segments]
        if None not in starts:
            segments = [segments[i] for i in sorted(range(len(starts)), key=starts.__getitem__)]
        return [entry for segment in segments for entry in _read_segment(segment)]
    except ValueError as error:
        raise InputError(
            f"{path}: is not WhisperX's JSON with segments that have words ({error})."
        ) from error


def _object(value: Any, what: str) -> dict[str, Any]:
    """The value; raises `ValueError` unless it is a JSON object."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {_show(value)}, expected an object")
    return value


def _list(value: Any, what: str) -> list[Any]:
    """The value; raises `ValueError` unless it is a JSON list."""
    if not isinstance(value, list):
        raise ValueError(f"'{what}' is {_show(value)}, expected a list")
    return value


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _read_segment(segment: Mapping[str, Any]) -> list[Entry]:
    if segment.get("words") is None and segment.get("text") is None:
        raise ValueError("a segment has neither words nor text")
    low, high = as_seconds(segment.get("start")), as_seconds(segment.get("end"))
    if low is None or high is None or low >= high:
        low = high = None
    text = segment.get("text") or ""
    if not isinstance(text, str):
        raise ValueError(f"a segment's text is {_show(text)}, expected a string")
    spoken = split_words(text)
    words = segment.get("words") or []
    written = [_read_word(_object(word, "a word")) for word in _list(words, "words")]
    entries = [
        Entry(word, start, end, low, high)
        for label, start, end in _join_labels(written)
        if (word := " ".join(split_words(label)))
    ]
    return _add_missing(entries, spoken, low, high)


def _read_word(word: Mapping[str, Any]) -> tuple[str, Any, Any]:
    label = word.get("word", word.get("text"))  # "text": whisper-timestamped's
    if as_seconds(label) is not None:  # a number without quotes
        label = str(label)
    if not isinstance(label, str):
        raise ValueError(f"the text of a word is {_show(label)}, expected a string")
    return label, as_seconds(word.get("start")), as_seconds(word.get("end"))


def _join_labels(words: Sequence[tuple[str, Any, Any]]) -> list[tuple[str, Any, Any]]:
    """Words, with split labels ("[background", "noise]") joined."""
    joined: list[tuple[str, Any, Any]] = []
    index = 0
    while index < len(words):
        label, start, end = words[index]
        opening = label.strip()[:1]
        closing = {"[": "]", "(": ")", "{": "}", "<": ">", "*": "*"}.get(opening)
        for size in range(2, 7) if closing and closing not in label.strip()[1:] else ():
            piece = [word for word, _, _ in words[index : index + size]]
            whole = " ".join(word.strip() for word in piece)
            compact = re.sub(r"^(\W) | (\W)$", r"\1\2", whole)
            if whole.endswith(closing) and read_label(compact) is not None:
                label, end = compact, words[index + len(piece) - 1][2]
                index += len(piece) - 1
                break
        joined.append((label, start, end))
        index += 1
    return joined


def _add_missing(
    entries: list[Entry], spoken: Sequence[str], low: float | None, high: float | None
) -> list[Entry]:
    """Adds the words of a segment's text that its entries lack, without times."""
    listed = [word for entry in entries for word in entry.word.split()]
    if listed == spoken:
        return entries
    owner = [index for index, entry in enumerate(entries) for _ in entry.word.split()]
    matcher = difflib.SequenceMatcher(None, listed, spoken, autojunk=False)
    whole = list(entries)
    for kind, first, _, start, stop in reversed(matcher.get_opcodes()):
        if kind != "insert" or 0 < first < len(owner) and owner[first] == owner[first - 1]:
            continue
        place = owner[first] if first < len(owner) else len(entries)
        whole[place:place] = [Entry(word, None, None, low, high) for word in spoken[start:stop]]
    return whole


def find_files(folder: str | Path, suffix: str) -> dict[str, Path]:
    """The files of a folder and its subfolders, by the id of their recording.

    An id is the path within the folder without suffix. The file name alone is an id too if it is
    unique, since MFA writes a subfolder for each speaker.

    Raises:
      InputError: there is no such folder, or it has no such file.
    """
    folder = files.as_path(folder)
    all_paths = list_files(folder)[0] if folder.is_dir() else []
    paths = [path for path in all_paths if path.suffix.lower() == suffix.lower()]
    if not paths:
        raise InputError(f"{folder}: has no *{suffix} files.")
    by_name: dict[str, list[Path]] = {}
    for path in paths:
        by_name.setdefault(path.stem, []).append(path)
    unique = {name: same[0] for name, same in by_name.items() if len(same) == 1}
    relative = {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}
    return unique | relative


READERS = {"textgrid": textgrid_entries, "whisperx": lambda path, tier: whisperx_entries(path)}
