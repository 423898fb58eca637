"""Distinguishes words of a transcript from labels of noises and unknown words.

All readers use these rules. Text in <>, [] or {} is a label: <unk>, [laughter], {LG}. Text in () or
between asterisks is a label if all its words are in `NOISES`: (laughs), *coughs*, but not
(and so on). The labels in `UNKNOWN_NAMES`, such as <unk> and [inaudible], mark spoken but unknown
words. Bare codes such as "sil" are words in some languages, so they are only labels in TextGrids:
`CODES`.
"""

import re
import unicodedata

from spirit_jax.characters import compose

UNKNOWN = "<unk>"  # in place of every spoken but unknown word

UNKNOWN_NAMES = frozenset(
    "unk oov spn unknown inaudible unintelligible indistinct spoken_noise xxx".split()
)
NOISES = frozenset(
    "applause background beep blank_audio breath breathes breathing breaths bell bells buzzing "
    "chatter cheering chuckle chuckles chuckling clapping click clicking clicks cough coughing "
    "coughs crosstalk cry crying exhales footsteps gasp gasps groan groans hum humming inhales "
    "instrumental laugh laughing laughs laughter lipsmack mumble mumbles mumbling music noise "
    "noises pause phone ringing rustling scream screaming screams sigh sighing sighs silence "
    "singing smack sneeze sneezes sniff sniffing sniffles sniffs snorts sobbing sobs static "
    "throat whistle whistles whistling wind yawn yawning yawns "
    "dramatic gentle loud playing soft upbeat and clearing clears".split()
)
CODES = frozenset(["", "sp", "sil", "silence", "pau", "nsn", "lau", "brth", "ns", "eps", "#"])

_LABEL = re.compile(
    r"<(?P<angle>[^<>\s]{0,40})>|\[(?P<square>[^\[\]]{0,60})\]|\{(?P<curly>[^{}]{0,60})\}"
    r"|\((?P<round>[^()]{1,60})\)|\*(?P<star>[^*]{1,60})\*"
)


def read_label(text: str, is_textgrid: bool = False) -> str | None:
    """Classifies the text of an interval or word.

    Args:
      text: as written in the file.
      is_textgrid: whether bare codes such as "sil" and "spn" are labels too.

    Returns:
      `UNKNOWN` for the label of an unknown word, "" for another label, None for words.
    """
    text = text.strip()
    if is_textgrid and text.lower() in CODES:
        return ""
    if is_textgrid and text.lower() in ("spn", "unk", "oov"):
        return UNKNOWN
    match = _LABEL.fullmatch(text)
    return _meaning(match) if match else None


def split_words(text: str, is_turkish: bool = False) -> list[str]:
    """As `normalise_words`, with `UNKNOWN` for the label of an unknown word.

    Args:
      text: any text.
      is_turkish: whether the lower case of "I" is the dotless "ı".
    """

    def replace(match: re.Match) -> str:
        meaning = _meaning(match)
        return match[0] if meaning is None else f" {meaning and mark} "

    mark = "\ue000"  # a private-use character in place of `UNKNOWN` until the words are split
    text = compose(text).replace(mark, " ")
    text = _LABEL.sub(replace, text)
    text = (text.replace("I", "\u0131") if is_turkish else text).lower()
    text = text.replace("i\u0307", "i")  # lower() of the Turkish capital dotted I
    text = "".join(character for character in text if unicodedata.category(character) != "Cf")
    characters = (
        character
        if character in ("'", mark) or unicodedata.category(character)[0] in "LMN"
        else " "
        for character in text
    )
    stripped = (word.strip("'") for word in "".join(characters).split())
    return [UNKNOWN if word == mark else word for word in stripped if word]


def normalise_words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation except apostrophes within words.

    Letters of all scripts and digits are kept. Other characters, including hyphens, separate words.
    Labels such as [laughter] are removed.
    """
    return [word for word in split_words(text) if word != UNKNOWN]


def _meaning(match: re.Match) -> str | None:
    """As `read_label`, for a match of `_LABEL`."""
    inside = next(group for group in match.groups() if group is not None).strip().lower()
    words = re.split(r"[\s,-]+", inside)
    if inside in UNKNOWN_NAMES:
        return UNKNOWN
    if match["round"] is None and match["star"] is None:
        return ""
    return "" if all(word in NOISES for word in words) else None
