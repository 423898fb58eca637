"""What is generated, for the user: text and speech."""

import dataclasses

import numpy as np

from spirit_jax.audio import SAMPLE_RATE
from spirit_jax.vocab import Modality


@dataclasses.dataclass(frozen=True)
class Output:
    """A piece of generated text or speech.

    Attributes:
      content: the text, or float32 (t,) samples at 16 kHz.
      content_type: `Modality.TEXT` or `Modality.SPEECH`.
    """

    content: str | np.ndarray
    content_type: Modality


@dataclasses.dataclass(frozen=True)
class OutputPart(Output):
    """A part of an output, as it comes.

    Attributes:
      number: of the output to which the part belongs, from 0.
    """

    number: int


class SpeechLimit:
    """Cuts speech after a number of seconds in all; without a number it cuts nothing."""

    def __init__(self, seconds: float | None):
        self._left = None if seconds is None else int(seconds * SAMPLE_RATE)

    @property
    def reached(self) -> bool:
        """Whether nothing may follow."""
        return self._left is not None and self._left <= 0

    def cut(self, wave: np.ndarray) -> np.ndarray:
        """The samples that are still allowed."""
        if self._left is None:
            return wave
        wave = wave[: self._left]
        self._left -= len(wave)
        return wave


def limit_speech(outputs: list[Output], seconds: float | None) -> list[Output]:
    """Outputs up to the given seconds of speech in all; None for no limit."""
    limit, kept = SpeechLimit(seconds), []
    for output in outputs:
        if limit.reached:
            break
        if output.content_type is Modality.SPEECH:
            output = dataclasses.replace(output, content=limit.cut(output.content))
        kept.append(output)
    return kept
