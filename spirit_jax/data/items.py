"""The items of a source: recordings, texts, or both."""

import dataclasses
import math
import unicodedata
from pathlib import Path

from spirit_jax import files
from spirit_jax.audio import Audio, AudioPiece, load_audio
from spirit_jax.data.timing import Words
from spirit_jax.files import describe, unreadable


@dataclasses.dataclass(frozen=True)
class Item:
    """A recording, a text, or both.

    Attributes:
      id: unique in its source.
      audio: a path, a segment of a file, or (samples, rate); None for text only.
      text: the transcript; "" if unknown.
      words: (word, start, end) in seconds from the start of `audio`, as in the source; NaN for an
        unknown time; empty if unknown. See `timing.fit_words`.
      speaker: see `records.Utterance`.
      document: see `records.Utterance`.
      style: name of the speaking style; "" if unknown.
      label: compared by evaluation tasks, such as an intent; "" if unknown.
      problem: why the item cannot be used; "" if it can.
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
        """The file of the recording; None if there is none."""
        audio = self.audio.path if isinstance(self.audio, AudioPiece) else self.audio
        return files.as_path(audio) if isinstance(audio, str | Path) else None

    @property
    def audio_name(self) -> str:
        """The path, with the bounds of a segment; "" if there is no file."""
        if self.audio_path is None:
            return ""
        if not isinstance(self.audio, AudioPiece):
            return str(self.audio)
        segment = self.audio
        end = math.inf if segment.seconds is None else segment.start + segment.seconds
        return f"{segment.path} ({segment.start:.15g} to {end:.15g} s)"


def fingerprint(item: Item) -> bytes:
    """Bytes that change when a recording changes.

    They are the id, and the path with size and modification time, or the samples if there is no
    path.

    Raises:
      InputError: the recording cannot be read.
    """
    path = item.audio_path
    if path is None:
        return item.id.encode() + load_audio(item.audio).tobytes()
    try:
        stat = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise unreadable(path, error, f"cannot be read ({describe(error)}).") from error
    return f"{item.id}{item.audio_name} {stat.st_size} {stat.st_mtime_ns}".encode()


def check_item(item: Item) -> Item:
    """The item, or one with only a `problem` if its strings cannot be stored.

    Strings must not have lone surrogates; an id is part of file names, so it must not have control
    characters.
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
    """The text with lone surrogates, which cannot be stored, as backslash escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
