"""How far answers are from what was wanted: words, characters, labels."""

import re
import subprocess
from collections.abc import Sequence

import numpy as np

from spirit_jax.errors import InputError
from spirit_jax.evaluation.units import edit_distance


def plain(text: str) -> str:
    """Lower case, without punctuation but apostrophes, and single spaces."""
    return " ".join(re.sub(r"[^\w\s']|_", " ", text.lower()).split())


def error_rates(wanted: Sequence[str], given: Sequence[str]) -> dict[str, float]:
    """Edits in 100 words, "wer", and in 100 characters, "cer", of `plain` texts.

    Raises:
      InputError: there is not a word in what is wanted.
    """
    wanted, given = [plain(text) for text in wanted], [plain(text) for text in given]
    if not any(wanted):
        raise InputError("There are no words to compare with.")
    return {
        "wer": _edits([text.split() for text in wanted], [text.split() for text in given]),
        "cer": _edits([list(text) for text in wanted], [list(text) for text in given]),
    }


def accuracy(wanted: Sequence[str], given: Sequence[str]) -> float:
    """Percent of answers that are what was wanted, as `plain` texts."""
    right = [plain(one) == plain(other) for one, other in zip(wanted, given, strict=True)]
    return 100.0 * float(np.mean(right))


def _edits(wanted: Sequence[list[str]], given: Sequence[list[str]]) -> float:
    pairs = zip(wanted, given, strict=True)
    edits = sum(edit_distance(np.array(a, object), np.array(b, object)) for a, b in pairs)
    return 100.0 * edits / sum(map(len, wanted))


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
    except OSError as error:
        raise InputError(f"The judge '{name}' cannot be started ({error.strerror}).") from error
    except subprocess.CalledProcessError as error:
        raise InputError(f"The judge '{name}' failed (status {error.returncode}).") from error
    answers = done.stdout.splitlines()
    if len(answers) != len(lines):
        raise InputError(
            f"The judge '{name}' answered {len(answers)} of {len(lines)} lines; one each is needed."
        )
    return answers
