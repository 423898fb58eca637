"""Units of speech and unit strings: deduplication, merging by time, parsing and splitting.

The rules are those of the release. Repeated Hu and Pi are dropped; all St are kept. The streams are
merged by start time, at 24.99 (Hu), 12.5 (Pi) and 1 (St) units a second. In a unit string every Hu
has the latest Pi and St before it.
"""

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from spirit_jax import markup
from spirit_jax.errors import InputError
from spirit_jax.markup import Markup
from spirit_jax.vocab import Modality

HUBERT_RATE, PITCH_RATE, STYLE_RATE = 24.99, 12.5, 1.0  # units a second, for merging
COMMON_STYLE = 71  # the release's style unit for a string that has pitch but no style
MIN_SPEECH_UNITS = 24  # see `plan_outputs`


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """Units of one recording (timed), or of a unit string (not timed).

    Attributes:
      hubert: int32 (n,), phonetic units: 25 a second, or one for each Hu of a string.
      pitch: int32, 12.5 a second, or (n,) one for each Hu; None without pitch.
      style: int32, 1 a second, or (n,) one for each Hu; None without style.
      timed: whether each stream has its own constant rate, so that durations are known. Units of a
        string are not timed: repeats were dropped, and all streams have an entry for each Hu.

    Raises:
      InputError: a stream is not a list of 32-bit integers, or `timed` is False and streams have
        different lengths.
    """

    hubert: np.ndarray
    pitch: np.ndarray | None = None
    style: np.ndarray | None = None
    timed: bool = True

    def __post_init__(self):
        for name in ("hubert", "pitch", "style"):
            stream = getattr(self, name)
            if stream is None and name != "hubert":
                continue
            try:
                array = np.asarray([] if stream is None else stream)
            except (ValueError, TypeError, OverflowError) as error:  # lists of unequal length
                raise InputError(f"{name} units must be a list of integers.") from error
            if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
                raise InputError(
                    f"{name} units must be a list of integers, not {array.dtype} {array.shape}."
                )
            cast = array.astype(np.int32)
            if not np.can_cast(array.dtype, np.int32) and (cast != array).any():
                raise InputError(f"{name} units must fit 32 bits: {array[cast != array][0]}.")
            object.__setattr__(self, name, cast)
        if not isinstance(self.timed, bool):
            raise InputError(f"timed is {self.timed!r}; expected true or false.")
        for name, stream in self.streams().items():
            if not self.timed and len(stream) != len(self.hubert):
                raise InputError(
                    f"There are {len(stream)} {name} units for {len(self.hubert)} phonetic units; "
                    "units that are not timed need one for each."
                )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Units) and self.to_dict() == other.to_dict()

    def __len__(self) -> int:
        return len(self.hubert)

    def streams(self) -> dict[str, np.ndarray]:
        """The streams that are present, by name."""
        streams = {"hubert": self.hubert, "pitch": self.pitch, "style": self.style}
        return {name: stream for name, stream in streams.items() if stream is not None}

    def to_dict(self) -> dict[str, Any]:
        """The streams as lists by name, for JSON; with "timed": false for units of a string."""
        lists: dict[str, Any] = {name: stream.tolist() for name, stream in self.streams().items()}
        return lists if self.timed else lists | {"timed": False}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Units":
        """The inverse of `to_dict`.

        Raises:
          InputError: `values` is not a mapping of these names to lists of integers.
        """
        names = ("hubert", "pitch", "style", "timed")
        if not isinstance(values, Mapping) or set(values) - set(names):
            got = ", ".join(map(str, values)) if isinstance(values, Mapping) else repr(values)
            raise InputError(f"Units are a mapping of {', '.join(names)}, not of {got[:80]}.")
        return cls(*(values.get(name) for name in names[:3]), timed=values.get("timed", True))


def dedup(stream: np.ndarray) -> np.ndarray:
    """The index of the first unit of every run of equal units."""
    stream = np.asarray(stream)
    if not len(stream):
        return np.zeros(0, np.int64)
    changes = np.empty(len(stream), bool)
    changes[0] = True
    np.not_equal(stream[1:], stream[:-1], out=changes[1:])
    return np.flatnonzero(changes)


def runs(stream: np.ndarray) -> list[tuple[int, int, int]]:
    """(index of the first, number, unit) of each run of equal units."""
    firsts = dedup(stream)
    counts = np.diff(firsts, append=len(stream))
    return [(int(f), int(n), int(stream[f])) for f, n in zip(firsts, counts, strict=True)]


MERGED_STREAMS = ("style", "pitch", "hubert")  # in the order of units that begin together


@dataclasses.dataclass(frozen=True)
class Merged:
    """The streams of a recording as one sequence, sorted by time.

    Attributes:
      streams_n: int8, the stream of each unit, an index into `MERGED_STREAMS`.
      units_n: int32.
      seconds_n: float64, start times, ascending; at equal times the order is style, pitch, hubert.
    """

    streams_n: np.ndarray
    units_n: np.ndarray
    seconds_n: np.ndarray


def merge(units: Units, names: Collection[str] = MERGED_STREAMS) -> Merged:
    """Merges the streams by time, without repeats of Hu and Pi (the release's rule).

    Units that are not timed are merged at the rate of Hu: every Hu is kept, and pitch and style
    come before a Hu where they change.

    Args:
      units: of one recording or string.
      names: the streams to merge, "hubert" among them.
    """
    rates = {"style": STYLE_RATE, "pitch": PITCH_RATE, "hubert": HUBERT_RATE}
    streams, keep_all = units.streams(), "style" if units.timed else "hubert"
    parts = []
    for number, name in enumerate(MERGED_STREAMS):
        if name in names and name in streams:
            stream = streams[name]
            kept = np.arange(len(stream)) if name == keep_all else dedup(stream)
            rate = rates[name] if units.timed else HUBERT_RATE
            parts.append((np.full(len(kept), number, np.int8), stream[kept], kept / rate))
    if len(parts) == 1:
        return Merged(*parts[0])
    numbers, values, seconds = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.argsort(seconds, kind="stable")
    return Merged(numbers[order], values[order], seconds[order])


def to_string(units: Units) -> str:
    """The unit string of units, in the order of `merge`.

    Raises:
      InputError: `units` is of another type, or has a negative unit, which a string cannot have.
    """
    if not isinstance(units, Units):
        raise InputError(f"Units were expected, not {type(units).__name__}.")
    for name, stream in units.streams().items():
        if stream.min(initial=0) < 0:
            raise InputError(f"There is no {name} unit {stream.min()}.")
    merged, prefixes = merge(units), ("St", "Pi", "Hu")  # of `MERGED_STREAMS`
    pairs = zip(merged.streams_n.tolist(), merged.units_n.tolist(), strict=True)
    return "".join(f"[{prefixes[stream]}{unit}]" for stream, unit in pairs)


def from_string(string: str, common_style: int = COMMON_STYLE) -> Units:
    """Units of a string, which are not timed: every Hu has the latest Pi and St before it.

    A Hu before the first Pi has that first Pi, and likewise for St. In a string with pitch and
    without style, the style is `common_style`. Markers and white space are ignored.

    Raises:
      InputError: the string has other text.
    """
    if not isinstance(string, str):
        raise InputError(f"A unit string was expected, not {type(string).__name__}.")
    tokens = []
    for part in markup.parse(string):
        unit = markup.UNIT.fullmatch(part.string) if part.is_token else None
        if unit:
            tokens.append((unit[1], int(unit[2])))
        elif not part.is_token and part.string.strip():
            raise InputError(
                f"{part.string.strip()[:40]!r} is not a unit; a unit string consists of [Hu..], "
                "[Pi..] and [St..]."
            )
    firsts = {kind: number for kind, number in reversed(tokens)}
    latest = dict(firsts)
    if "Pi" in firsts:
        latest.setdefault("St", common_style)
    streams: dict[str, list[int]] = {"Hu": [], "Pi": [], "St": []}
    for kind, number in tokens:
        latest[kind] = number
        if kind == "Hu":
            for name, stream in streams.items():
                if name in latest:
                    stream.append(latest[name])
    pitch, style = (streams[name] if name in latest else None for name in ("Pi", "St"))
    return Units(streams["Hu"], pitch, style, timed=False)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a string that is of one modality."""

    modality: Modality
    content: str


def is_unit_string(speech: str, notation: Markup = markup.BRACKETS) -> bool:
    """Whether a string of a speech input is a unit string; otherwise it is a path."""
    return speech.lstrip().startswith(notation.unit_starts)


def split(string: str, notation: Markup = markup.BRACKETS) -> list[Piece]:
    """Splits a prompt string into alternating pieces of text and speech, and unescapes the text.

    Markers are dropped; adjacent parts of one modality are joined.

    Args:
      string: the prompt string.
      notation: of the prompt string; speech becomes a unit string.
    """
    parts = [
        (Modality.SPEECH if part.is_token else Modality.TEXT, part.string)
        for part in notation.parse(string)
        if not markup.MARKER.fullmatch(part.string) or not part.is_token
    ]
    return [
        Piece(modality, "".join(content for _, content in group))
        for modality, group in itertools.groupby(parts, key=lambda part: part[0])
    ]


def build_prompt(
    inputs: Sequence[tuple[Modality, str]],
    output_modality: Modality,
    notation: Markup = markup.BRACKETS,
    always_mark_output: bool = False,
) -> str:
    """The prompt string, with a marker wherever the modality changes and before the output.

    Args:
      inputs: (modality, content) pairs in order; the content is text or a unit string. Markers and
        units that are spelled out in text are escaped (see `markup`).
      output_modality: a marker of text or speech is added unless the last input has that modality.
      notation: of the prompt string.
      always_mark_output: adds the marker even then.

    Returns:
      The prompt, for a text tokenizer.
    """
    parts: list[markup.Part] = []
    last = None
    for modality, content in inputs:
        parts += [] if modality == last else [_marker(modality)]
        parts += [markup.Part(content)] if modality == Modality.TEXT else markup.parse(content)
        last = modality
    if output_modality is not Modality.ARBITRARY and (
        always_mark_output or output_modality != last
    ):
        parts.append(_marker(output_modality))
    return notation.render(parts)


def _marker(modality: Modality) -> markup.Part:
    return markup.Part(markup.NAMES[modality.value], is_token=True)


@dataclasses.dataclass(frozen=True)
class Spoken:
    """A unit string to vocode.

    Attributes:
      content: the unit string.
      skip: the fraction of samples, from 0 to below 1, to cut off at the start.
    """

    content: str
    skip: float = 0.0


def plan_outputs(
    prompt: str,
    generated: str,
    least: int = MIN_SPEECH_UNITS,
    notation: Markup = markup.BRACKETS,
) -> list[str | Spoken]:
    """The outputs of a generation: text, and speech to vocode (the release's rules).

    Generated speech with fewer than `least` Hu is dropped, except at the start of the output after
    a prompt that ends in text. Speech that continues speech at the end of the prompt is vocoded
    together with it, so that pitch and style carry over, and the prompt's samples are cut off.

    Args:
      prompt: the prompt string.
      generated: what the model generated after it; leading and trailing white space is stripped.
      least: smallest number of Hu, see above.
      notation: of both strings.

    Returns:
      Texts and unit strings, in order.
    """
    outputs: list[str | Spoken] = []
    before = speech_at_end(prompt, notation)
    for index, piece in enumerate(split(generated.strip(), notation)):
        if piece.modality is Modality.TEXT:
            outputs.append(piece.content)
            continue
        new = count_hubert(piece.content)
        continues = index == 0 and bool(before)
        if new < least and (index > 0 or continues):
            continue
        if continues:
            old = count_hubert(before)
            outputs.append(Spoken(before + piece.content, old / (old + new + 1)))
        elif new:
            outputs.append(Spoken(piece.content))
    return outputs


def speech_at_end(prompt: str, notation: Markup = markup.BRACKETS) -> str:
    """The unit string at the end of a prompt string; "" if it ends in text or `[Text]`."""
    pieces = split(prompt, notation)
    is_speech = bool(pieces) and pieces[-1].modality is Modality.SPEECH
    end = markup.Part(markup.NAMES["text"], is_token=True)
    return pieces[-1].content if is_speech and notation.parse(prompt)[-1] != end else ""


def count_hubert(string: str) -> int:
    """The number of Hu tokens of a string."""
    return string.count("[Hu")
