"""Ends of a generation: stop strings, and the most seconds of speech."""

from collections.abc import Sequence

import numpy as np

from spirit_jax import markup
from spirit_jax.audio import SAMPLE_RATE
from spirit_jax.generation.config import GenerationConfig
from spirit_jax.models.vocoder_stream import VocoderStream
from spirit_jax.text import TextTokenizer
from spirit_jax.vocab import Vocab

FRAME_SECONDS = 0.04  # of a unit, the least that it lasts
INCOMPLETE = "\ufffd"  # in place of the bytes of an incomplete character


class TextReader:
    """Decodes ids while they are generated: the text since the last marker or unit.

    An id changes only the end of the text, so only ids since the last but one boundary are decoded
    again. A boundary is the end of a whole character after some text that is not a space: there, a
    tokenizer strips no space, and further bytes do not change a character before it.

    Attributes:
      text: the text so far; its last character may be incomplete (U+FFFD).
      token: the marker or unit before the text, such as "[Hu5]"; "" at the beginning.
    """

    def __init__(self, tokenizer: TextTokenizer, vocab: Vocab):
        self._tokenizer, self._vocab = tokenizer, vocab
        self._tokens, self._names = vocab.prompt_tokens(), vocab.token_strings()
        self._start("", "")

    def add(self, new: int) -> str | None:
        """Adds an id. Returns the marker or unit that it is, which ends the text; or None."""
        vocab = self._vocab
        if vocab.text_size <= new < vocab.size:
            number = new - vocab.text_size
            self._start(self._tokens[number], self._names[number], new)
            return self.token
        self._ids.append(new)
        decoded = self._decode(self._previous)
        if not decoded.startswith(self._context):
            # Some tokenizers replace all bytes of a run if one of them is invalid.
            self._previous = self._boundary = 0
            self._before, self._context = "", self._name
            decoded = self._decode(0)
        new_text = decoded[len(self._context) :]
        self.text = self._before + new_text
        if new_text.strip() and not new_text.endswith(INCOMPLETE):
            self._previous, self._boundary = self._boundary, len(self._ids)
            self._before, self._context = self.text, self._decode(self._previous)
        return None

    def _start(self, token: str, name: str, *ids: int) -> None:
        """Starts a text after a marker or unit with its id, or at the beginning without any."""
        self.token, self.text = token, ""
        self._name = name  # of the token in decoded strings
        self._first = list(ids)
        self._ids: list[int] = []
        self._previous = self._boundary = 0  # the last two boundaries, in `_ids`
        self._before = ""  # the text up to the last boundary
        self._context = name  # what the ids between the two boundaries are decoded to

    def _decode(self, start: int) -> str:
        # With the token before the text, so that it is decoded as in the whole sequence.
        return self._tokenizer.decode([*self._first, *self._ids[start:]])


def find_stop(text: str, stops: Sequence[str]) -> int:
    """Where the first stop string begins in a text; -1 if there is none."""
    return min((at for stop in stops if (at := text.find(stop)) >= 0), default=-1)


def cut_at_stop(prompt: str, stops: Sequence[str], notation: markup.Markup) -> str:
    """A generated prompt string up to the first stop string in a text of it."""
    parts = []
    for part in notation.parse(prompt) if stops else ():
        at = -1 if part.is_token else find_stop(part.string, stops)
        if at >= 0:
            return notation.render([*parts, markup.Part(part.string[:at])])
        parts.append(part)
    return prompt


class Stop:
    """`Request.stop` of a request with stop strings or a limit of seconds.

    The ids end with the one that completes a stop string, or with the unit that reaches the limit.

    Attributes:
      has_stopped: whether a stop string was generated.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        vocab: Vocab,
        config: GenerationConfig,
        vocoder: VocoderStream | None,
    ):
        """For one request.

        Args:
          tokenizer, vocab: of the model.
          config: its stop strings and most seconds of speech.
          vocoder: predicts durations of units; without it each unit counts as one frame.
        """
        self._reader, self._stops = TextReader(tokenizer, vocab), config.stop
        self._seconds, self._spoken = config.max_speech_seconds, SpeechCounter(vocoder)
        self._read = 0
        self.has_stopped = False

    def __call__(self, ids: list[int]) -> int | None:
        """See `Request.stop`."""
        while self._read < len(ids):
            token = self._reader.add(ids[self._read])
            self._read += 1
            if token is None and find_stop(self._reader.text, self._stops) >= 0:
                self.has_stopped = True
                return self._read
            if self._seconds is None:
                continue
            if token is not None and token.startswith("[Hu"):
                self._spoken.add(int(token[3:-1]))
            elif token is None and self._reader.text:
                self._spoken.end()
            if self._spoken.seconds >= self._seconds:
                return self._read
        return None


class SpeechCounter:
    """Counts the seconds of phonetic units.

    Attributes:
      seconds: of all units whose duration is known.
    """

    def __init__(self, vocoder: VocoderStream | None):
        self._vocoder, self._state = vocoder, None
        self.seconds = 0.0

    def add(self, unit: int) -> None:
        """Adds a unit."""
        if self._vocoder is None:
            self.seconds += FRAME_SECONDS
            return
        if self._state is None:
            self._state = self._vocoder.start()
        ids_1c = np.zeros((1, len(self._vocoder.config.channels)), np.int32)
        ids_1c[0, 0] = unit
        self._count(ids_1c)

    def end(self) -> None:
        """Ends a piece of speech, so that its last units have a duration too."""
        if self._state is not None:
            self._count(None)
            self._state = None

    def _count(self, ids_uc: np.ndarray | None) -> None:
        self._state, frames_u = self._vocoder.count_frames(self._state, ids_uc)
        self.seconds += float(frames_u.sum()) * self._vocoder.config.code_hop / SAMPLE_RATE
