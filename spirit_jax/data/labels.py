"""What is a word of a transcript, and what is a label of something that is no word.

One rule for every reader. What stands in <>, [] or {} is a label: <unk>, [laughter], {LG}. So is
what stands in () or between asterisks if all of it is in `NOISES`: (laughs), *coughs*, but not
(and so on). A few labels stand for words that were spoken and are not known, such as <unk> and
[inaudible]: `UNKNOWN_NAMES`. Bare codes such as "sil" are words of some languages, so they count as
labels in TextGrids alone: `CODES`.
"""

import re
import unicodedata

UNKNOWN = "<unk>"  # the one form in which a spoken word that is not known is passed on

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
    """What the text of an interval or word is, if it is a label as a whole.

    Args:
      text: as it is in the file.
      is_textgrid: bare codes such as "sil" and "spn" are labels too.

    Returns:
      `UNKNOWN` for a spoken word that is not known, "" for any other label, None for words.
    """
    text = text.strip()
    if is_textgrid and text.lower() in CODES:
        return ""
    if is_textgrid and text.lower() in ("spn", "unk", "oov"):
        return UNKNOWN
    match = _LABEL.fullmatch(text)
    return _meaning(match) if match else None


def split_words(text: str, is_turkish: bool = False) -> list[str]:
    """As `normalise_words`, with `UNKNOWN` where a label says that unknown words are spoken.

    Args:
      text: of any kind.
      is_turkish: the small letter of I is the dotless one.
    """

    def replace(match: re.Match) -> str:
        meaning = _meaning(match)
        return match[0] if meaning is None else f" {meaning and mark} "

    mark = "\ue000"  # of private use, so no letter; it survives until the words are apart
    text = unicodedata.normalize("NFKC", text).replace(mark, " ")
    text = _LABEL.sub(replace, text)
    text = (text.replace("I", "\u0131") if is_turkish else text).lower().replace("\u2019", "'")
    text = text.replace("i\u0307", "i")  # what lower() makes of the Turkish capital dotted I
    text = "".join(character for character in text if unicodedata.category(character) != "Cf")
    kept = (
        character
        if character in ("'", mark) or unicodedata.category(character)[0] in "LMN"
        else " "
        for character in text
    )
    stripped = (word.strip("'") for word in "".join(kept).split())
    return [UNKNOWN if word == mark else word for word in stripped if word]


def normalise_words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation but apostrophes within words.

    Letters of all scripts and digits stay. Other signs divide words, hyphens too. Labels such as
    [laughter] are left out.
    """
    return [word for word in split_words(text) if word != UNKNOWN]


def _meaning(match: re.Match) -> str | None:
    """As `read_label`, of a match of `_LABEL`."""
    inside = next(group for group in match.groups() if group is not None).strip().lower()
    words = re.split(r"[\s,-]+", inside)
    if inside in UNKNOWN_NAMES:
        return UNKNOWN
    if match["round"] is None and match["star"] is None:
        return ""
    return "" if all(word in NOISES for word in words) else None
