"""Scores of generated answers: word and character error rates, and accuracy."""

import functools
import re
import subprocess
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from spirit_jax import bucketing, files
from spirit_jax.characters import compose
from spirit_jax.errors import InputError
from spirit_jax.evaluation.configs import read_language

# Languages without spaces between words: each character counts as a word, as in the evaluation of
# Whisper.
UNSPACED = ("bo", "ja", "km", "lo", "my", "th", "yue", "zh")
_UNSPACED_NAMES = ("CJK", "HIRAGANA", "KATAKANA", "KHMER", "LAO", "MYANMAR", "THAI", "TIBETAN")


def normalise(texts: Sequence[str], language: str = "", like: Sequence[str] = ()) -> list[str]:
    """Normalises texts before they are compared, like the evaluation of Whisper.

    English: numbers become digits, contractions are expanded, spellings become American, and
    fillers are removed. Other languages: lower case without punctuation; combining marks are kept.
    Source: arXiv 2212.04356, appendix C; the package whisper-normalizer.

    Args:
      texts: any texts.
      language: a code such as "en" or "hi". By default it is guessed from the references: English
        if all letters are ASCII; a language without spaces between words if most letters are of
        such a script.
      like: the references, if `texts` are not the references.

    Returns:
      The normalised texts, in order.

    Raises:
      InputError: `language` is not such a code.
    """
    change = _normaliser(read_language(language) or _guess_language(like or texts))
    return [change(text) for text in texts]


def error_rates(
    references: Sequence[str], hypotheses: Sequence[str], language: str = ""
) -> dict[str, float]:
    """Word and character error rates of normalised texts, by jiwer.

    Args:
      references: correct texts.
      hypotheses: generated texts, as many as references.
      language: see `normalise`.

    Returns:
      "wer" and "cer", in percent.

    Raises:
      InputError: the references have no words, the numbers of texts differ, or `language` is not
        a language code.
    """
    import jiwer

    _check_texts(references, hypotheses)
    correct = normalise(references, language)
    generated = normalise(hypotheses, language, like=references)
    if not any(correct):
        raise InputError("There are no words to compare with.")
    wer = jiwer.wer(correct, generated)
    if (read_language(language) or _guess_language(references)) in UNSPACED:
        correct, generated = (
            [text.replace(" ", "") for text in texts] for texts in (correct, generated)
        )
    return {"wer": 100.0 * wer, "cer": 100.0 * jiwer.cer(correct, generated)}


def accuracy(references: Sequence[str], hypotheses: Sequence[str], language: str = "") -> float:
    """Percentage of hypotheses that equal their reference after normalisation.

    If both texts are empty after normalisation, such as "?", they are compared unnormalised.

    Args:
      references: correct texts.
      hypotheses: generated texts, as many as references.
      language: see `normalise`.

    Raises:
      InputError: the numbers of texts differ, there are none, or `language` is not a language
        code.
    """
    _check_texts(references, hypotheses)
    correct = normalise(references, language)
    generated = normalise(hypotheses, language, like=references)
    is_right = [
        a == b if a or b else reference.strip() == hypothesis.strip()
        for a, b, reference, hypothesis in zip(
            correct, generated, references, hypotheses, strict=True
        )
    ]
    return 100.0 * float(np.mean(is_right))


def _check_texts(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    """Raises `InputError` unless there are as many hypotheses as references, and all are texts."""
    for texts in (references, hypotheses):
        if not all(isinstance(text, str) for text in bucketing.as_list(texts, "texts")):
            raise InputError("References and hypotheses must be texts.")
    if not len(references) == len(hypotheses) > 0:
        raise InputError(f"There are {len(references)} references for {len(hypotheses)} answers.")


def _guess_language(texts: Sequence[str]) -> str:
    letters = [letter for letter in compose("".join(texts)) if letter.isalpha()]
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
        text = compose(text)
        text = "".join(each for each in text if unicodedata.category(each) != "Cf")  # invisible
        if language != "en":  # casefold: "ß" is "SS" in capitals; "İ" is "i" in lower case
            text = text.replace("\u0130", "i").casefold()
        words = normalizer(text).split()
        return " ".join(word for word in words if any(map(str.isalnum, word)))  # "..." leaves "."

    return change


def ask_judge(command: Sequence[str], lines: Sequence[str]) -> list[str]:
    """Runs a judge, such as a speech recogniser or classifier, on WAV files or texts.

    Args:
      command: a program and its arguments. It reads a line for each input from standard input, the
        path of a WAV file or a text, and writes a line for each to standard output.
      lines: its inputs.

    Returns:
      A line of output for each input.

    Raises:
      InputError: the program cannot be started, fails, or writes another number of lines or text
        that is not UTF-8.
    """
    if not lines:
        return []
    name = " ".join(command)
    try:
        given = "".join(re.sub(r"[\r\n]+", " ", line) + "\n" for line in lines)
        done = subprocess.run(
            command,
            # A path may have bytes that are not UTF-8, which Python keeps as surrogates.
            input=given.encode("utf-8", "surrogateescape"),
            stdout=subprocess.PIPE,
            check=True,
        )
        written = done.stdout.decode("utf-8-sig")
    except UnicodeEncodeError as error:
        raise InputError(f"A line for the judge '{name}' is not valid Unicode.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The judge '{name}' wrote text that is not UTF-8.") from error
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a NUL character
        raise InputError(
            f"The judge '{name}' cannot be started ({files.describe(error)})."
        ) from error
    except subprocess.CalledProcessError as error:
        raise InputError(f"The judge '{name}' failed (status {error.returncode}).") from error
    # Only "\n" ends an answer: a text may contain U+2028 and the like.
    answers = [line.removesuffix("\r") for line in written.removesuffix("\n").split("\n")]
    answers = answers if written else []
    if len(answers) != len(lines):
        raise InputError(
            f"The judge '{name}' answered {len(answers)} of {len(lines)} lines; it must answer "
            "each with one line."
        )
    return answers
