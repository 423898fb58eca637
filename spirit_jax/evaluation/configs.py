"""Settings of an evaluation. This module imports no JAX."""

import dataclasses
import re
import shutil
from collections.abc import Sequence
from pathlib import PurePath

from spirit_jax import limits
from spirit_jax.errors import InputError
from spirit_jax.generation.config import GenerationConfig

# Codes of ISO 639-3 for languages that have a special rule in `scoring`.
_TWO_LETTERS = {
    **{"eng": "en", "zho": "zh", "cmn": "zh", "jpn": "ja", "tha": "th"},
    **{"khm": "km", "lao": "lo", "mya": "my", "bod": "bo"},
}


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """A task: prompts from a template, whose answers are compared with references.

    Attributes:
      name: shown in the table; also the name of the output files.
      manifest: of items, as for `spirit-jax prepare`; with a field `label` to compare labels.
      ask: template of the prompt, with the placeholders {speech}, {text} and {label}.
      output: "text" or "speech", the modality of the answer.
      compare: "words", with the item's text, or "label".
      shot: template of an example before the prompt (few-shot).
      shots: number of examples.
      examples: manifest from which the examples are drawn.
      end: string that ends a text answer; "" for the end of the generation. "[Speech]" ends it
        where the model switches to speech, as before a next example.
      limit: number of items, drawn at random; 0 for all.
      speakers: use only items of these speakers; all by default.
      voice: speaker of the vocoder for speech answers; "" for the default speaker.
      judge: command of a speech recogniser or classifier for the answers; see
        `scoring.ask_judge`. Required for speech answers.
      language: of the compared words, such as "en" or "hi"; see `scoring.normalise`.
      generation: settings of generation.
    """

    name: str
    manifest: str
    ask: str
    output: str = "text"
    compare: str = "words"
    shot: str = ""
    shots: int = 0
    examples: str = ""
    end: str = ""
    limit: int = 0
    speakers: tuple[str, ...] = ()
    voice: str = ""
    judge: tuple[str, ...] = ()
    language: str = ""
    generation: GenerationConfig = GenerationConfig()

    def __post_init__(self):
        if self.output not in ("text", "speech") or self.compare not in ("words", "label"):
            raise InputError(f"{self.name}: output is text or speech, compare words or label.")
        if self.output == "speech" and not self.judge:
            raise InputError(f"{self.name}: answers of speech need a judge.")
        if (self.end and self.output == "speech") or (self.voice and self.output == "text"):
            raise InputError(f"{self.name}: end is for answers of text, voice for those of speech.")
        for field in ("shots", "limit"):
            _check_count(self, field)
        if self.shots and not (self.shot and self.examples):
            raise InputError(f"{self.name}: {self.shots} shots need a shot and examples.")
        read_language(self.language)


def read_language(code: str) -> str:
    """The language of a code such as "en", "zh-TW" or "eng": ISO 639-1 if it has such a code.

    Args:
      code: a language code, optionally with script and region; "" stays "".

    Raises:
      InputError: it is not such a code, but for example the name of a language.
    """
    language = re.split("[-_]", code)[0].lower() if isinstance(code, str) else "?"
    if code != "" and not re.fullmatch("[a-z]{2,3}", language):
        raise InputError(f"The language is {code!r}; expected a code, such as en, hi or zh.")
    return _TWO_LETTERS.get(language, language)


MODALITIES = ("text", "speech")


@dataclasses.dataclass(frozen=True)
class PairsConfig:
    """Likelihood comparison of pairs of endings.

    Attributes:
      name: shown in the table; also the name of the output file.
      manifest: JSON lines with id, "right", "wrong" and optionally "context", which are objects
        with a text and an audio path (relative to the manifest).
      ending: modality of the endings, "text" or "speech".
      context: modality of the context, "text" or "speech"; "" for that of the ending. If set, every
        pair must have a context.
      counted: the tokens of an ending that count, "text" or "speech"; "" for all. See
        `Vocab.counted`.
      limit: number of pairs, from the start of the manifest; 0 for all.
    """

    name: str
    manifest: str
    ending: str = "text"
    context: str = ""
    counted: str = ""
    limit: int = 0

    def __post_init__(self):
        if self.ending not in MODALITIES or self.context not in ("", *MODALITIES):
            raise InputError(f"{self.name}: ending and context are text or speech.")
        if self.counted not in ("", *MODALITIES):
            raise InputError(f"{self.name}: counted is {self.counted}; expected text or speech.")
        _check_count(self, "limit")


def check_judge(command: Sequence[str]) -> None:
    """Raises an `InputError` if the program of a judge does not exist; see `scoring.ask_judge`."""
    if shutil.which(command[0]) is None:
        raise InputError(f"The judge '{command[0]}' cannot be started (there is no such program).")


def _check_count(part: TaskConfig | PairsConfig, field: str) -> None:
    """Raises an `InputError` for a number below 0."""
    if getattr(part, field) < 0:
        raise InputError(f"{part.name}: {field} is {getattr(part, field)}; expected 0 or more.")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """What to evaluate.

    Attributes:
      tasks: generated answers.
      pairs: likelihood comparisons.
      seed: random seed of items, examples and sampling; for sampling, the seed of the task's
        generation settings is added.
    """

    tasks: tuple[TaskConfig, ...] = ()
    pairs: tuple[PairsConfig, ...] = ()
    seed: int = 0

    def __post_init__(self):
        limits.check_numbers(self, seed=limits.SEED)

    def check_names(self) -> None:
        """Raises an `InputError` if nothing is to run, or a name is not a unique file name."""
        names = [part.name for part in (*self.tasks, *self.pairs)]
        if not names:
            raise InputError("The config has neither tasks nor pairs.")
        for name in names:
            if name in ("", "..") or names.count(name) > 1 or PurePath(name).name != name:
                raise InputError(
                    f"'{name}' cannot name a task: it is not a file name, or not unique."
                )
