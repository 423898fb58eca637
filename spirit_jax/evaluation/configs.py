"""How an evaluation is configured. Importing this is cheap."""

import dataclasses
from pathlib import PurePath

from spirit_jax import limits
from spirit_jax.errors import InputError
from spirit_jax.generation.config import GenerationConfig


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """A task.

    Attributes:
      name: in the table.
      manifest: of items, as `spirit-jax prepare` takes it; of a field `label` besides, if labels
        are compared.
      ask: the prompt; {speech}, {text} and {label} stand for what an item has.
      output: "text" or "speech", the kind of the answer.
      compare: "words", with an item's text, or "label".
      shot: an example before the prompt, of one item.
      shots: how many there are.
      examples: the manifest they are drawn from.
      end: what ends an answer of text; "" for the end of the generation. "[Speech]", of a next
        example, ends it where the model goes over to speech.
      limit: items that are drawn; 0 for all.
      speakers: whose recordings are taken; all by default.
      voice: that speaks answers of speech; the default one if "".
      judge: see `scoring.ask_judge`; needed to compare speech. Texts are compared as they are
        without one.
      language: of the words that are compared, such as "en" or "hi"; see `scoring.normalise`.
      generation: how answers are made.
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
            raise InputError(f"{self.name}: speech is compared by what a judge says of it.")
        if (self.end and self.output == "speech") or (self.voice and self.output == "text"):
            raise InputError(f"{self.name}: end is for answers of text, voice for those of speech.")
        if self.shots < 0 or self.limit < 0 or (self.shots and not (self.shot and self.examples)):
            raise InputError(f"{self.name}: shots, 0 or more, need a shot and examples.")


MODALITIES = ("text", "speech")


@dataclasses.dataclass(frozen=True)
class PairsConfig:
    """A set of pairs, in one way.

    Attributes:
      name: in the table.
      manifest: a JSON object a line: id, "right" and "wrong", and a "context" if there is one, each
        an object with a text and an audio (a path from the manifest's folder).
      ending: "text" or "speech".
      context: the same; "" for the modality of the ending, and where pairs may have no context.
      limit: pairs that are taken, from the first on; 0 for all.
    """

    name: str
    manifest: str
    ending: str = "text"
    context: str = ""
    limit: int = 0

    def __post_init__(self):
        if self.ending not in MODALITIES or self.context not in ("", *MODALITIES):
            raise InputError(f"{self.name}: ending and context are text or speech.")
        if self.limit < 0:
            raise InputError(f"{self.name}: limit must be 0 or more.")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """What to evaluate.

    Attributes:
      tasks: that a model answers.
      pairs: that it tells apart by likelihood.
      seed: of what is drawn: items, shots, answers (there, a generation's own is added to it).
    """

    tasks: tuple[TaskConfig, ...] = ()
    pairs: tuple[PairsConfig, ...] = ()
    seed: int = 0

    def __post_init__(self):
        limits.check_numbers(self, seed=limits.SEED)

    def check_names(self) -> None:
        """Raises an `InputError` where there is nothing to run, or a name is no folder's name."""
        names = [part.name for part in (*self.tasks, *self.pairs)]
        if not names:
            raise InputError("The config has neither tasks nor pairs.")
        for name in names:
            if name in ("", "..") or names.count(name) > 1 or PurePath(name).name != name:
                raise InputError(
                    f"'{name}' cannot name a task: it is no folder's name, or there twice."
                )
