"""Units, and the strings that stand for them: deduplicated, merged by time, split and parsed.

The rules are those of the release: Hu and Pi drop repeats, St keeps all; the streams are merged by
time at 24.99, 12.5 and 1 units a second; a unit string gives every Hu the latest Pi and St.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from spirit_jax import markup
from spirit_jax.errors import InputError
from spirit_jax.vocab import Modality

HUBERT_RATE, PITCH_RATE, STYLE_RATE = 24.99, 12.5, 1.0  # units a second, for merging
COMMON_STYLE = 71  # of the release, for a string that has pitch but no style
MIN_SPEECH_UNITS = 24  # a shorter run of speech after other content is not spoken


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """Units of one recording.

    Attributes:
      hubert: int32 (n,), phonetic units, 25 a second with repeats; or one each Hu of a string.
      pitch: int32, 12.5 a second; or one each Hu; None without pitch.
      style: int32, 1 a second; or one each Hu; None without style.
    """

    hubert: np.ndarray
    pitch: np.ndarray | None = None
    style: np.ndarray | None = None

    def __post_init__(self):
        for name in ("hubert", "pitch", "style"):
            stream = getattr(self, name)
            if stream is None and name != "hubert":
                continue
            try:
                array = np.asarray([] if stream is None else stream)
            except (ValueError, TypeError, OverflowError) as error:  # rows of unequal length
                raise InputError(f"{name} units must be one row of integers.") from error
            if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
                raise InputError(
                    f"{name} units must be one row of integers, not {array.shape} of {array.dtype}."
                )
            small = array.astype(np.int32)
            if (small != array).any():
                raise InputError(f"{name} units must fit 32 bits: {array[small != array][0]}.")
            object.__setattr__(self, name, small)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Units) and self.to_dict() == other.to_dict()

    def __len__(self) -> int:
        return len(self.hubert)

    def to_dict(self) -> dict[str, list[int]]:
        """The streams that there are, as lists."""
        streams = {"hubert": self.hubert, "pitch": self.pitch, "style": self.style}
        return {name: stream.tolist() for name, stream in streams.items() if stream is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[int]]) -> "Units":
        """The inverse of `to_dict`.

        Raises:
          InputError: no mapping of these names to rows of integers.
        """
        names = ("hubert", "pitch", "style")
        if not isinstance(values, Mapping) or set(values) - set(names):
            got = ", ".join(map(str, values)) if isinstance(values, Mapping) else repr(values)
            raise InputError(f"Units are a mapping of {', '.join(names)}, not of {got[:80]}.")
        return cls(*(values.get(name) for name in names))


def dedup(stream: np.ndarray) -> np.ndarray:
    """The index of the first unit of every run of equal ones."""
    stream = np.asarray(stream)
    if not len(stream):
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.concatenate([[True], stream[1:] != stream[:-1]]))


@dataclasses.dataclass(frozen=True)
class Merged:
    """The units of a recording as one sequence: Hu and Pi without repeats, and St, by time.

    Attributes:
      names_n: the stream of each unit: "style", "pitch" or "hubert".
      units_n: int32.
      seconds_n: float64, when each begins, rising; ties go style, pitch, hubert.
    """

    names_n: np.ndarray
    units_n: np.ndarray
    seconds_n: np.ndarray


def merge(units: Units) -> Merged:
    """Deduplicates and merges the streams by time (the release's rule)."""
    streams = {"style": units.style, "pitch": units.pitch, "hubert": units.hubert}
    rates = {"style": STYLE_RATE, "pitch": PITCH_RATE, "hubert": HUBERT_RATE}
    parts = []
    for name, stream in streams.items():
        if stream is not None:
            kept = np.arange(len(stream)) if name == "style" else dedup(stream)
            parts.append((np.full(len(kept), name), stream[kept], kept / rates[name]))
    names, values, seconds = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.argsort(seconds, kind="stable")
    return Merged(names[order], values[order], seconds[order])


def to_string(units: Units) -> str:
    """The unit string: Hu and Pi without repeats, merged with St by time; ties go St, Pi, Hu.

    Raises:
      InputError: a negative unit, which has no string.
    """
    if not isinstance(units, Units):
        raise InputError(f"Units were expected, not {type(units).__name__}.")
    for name, stream in units.to_dict().items():
        if stream and min(stream) < 0:
            raise InputError(f"There is no {name} unit {min(stream)}.")
    merged, prefixes = merge(units), {"style": "St", "pitch": "Pi", "hubert": "Hu"}
    pairs = zip(merged.names_n, merged.units_n, strict=True)
    return "".join(f"[{prefixes[name]}{unit}]" for name, unit in pairs)


def from_string(string: str, common_style: int = COMMON_STYLE) -> Units:
    """Units of a string: every Hu takes the latest Pi and St before it.

    A Hu before the first Pi (St) takes the first of the string. With pitch but no style anywhere,
    the style is `common_style`. Markers and white space are passed over.

    Raises:
      InputError: anything else in the string.
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
                f"{part.string.strip()[:40]!r} is no unit; a unit string has [Hu..], [Pi..] and "
                "[St..]."
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
    return Units(np.array(streams["Hu"], np.int32), pitch, style)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stretch of one modality in a generated string."""

    modality: Modality
    content: str


def split(string: str) -> list[Piece]:
    """A prompt string as text and speech in turn, each without escapes.

    Markers are dropped, and neighbours of one kind are joined.
    """
    parts = [
        (Modality.SPEECH if part.is_token else Modality.TEXT, part.string)
        for part in markup.parse(string)
        if not markup.MARKER.fullmatch(part.string) or not part.is_token
    ]
    return [
        Piece(modality, "".join(content for _, content in group))
        for modality, group in itertools.groupby(parts, key=lambda part: part[0])
    ]


def build_prompt(inputs: Sequence[tuple[Modality, str]], output_modality: Modality) -> str:
    """The prompt string: a marker wherever the modality changes, and for the wanted output.

    Args:
      inputs: in order, each a modality (text or speech) and its text or unit string. A text is
        text: what looks like a marker or unit in it is escaped (see `markup`).
      output_modality: text and speech add their marker unless the last input was of that kind.
    """
    parts: list[markup.Part] = []
    last = None
    for modality, content in inputs:
        parts += [] if modality == last else [_marker(modality)]
        parts += [markup.Part(content)] if modality == Modality.TEXT else markup.parse(content)
        last = modality
    if output_modality not in (Modality.ARBITRARY, last):
        parts.append(_marker(output_modality))
    return markup.render(parts)


def _marker(modality: Modality) -> markup.Part:
    string = {Modality.TEXT: "[Text]", Modality.SPEECH: "[Speech]"}[modality]
    return markup.Part(string, is_token=True)


@dataclasses.dataclass(frozen=True)
class Spoken:
    """A unit string to vocode, of which the first `skip` of every 1 of its samples is cut off."""

    content: str
    skip: float = 0.0


def plan_outputs(prompt: str, generated: str, least: int = MIN_SPEECH_UNITS) -> list[str | Spoken]:
    """What a generation says: text as it stands, and speech to vocode (the release's rules).

    The generated string is stripped, then split. A run of speech that is not the first piece and
    has fewer than `least` Hu is dropped. Where speech goes on from the speech at the end of the
    prompt, the two are vocoded together, so that pitch and style carry over, and the prompt's
    share is cut off; with fewer than `least` new Hu it is dropped.
    """
    outputs: list[str | Spoken] = []
    prompt_pieces = split(prompt)
    before = prompt_pieces[-1] if prompt_pieces else None
    ends_in_speech = before is not None and before.modality is Modality.SPEECH
    ends_in_speech &= not prompt.endswith("[Text]")
    for index, piece in enumerate(split(generated.strip())):
        if piece.modality is Modality.TEXT:
            outputs.append(piece.content)
            continue
        new = count_hubert(piece.content)
        continues = index == 0 and ends_in_speech
        if new < least and (index > 0 or continues):
            continue
        if continues:
            old = count_hubert(before.content)
            outputs.append(Spoken(before.content + piece.content, old / (old + new + 1)))
        elif new:
            outputs.append(Spoken(piece.content))
    return outputs


def count_hubert(string: str) -> int:
    """How many Hu tokens a string has."""
    return string.count("[Hu")
