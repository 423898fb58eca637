"""How far answers are from what was wanted: words, characters, labels."""

import functools
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from spirit_jax import bucketing, files
from spirit_jax.errors import InputError

# Written without spaces between words: there each character counts as a word, as Whisper's
# evaluation has it.
UNSPACED = ("bo", "ja", "km", "lo", "my", "th", "yue", "zh")
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\uff07`\u00b4\u2032", "'"))
_UNSPACED_NAMES = ("CJK", "HIRAGANA", "KATAKANA", "KHMER", "LAO", "MYANMAR", "THAI", "TIBETAN")


def normalise(texts: Sequence[str], language: str = "", like: Sequence[str] = ()) -> list[str]:
    """Texts as error rates compare them: by the normaliser of Whisper's evaluation.

    English: numbers are digits, contractions are written out, spellings are American, fillers are
    left out. Other languages: lower case without punctuation; marks such as vowel signs stay.
    Source: arXiv 2212.04356, appendix C; the package whisper-normalizer.

    Args:
      texts: of any kind.
      language: a code such as "en" or "hi". By default the references tell: English where all
        their letters are ASCII, and each character is a word where most are of a script that is
        written without spaces.
      like: the references, where they are not the texts themselves.
    """
    change = _normaliser(language or _guess_language(like or texts))
    return [change(text) for text in texts]


def error_rates(
    wanted: Sequence[str], given: Sequence[str], language: str = ""
) -> dict[str, float]:
    """Edits in 100 words, "wer", and in 100 characters, "cer", of normalised texts, by jiwer.

    Args:
      wanted: the references.
      given: as many hypotheses.
      language: see `normalise`.

    Raises:
      InputError: there is not a word in what is wanted.
    """
    import jiwer

    _check_texts(wanted, given)
    references = normalise(wanted, language)
    hypotheses = normalise(given, language, like=wanted)
    if not any(references):
        raise InputError("There are no words to compare with.")
    wer = jiwer.wer(references, hypotheses)
    if (language or _guess_language(wanted)) in UNSPACED:
        references, hypotheses = (
            [text.replace(" ", "") for text in texts] for texts in (references, hypotheses)
        )
    return {"wer": 100.0 * wer, "cer": 100.0 * jiwer.cer(references, hypotheses)}


def accuracy(wanted: Sequence[str], given: Sequence[str], language: str = "") -> float:
    """Percent of answers that are what was wanted, as normalised texts.

    A text of which nothing is left, such as "?", is compared as it is.
    """
    _check_texts(wanted, given)
    wanted_keys = normalise(wanted, language)
    given_keys = normalise(given, language, like=wanted)
    right = [
        one == other if one or other else first.strip() == second.strip()
        for one, other, first, second in zip(wanted_keys, given_keys, wanted, given, strict=True)
    ]
    return 100.0 * float(np.mean(right))


def _check_texts(wanted: Sequence[str], given: Sequence[str]) -> None:
    """Raises `InputError` unless there are as many answers as references, and all are texts."""
    for texts in (wanted, given):
        if not all(isinstance(text, str) for text in bucketing.as_list(texts, "texts")):
            raise InputError("What is compared must be texts.")
    if not len(wanted) == len(given) > 0:
        raise InputError(f"There are {len(wanted)} references for {len(given)} answers.")


def _compose(text: str) -> str:
    """A text with one form of each letter (no ligatures, no full width) and of the apostrophe."""
    return unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).translate(_APOSTROPHES)


def _guess_language(texts: Sequence[str]) -> str:
    letters = [letter for letter in _compose("".join(texts)) if letter.isalpha()]
    if all(letter.isascii() for letter in letters):
        return "en"
    unspaced = sum(unicodedata.name(letter, "").startswith(_UNSPACED_NAMES) for letter in letters)
    return UNSPACED[0] if 2 * unspaced > len(letters) else "other"


@functools.cache
def _normaliser(language: str) -> Callable[[str], str]:
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    if language == "en":
        normalizer = EnglishTextNormalizer()
    else:
        split = language in UNSPACED
        normalizer = BasicTextNormalizer(preserve_marks=True, split_letters=split)

    def change(text: str) -> str:
        text = _compose(text)
        text = "".join(each for each in text if unicodedata.category(each) != "Cf")  # unseen
        if language != "en":  # "SS" is "ß" in capitals, and "i" is the Turkish "İ" in small letters
            text = text.replace("\u0130", "i").casefold()
        words = normalizer(text).split()
        return " ".join(word for word in words if any(map(str.isalnum, word)))  # "..." leaves "."

    return change


def check_judge(command: Sequence[str]) -> None:
    """Raises an `InputError` if there is no such program; see `ask_judge`."""
    if shutil.which(command[0]) is None:
        raise InputError(f"The judge '{command[0]}' cannot be started (there is no such program).")


def ask_judge(command: Sequence[str], lines: Sequence[str]) -> list[str]:
    """What a judge, a recogniser or classifier, says of sounds or texts.

    Args:
      command: a program and its arguments. It reads a line each from its standard input, the path
        of a WAV file or a text, and writes a line each to its standard output.
      lines: for it to read.

    Raises:
      InputError: it cannot be started, fails, or does not answer every line.
    """
    if not lines:
        return []
    name = " ".join(command)
    try:
        done = subprocess.run(
            command,
            input="".join(re.sub(r"[\r\n]+", " ", line) + "\n" for line in lines),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    except (OSError, MemoryError) as error:
        raise InputError(
            f"The judge '{name}' cannot be started ({files.describe(error)})."
        ) from error
    except subprocess.CalledProcessError as error:
        raise InputError(f"The judge '{name}' failed (status {error.returncode}).") from error
    answers = done.stdout.splitlines()
    if len(answers) != len(lines):
        raise InputError(
            f"The judge '{name}' answered {len(answers)} of {len(lines)} lines; one each is needed."
        )
    return answers
