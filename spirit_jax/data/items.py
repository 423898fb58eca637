"""One thing to prepare: a recording, a text, or both."""

import dataclasses
import math
import os
import unicodedata
from pathlib import Path

from spirit_jax.audio import Audio, AudioPiece, load_audio
from spirit_jax.data.timing import Words
from spirit_jax.files import describe, unreadable


@dataclasses.dataclass(frozen=True)
class Item:
    """A recording, a text, or both.

    Attributes:
      id: unique in its source.
      audio: a path, a piece of a file, or (samples, rate); None for text alone.
      text: what is said; "" if that is not known.
      words: (word, start, end) in seconds from the start of `audio`, as the source has them: NaN
        for a time that is not known; empty if no words are known. See `timing.fit_words`.
      speaker, document: see `records.Utterance`.
      style: the manner of speaking, a name; "" if that is not known.
      label: what a task compares, such as an intent; "" if that is not known.
      problem: why the item cannot be used; "" if nothing is known against it.
    """

    id: str
    audio: Audio | None = None
    text: str = ""
    words: Words = ()
    speaker: str = ""
    document: str = ""
    style: str = ""
    label: str = ""
    problem: str = ""

    @property
    def audio_path(self) -> Path | None:
        """The file that the recording is in; None where there is none."""
        audio = self.audio.path if isinstance(self.audio, AudioPiece) else self.audio
        return Path(audio) if isinstance(audio, str | Path) else None

    @property
    def audio_name(self) -> str:
        """The path, with the bounds of a piece, or "" where there is none."""
        if self.audio_path is None:
            return ""
        if not isinstance(self.audio, AudioPiece):
            return str(self.audio)
        piece = self.audio
        end = math.inf if piece.seconds is None else piece.start + piece.seconds
        return f"{piece.path} ({piece.start:g} to {end:g} s)"


def fingerprint(item: Item) -> bytes:
    """What tells a recording from others, and from one that had its name before.

    It is the id, and the path with size and time of change, or the samples where there is no path.

    Raises:
      InputError: the recording cannot be read.
    """
    path = item.audio_path
    if path is None:
        return item.id.encode() + load_audio(item.audio).tobytes()
    try:
        about = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise unreadable(path, error, f"cannot be read ({describe(error)}).") from error
    return f"{item.id}{item.audio_name} {about.st_size} {about.st_mtime_ns}".encode()


def check_item(item: Item) -> Item:
    """The item, with a problem in place of the rest if its strings cannot be stored.

    An id is part of file names, so it has no control characters.
    """
    problem = item.problem
    strings = (item.id, item.text, item.speaker, item.document, item.style, item.label)
    if any(map(_is_broken, (*strings, *(word for word, _, _ in item.words)))):
        problem = problem or "Has half a character (a lone surrogate) in its id or text."
    if any(unicodedata.category(character) == "Cc" for character in item.id):
        problem = problem or f"The id {item.id!r} has control characters."
    if problem == item.problem and not _is_broken(item.id + problem):
        return item
    return Item(_escape(item.id), problem=_escape(problem))


def _is_broken(text: str) -> bool:
    return text != _escape(text)


def _escape(text: str) -> str:
    """The text with lone surrogates, which no file can hold, as backslash escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
