"""Spells the words of a text with the labels of a CTC network.

Labels and text are compared in NFKC and lower case. A word with any unknown letter becomes a star:
a wildcard that matches any audio.
"""

import collections
import contextlib
import dataclasses
import unicodedata
from collections.abc import Sequence

from spirit_jax.characters import compose
from spirit_jax.data.labels import UNKNOWN, split_words
from spirit_jax.errors import InputError
from spirit_jax.models.ctc import CtcConfig

NO_WORD = -1
# Characters of phonetic alphabets that are very rare in orthographies.
_PHONETIC = frozenset("ɹɾɐɑɒɜɚɝɫʁʌʔˈˌː")
_MOST_LONG = 3  # at most one of this many labels may have several letters


@dataclasses.dataclass(frozen=True)
class Spelling:
    """The labels of a text.

    Attributes:
      words: in order, without marks of unknown words such as <unk> (stars in `labels` only).
      labels: the network's label ids of all words, with separators between words.
      word_of: index of each label's word; `NO_WORD` for separators and unknown words.
      stars: number of `words` that are stars.
      unknown: the unknown letters, with the number of words that contain them.
    """

    words: tuple[str, ...]
    labels: tuple[int, ...]
    word_of: tuple[int, ...]
    stars: int = 0
    unknown: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def problem(self) -> str:
        """Why the words cannot be aligned; "" if they can."""
        if not self.words:
            return "The text has no words."
        if self.stars == len(self.words):
            return f"Every word has characters that the network does not know ({self._letters()})."
        letters = [letter for letter in self.unknown if letter.isalpha()]
        if letters and 2 * self.stars > len(self.words):
            return (
                f"{self.stars} of {len(self.words)} words have characters that the network does "
                f"not know ({self._letters()}); is it for this language?"
            )
        return ""

    def _letters(self) -> str:
        return ", ".join(list(self.unknown)[:10])


class Speller:
    """Spells texts with a network's labels."""

    def __init__(self, config: CtcConfig, name: str = "the network"):
        """Reads the labels.

        Args:
          config: of the network.
          name: of the network, for messages.

        Raises:
          InputError: the labels are not letters.
        """
        self.star = len(config.labels)
        self._separator = config.labels.index(config.separator) if config.separator else None
        special = {config.blank, self._separator}
        texts = {n: text for n, text in enumerate(config.labels) if text and n not in special}
        _check_letters(list(texts.values()), name)
        self._is_turkish = "ı" in texts.values() or "İ" in texts.values()
        self._is_turkish &= not {"w", "W"} & set(texts.values())
        self._ids: dict[str, int] = {}
        # Many networks have only capitals. If one has both cases, the exact label is preferred.
        for normalise in (lambda text: text, compose, self._fold):
            for number, text in texts.items():
                if len(folded := normalise(text)) == 1:
                    self._ids.setdefault(folded, number)

    def spell(self, text: str) -> Spelling:
        """The labels of a text."""
        words: list[str] = []
        labels: list[int] = []
        word_of: list[int] = []
        stars, unknown = 0, collections.Counter()
        for word in split_words(text, self._is_turkish):
            if labels and self._separator is not None:
                labels.append(self._separator)
                word_of.append(NO_WORD)
            if word == UNKNOWN:
                labels.append(self.star)
                word_of.append(NO_WORD)
                continue
            spelt = [self._spell_letter(letter) for letter in word]
            missing = {c for c, ids in zip(word, spelt, strict=True) if ids is None}
            word_labels = [self.star] if missing else [number for ids in spelt for number in ids]
            word_labels = word_labels or [self.star]  # only apostrophes without a label
            unknown.update(sorted(missing))
            stars += word_labels == [self.star]
            labels += word_labels
            word_of += [len(words)] * len(word_labels)
            words.append(word)
        return Spelling(tuple(words), tuple(labels), tuple(word_of), stars, dict(unknown))

    def _spell_letter(self, letter: str) -> list[int] | None:
        """The labels of a letter, or of its parts; None if the network does not know it."""
        if letter in self._ids:
            return [self._ids[letter]]
        if letter == "'":
            return []
        parts = [self._find(part) for part in unicodedata.normalize("NFD", letter)]
        return None if None in parts else parts

    def _find(self, part: str) -> int | None:
        """The label of a part of a letter; a final Hangul consonant may use the plain letter's."""
        name = unicodedata.name(part, "")
        if part not in self._ids and name.startswith("HANGUL JONGSEONG "):
            letter = name.replace("JONGSEONG", "LETTER")
            with contextlib.suppress(KeyError):
                part = unicodedata.lookup(letter)
        return self._ids.get(part)

    def _fold(self, text: str) -> str:
        words = split_words(text, self._is_turkish)
        return words[0] if len(words) == 1 else ""


def _check_letters(labels: Sequence[str], name: str) -> None:
    """Raises `InputError` for labels that are phonemes or pieces of words."""
    written = [compose(label).strip("\u2581") for label in labels]  # SentencePiece's space
    letters = [label for label in written if label.isalpha()]
    long = [label for label in letters if len(label) > 1]
    phonetic = _PHONETIC & set("".join(written))
    if len(phonetic) > 1 or len(long) * _MOST_LONG > len(letters):
        examples = ", ".join((sorted(phonetic) or long)[:5])
        raise InputError(
            f"{name}: its labels are phonemes or pieces of words ({examples}), which cannot spell "
            "a text; use a network that was trained on letters."
        )
