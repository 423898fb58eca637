"""The layout of token ids: text pieces, two markers, then Hu, Pi and St units.

The layout depends on the text vocabulary, so it is stored in the model folder (`vocab.json`). No
other file contains a literal token id.
"""

import dataclasses
import enum
from collections.abc import Mapping, Sequence

import numpy as np

from spirit_jax import limits
from spirit_jax.errors import InputError

HUBERT_UNITS, PITCH_UNITS, STYLE_UNITS = 501, 64, 100  # 500 phonetic units and the CTC blank


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
    """The layout of token ids: `text_size` text pieces, the two markers, Hu, Pi and St units.

    Attributes:
      text_size: number of text pieces; their ids begin at 0.
      bos: id at the start of every prompt.
      eos: ids that end a generation.
      padded_size: rows of the embedding; those after the last token are never sampled.
      hubert_units: number of Hu tokens.
      pitch_units: number of Pi tokens; 0 for a Base model.
      style_units: number of St tokens; 0 for a Base model.
    """

    text_size: int = 32000
    bos: int = 1
    eos: tuple[int, ...] = (2,)
    padded_size: int = 32512
    hubert_units: int = HUBERT_UNITS
    pitch_units: int = 0
    style_units: int = 0

    def __post_init__(self):
        ids = limits.may_be_zero(limits.IDS)
        limits.check_numbers(
            self,
            text_size=limits.IDS,
            bos=ids,
            eos=ids,
            padded_size=limits.IDS,
            hubert_units=ids,
            pitch_units=ids,
            style_units=ids,
        )
        if self.padded_size < self.size:
            raise InputError(
                f"The embedding has {self.padded_size} rows, but the vocabulary has {self.size} "
                "tokens."
            )
        if not self.eos:
            raise InputError("There is no EOS; a vocabulary needs at least one.")
        for token in (self.bos, *self.eos):
            if not 0 <= token < self.text_size:
                raise InputError(f"BOS or EOS {token} is not one of {self.text_size} text pieces.")

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

    @property
    def text_marker(self) -> int:
        """The id of `[Text]`."""
        return self.text_size

    @property
    def speech_marker(self) -> int:
        """The id of `[Speech]`."""
        return self.text_size + 1

    @property
    def first_unit(self) -> int:
        """The id of `[Hu0]`."""
        return self.text_size + 2

    @property
    def size(self) -> int:
        """Number of tokens, without padding rows."""
        return self.first_unit + self.hubert_units + self.pitch_units + self.style_units

    def token_strings(self) -> list[str]:
        """The strings of the markers and units, in the order of their ids from `text_size`."""
        streams = (("Hu", self.hubert_units), ("Pi", self.pitch_units), ("St", self.style_units))
        units = [f"[{name}{i}]" for name, count in streams for i in range(count)]
        return ["[Text]", "[Speech]", *units]

    def check_units(self, streams: Mapping[str, Sequence[int] | None], name: str) -> None:
        """Raises an `InputError` for units that have no token.

        Args:
          streams: the fields of `Units`, by name. Pitch and style units are only checked if the
            model has such tokens.
          name: what the units belong to, for the message.

        Raises:
          InputError: a unit is negative or too large.
        """
        counts = {
            "hubert": self.hubert_units,
            "pitch": self.pitch_units,
            "style": self.style_units,
        }
        for kind, stream in streams.items():
            if stream is None or not counts[kind] or not len(stream):
                continue
            for unit in (int(np.min(stream)), int(np.max(stream))):
                if not 0 <= unit < counts[kind]:
                    raise InputError(
                        f"{name}: has the {kind} unit {unit}, but the model has 0 to "
                        f"{counts[kind] - 1}; are its units from another tokenizer?"
                    )

    def allowed(self, modality: "str | Modality") -> np.ndarray:
        """bool (padded_size,): ids that may be generated, with EOS and without padding rows."""
        modality = Modality.of(modality)
        ids = np.arange(self.padded_size)
        if modality is Modality.TEXT:
            return ids < self.text_size
        if modality is Modality.SPEECH:
            speech = (ids >= self.first_unit) & (ids < self.size)
            return speech | np.isin(ids, self.eos)
        return ids < self.size
