"""Word times that other tools have found, and the form in which all word times are kept.

Words are `(word, start, end)` in seconds. They are read from the Montreal Forced Aligner's
TextGrids and from the JSON of WhisperX (and of Whisper with word timestamps).
"""

import json
import math
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from spirit_jax.errors import InputError

Word = tuple[str, float, float]
Words = tuple[Word, ...]

TOLERANCE = 0.05  # seconds that words may overlap or outlast their audio; they are cut
SHORTEST = 0.001  # seconds of a word, once it is cut
GAP = 0.02  # seconds for each word without times that a gap between others must have
SILENCES = ("", "sp", "sil", "spn")  # MFA's intervals without words; others stand in <> or []
SUFFIXES = {"textgrid": ".TextGrid", "whisperx": ".json"}


def normalise_words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation but apostrophes within words.

    Letters of all scripts and digits stay. Other signs divide words, hyphens too.
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    text = "".join(character for character in text if unicodedata.category(character) != "Cf")
    kept = (
        character if character == "'" or unicodedata.category(character)[0] in "LMN" else " "
        for character in text
    )
    stripped = (word.strip("'") for word in "".join(kept).split())
    return [word for word in stripped if word]


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


def read_textgrid(path: str | Path, tier: str = "words") -> Words:
    """The words of a Praat TextGrid, in its long or short text form, UTF-8 or UTF-16.

    Args:
      path: the file.
      tier: the name of the tier; "SPEAKER - words", as MFA writes it, is "words" too.

    Raises:
      InputError: the file is no such TextGrid, or has none or several such tiers.
    """
    tiers = _parse_textgrid(path)
    named = [name for name, _ in tiers]
    found = [words for name, words in tiers if name == tier]
    found = found or [words for name, words in tiers if name.endswith(f" - {tier}")]
    if len(found) != 1:
        raise InputError(
            f"{path}: has {len(found) or 'no'} tiers '{tier}' among {', '.join(named) or 'none'}; "
            "name one."
        )
    spoken = [word for word in found[0] if not _is_silence(word[0])]
    return check_words(_normalise_timed(spoken), str(path))


def _is_silence(label: str) -> bool:
    label = label.strip().lower()
    return label in SILENCES or label[0] in "<["


# Praat reads quoted strings, flags in <> and numbers that stand alone; all else is for the eye.
_TOKEN = re.compile(
    r'"(?P<string>(?:[^"]|"")*)"'
    r"|(?<!\S)<(?P<flag>\w+)>"
    r"|(?<!\S)(?P<number>[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?!\S)"
)


def _parse_textgrid(path: str | Path) -> list[tuple[str, list[Word]]]:
    """(name, intervals) of every interval tier."""
    tokens = iter(
        match["string"] if match["string"] is not None else match["flag"] or float(match["number"])
        for match in _TOKEN.finditer(_read_text(path))
    )

    def take(kind: type):
        token = next(tokens)
        if not isinstance(token, kind):
            raise ValueError(f"found {token!r}")
        return token

    tiers = []
    try:
        if not take(str).startswith("ooTextFile") or take(str) != "TextGrid":
            raise ValueError("it has another header")
        take(float), take(float)
        count = int(take(float)) if take(str) == "exists" else 0
        for _ in range(count):
            is_intervals, name = take(str) == "IntervalTier", take(str)
            take(float), take(float)
            items = []
            for _ in range(int(take(float))):
                start = take(float)
                end = take(float) if is_intervals else start
                items.append((take(str), start, end))
            if is_intervals:
                tiers.append((name, items))
    except (StopIteration, ValueError, OverflowError) as error:
        reason = str(error) or "it ends early"
        raise InputError(f"{path}: is not a whole TextGrid in text form ({reason}).") from error
    return tiers


def _read_text(path: str | Path) -> str:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text in UTF-8 or UTF-16.") from error


def read_whisperx(path: str | Path) -> Words:
    """The words of a WhisperX JSON file.

    A word without times (WhisperX gives none to numbers) gets its share of the gap between its
    neighbours, or, if there is no gap, of its neighbour's time.

    Raises:
      InputError: the file is no such JSON, or no word in a segment with words has times.
    """
    try:
        segments = json.loads(_read_text(path))["segments"]
        words: list[Word] = []
        for segment in segments:
            named = [(" ".join(normalise_words(e["word"])), e) for e in segment["words"]]
            entries = [(word, e.get("start"), e.get("end")) for word, e in named if word]
            timed = _fill_times(entries, segment.get("start"), segment.get("end"))
            words += _normalise_timed(timed)
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path}: is not WhisperX's JSON with segments that have words ({error})."
        ) from error
    return check_words(words, str(path))


def _fill_times(entries: list[tuple], low: float | None, high: float | None) -> list[Word]:
    """Gives times to entries without; `low` and `high` are those of the segment."""
    words: list[Word] = []
    index = 0
    while index < len(entries):
        after = index
        while after < len(entries) and None in entries[after][1:]:
            after += 1
        if after == index:
            word, start, end = entries[index]
            words.append((word, float(start), float(end)))
            index += 1
            continue
        run = [word for word, _, _ in entries[index:after]]
        start = words[-1][2] if words else low
        end = entries[after][1] if after < len(entries) else high
        index = after
        if None in (start, end) or end - start < GAP * len(run):
            if words:
                before, start, before_end = words.pop()
                run, end = [before, *run], max(before_end, end or 0)
            elif after < len(entries):
                next_word, start, end = entries[after]
                run, index = [*run, next_word], after + 1
            else:
                raise ValueError("a segment has no time for its words")
        words += _share(run, float(start), float(end))
    return words


def _normalise_timed(words: Sequence[Word]) -> list[Word]:
    """Words in lower case and without punctuation; one that becomes several is divided."""
    divided: list[Word] = []
    for word, start, end in words:
        divided += _share(normalise_words(word), start, end)
    return divided


def _share(words: Sequence[str], start: float, end: float) -> list[Word]:
    """Divides a stretch of time among words by their lengths in characters."""
    total = sum(map(len, words))
    shared, done = [], 0
    for word in words:
        first, done = done, done + len(word)
        at = [start + (end - start) * part / total for part in (first, done)]
        shared.append((word, *at))
    return shared


def find_files(folder: str | Path, suffix: str) -> dict[str, Path]:
    """The files of a folder and those in it, by the id of the recording that each is about.

    An id is the path within the folder without its suffix; or the file's name alone where there
    is one such file, since MFA sorts its files by speaker.

    Raises:
      InputError: there is no such folder, or no such file in it.
    """
    folder = Path(folder)
    paths = sorted(folder.rglob("*" + suffix))
    if not paths:
        raise InputError(f"{folder}: holds no *{suffix} files.")
    by_name: dict[str, list[Path]] = {}
    for path in paths:
        by_name.setdefault(path.name.removesuffix(suffix), []).append(path)
    found = {name: same[0] for name, same in by_name.items() if len(same) == 1}
    relative = {str(path.relative_to(folder)).removesuffix(suffix): path for path in paths}
    return found | relative
