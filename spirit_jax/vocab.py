"""The layout of token ids: text pieces, then two markers and Hu, Pi and St units.

The layout depends on the text vocabulary, so it is stored in the model folder (`vocab.json`). No
other file contains a literal token id.
"""

import dataclasses
import enum
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from spirit_jax import limits, markup
from spirit_jax.errors import InputError

HUBERT_UNITS, PITCH_UNITS, STYLE_UNITS = 501, 64, 100  # 500 phonetic units and the CTC blank
UNIT_KINDS = ("hubert", "pitch", "style")


class Modality(enum.StrEnum):
    """The modality of a prompt's input, or of what is generated."""

    TEXT = "text"
    SPEECH = "speech"
    ARBITRARY = "arbitrary"

    @classmethod
    def of(cls, name: "str | Modality") -> "Modality":
        """The modality with a name in upper or lower case; raises `InputError` if unknown."""
        return cls(name)

    @classmethod
    def _missing_(cls, value: object) -> "Modality":
        for modality in cls:
            if isinstance(value, str) and value.lower() == modality.value:
                return modality
        raise InputError(f"'{str(value)[:80]}' is not a modality; known are {', '.join(cls)}.")


@dataclasses.dataclass(frozen=True)
class Vocab:
    """The layout of token ids: `text_size` text pieces, then the markers and the units.

    Attributes:
      text_size: number of text pieces; their ids begin at 0.
      bos: id at the start of every prompt; None if the model has none.
      eos: ids that end a generation.
      padded_size: rows of the embedding; those after the last token are never sampled.
      hubert_units: number of Hu tokens.
      pitch_units: number of Pi tokens; 0 for a Base model.
      style_units: number of St tokens; 0 for a Base model.
      tokens: what the tokens after the text pieces are ("text" and "speech" for the markers, and
        "hubert", "pitch" and "style" for units, which are adjacent), with their names in the
        text tokenizer and in prompt strings, in the order of their ids. A model without pitch and
        style need not list these two.
      always_mark_output: a prompt ends with the marker of the output's modality even if its last
        input has this modality.
    """

    text_size: int = 32000
    bos: int | None = 1
    eos: tuple[int, ...] = (2,)
    padded_size: int = 32512
    hubert_units: int = HUBERT_UNITS
    pitch_units: int = 0
    style_units: int = 0
    tokens: tuple[tuple[str, str], ...] = tuple(markup.NAMES.items())
    always_mark_output: bool = False

    def __post_init__(self):
        ids = limits.may_be_zero(limits.IDS)
        limits.check_numbers(
            self,
            text_size=limits.IDS,
            **({} if self.bos is None else {"bos": ids}),
            eos=ids,
            padded_size=limits.IDS,
            hubert_units=ids,
            pitch_units=ids,
            style_units=ids,
        )
        self._check_tokens()
        if self.padded_size < self.size:
            raise InputError(
                f"The embedding has {self.padded_size} rows, but the vocabulary has {self.size} "
                "tokens."
            )
        if not self.eos:
            raise InputError("There is no EOS; a vocabulary needs at least one.")
        for token in (self.bos, *self.eos):
            if token is not None and not 0 <= token < self.text_size:
                raise InputError(f"BOS or EOS {token} is not one of {self.text_size} text pieces.")

    def _check_tokens(self) -> None:
        if any(len(item) != 2 for item in self.tokens):
            raise InputError("tokens must be pairs of a kind and a name.")
        kinds = [kind for kind, _ in self.tokens]
        units = [kind for kind in kinds if kind in UNIT_KINDS]
        needed = {"text", "speech", "hubert"} | {kind for kind in UNIT_KINDS if self._count(kind)}
        if len(set(kinds)) != len(kinds) or not needed <= set(kinds) <= set(markup.NAMES):
            raise InputError(
                f"tokens are {', '.join(kinds)}; expected each of {', '.join(sorted(needed))} once."
            )
        first = kinds.index(units[0])
        if kinds[first : first + len(units)] != units:
            raise InputError(f"tokens are {', '.join(kinds)}; the units must be adjacent.")
        for kind, name in self.tokens:
            ends = name.split("{}")
            is_whole = len(ends) == (2 if kind in UNIT_KINDS else 1) and all(map(len, ends))
            if not is_whole or len(name) < 3 or not name[-1].isprintable() or name[-1].isalnum():
                raise InputError(
                    f"'{name[:40]}' cannot be the name of a {kind} token; expected one such as "
                    f"{markup.NAMES[kind]}."
                )
        if any("\\" in name for _, name in self.tokens):
            raise InputError("The name of a token must not have a backslash.")
        if len({name for _, name in self.tokens}) != len(self.tokens):
            raise InputError("Two kinds of tokens have the same name.")

    @classmethod
    def make(
        cls,
        kind: str,
        text_size: int,
        bos: int = 1,
        eos: tuple[int, ...] = (2,),
        padded_size: int | None = None,
        units: tuple[int, int, int] = (HUBERT_UNITS, PITCH_UNITS, STYLE_UNITS),
    ) -> "Vocab":
        """The layout of a "base" or "expressive" model.

        Args:
          kind: "base" or "expressive".
          text_size: number of text pieces.
          bos: id of BOS.
          eos: ids of EOS.
          padded_size: rows of the embedding; by default the number of tokens, rounded up to a
            multiple of 128 (the release has 32,512 rows for 32,503 tokens, and 32,768 for 32,667).
          units: numbers of phonetic, pitch and style units; a base model uses only the first.

        Raises:
          InputError: the kind is unknown, or a number is out of range.
        """
        if kind not in ("base", "expressive"):
            raise InputError(f"'{kind}' is not a kind of model; known are base and expressive.")
        units = (units[0], 0, 0) if kind == "base" else units
        size = text_size + 2 + sum(units)
        rows = -(-size // 128) * 128 if padded_size is None else padded_size
        return cls(text_size, bos, tuple(eos), rows, *units)

    def _count(self, kind: str) -> int:
        """Number of tokens of a kind."""
        counts = (self.hubert_units, self.pitch_units, self.style_units)
        return dict(zip(UNIT_KINDS, counts, strict=True)).get(kind, 1)

    @functools.cached_property
    def first_ids(self) -> dict[str, int]:
        """The first id of each kind of token; of kinds without tokens too."""
        first_ids, next_id = {}, self.text_size
        for kind, _ in self.tokens:
            first_ids[kind] = next_id
            next_id += self._count(kind)
        return first_ids

    @property
    def text_marker(self) -> int:
        """The id of the marker before text."""
        return self.first_ids["text"]

    @property
    def speech_marker(self) -> int:
        """The id of the marker before speech."""
        return self.first_ids["speech"]

    @property
    def first_unit(self) -> int:
        """The smallest id of a unit."""
        return min(id for kind, id in self.first_ids.items() if kind in UNIT_KINDS)

    @property
    def size(self) -> int:
        """Number of tokens, without padding rows."""
        return self.text_size + sum(self._count(kind) for kind, _ in self.tokens)

    def is_unit(self, ids):
        """Whether ids are those of units, elementwise; `ids` is an array of numpy or JAX."""
        units = sum(map(self._count, UNIT_KINDS))
        return (ids >= self.first_unit) & (ids < self.first_unit + units)

    def is_speech(self, ids):
        """Whether ids are those of units or of the marker before speech, elementwise."""
        return self.is_unit(ids) | (ids == self.speech_marker)

    @functools.cached_property
    def markup(self) -> markup.Markup:
        """Reads and writes prompt strings with the names of this model."""
        return markup.Markup(dict(self.tokens))

    def token_strings(self) -> list[str]:
        """The names of the markers and units, in the order of their ids from `text_size`."""
        return [self.markup.name_of(token) for token in self.prompt_tokens()]

    def prompt_tokens(self) -> list[str]:
        """The markers and units as `markup.Part` has them, in the order of `token_strings`."""
        return [
            markup.NAMES[kind].replace("{}", str(number))
            for kind, _ in self.tokens
            for number in range(self._count(kind))
        ]

    def check_units(self, streams: Mapping[str, Sequence[int] | None], name: str) -> None:
        """Raises an `InputError` for units that have no token.

        Args:
          streams: the fields of `Units`, by name. Pitch and style units are only checked if the
            model has such tokens.
          name: what the units belong to, for the message.

        Raises:
          InputError: a unit is negative or too large.
        """
        for kind, stream in streams.items():
            count = self._count(kind)
            if stream is None or not count or not len(stream):
                continue
            for unit in (int(np.min(stream)), int(np.max(stream))):
                if not 0 <= unit < count:
                    raise InputError(
                        f"{name}: has the {kind} unit {unit}, but the model has 0 to "
                        f"{count - 1}; are its units from another tokenizer?"
                    )

    def allowed(self, modality: "str | Modality") -> np.ndarray:
        """bool (padded_size,): ids that may be generated, with EOS and without padding rows."""
        modality = Modality.of(modality)
        ids = np.arange(self.padded_size)
        if modality is Modality.TEXT:
            return ids < self.text_size
        if modality is Modality.SPEECH:
            return self.is_unit(ids) | np.isin(ids, self.eos)
        return ids < self.size

    def counted(self, modality: "str | Modality") -> np.ndarray:
        """bool (padded_size,): ids that count in a score of this modality (SlamKit's rule).

        Of speech, units, BOS and EOS count; of text, everything but units; otherwise all.
        """
        modality = Modality.of(modality)
        ids = np.arange(self.padded_size)
        is_unit = self.is_unit(ids)
        if modality is Modality.TEXT:
            return ~is_unit
        if modality is Modality.SPEECH:
            ends = self.eos if self.bos is None else (self.bos, *self.eos)
            return is_unit | np.isin(ids, ends)
        return np.ones(self.padded_size, bool)
