"""Text and speech as they are generated; see `SpiritLM.stream`."""

import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from spirit_jax import markup, units
from spirit_jax.audio import SAMPLE_RATE
from spirit_jax.errors import InputWarning
from spirit_jax.generation.config import GenerationConfig
from spirit_jax.generation.engine import Engine
from spirit_jax.generation.outputs import OutputPart, SpeechLimit
from spirit_jax.generation.request import Request
from spirit_jax.generation.stopping import TextReader, find_stop
from spirit_jax.speech_tokenizer import SpeechTokenizer
from spirit_jax.text import TextTokenizer
from spirit_jax.vocab import Modality, Vocab

Voice = tuple[int | str | None, int | str | None]  # speaker and style


class Stream:
    """An iterator over the parts of a request's outputs.

    The request runs while the iterator is read. Leaving the loop early, `close` and the end of a
    `with` block end it, and its row is free at the next step of the engine.

    Attributes:
      sample_rate: of speech, in Hz.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, engine: Engine, request: Request, reader: "OutputReader"):
        """Queues the request; raises `InputError` if it cannot be used."""
        self._generation = engine.submit(request)
        self._parts = _read(engine, self._generation, reader)

    def __iter__(self) -> Iterator[OutputPart]:
        return self

    def __next__(self) -> OutputPart:
        try:
            return next(self._parts)
        except BaseException:  # at the end too
            self._generation.cancel()
            raise

    def close(self) -> None:
        """Ends the request."""
        self._generation.cancel()
        self._parts.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self):
        if generation := getattr(self, "_generation", None):
            generation.cancel()


def _read(engine: Engine, generation, reader: "OutputReader") -> Iterator[OutputPart]:
    for ids in engine.stream(generation):
        yield from reader.add(ids)
        if reader.ended:
            return
    if generation.error is not None:
        raise generation.error
    yield from reader.finish()


class OutputReader:
    """Turns ids into outputs while they are generated, by the rules of `units.plan_outputs`.

    Attributes:
      ended: whether a stop string or the limit of speech was reached, so that nothing may follow.
    """

    def __init__(
        self,
        prompt: str,
        text_tokenizer: TextTokenizer,
        vocab: Vocab,
        config: GenerationConfig,
        speech_tokenizer: Callable[[], SpeechTokenizer],
        voice: Voice,
    ):
        """For one request.

        Args:
          prompt: the prompt string.
          text_tokenizer, vocab: of the model.
          config: stop strings, and most seconds of speech.
          speech_tokenizer: called when there is speech; it may raise `InputError`.
          voice: speaker and style.
        """
        self._reader = TextReader(text_tokenizer, vocab)
        self._stops, self._limit = config.stop, SpeechLimit(config.max_speech_seconds)
        self._new_speech = lambda context, least: SpeechReader(
            speech_tokenizer(), voice, bool(vocab.pitch_units), context, least
        )
        self._context = units.speech_at_end(prompt, vocab.markup)
        self._kind: Modality | None = None  # of the last piece
        self._pieces = self._outputs = 0  # pieces of generated text or speech; those not dropped
        self._sent = 0  # characters of the reader's text
        self._speech: SpeechReader | None = None
        self._is_output = False  # whether the last piece is an output
        self.ended = False

    def add(self, ids: Sequence[int]) -> Iterator[OutputPart]:
        """The parts of outputs that are known after further ids."""
        for new in ids:
            text = self._text()
            token = self._reader.add(new)
            if token is None:
                text = self._text()
                if not text:
                    continue
                at = find_stop(self._reader.text, self._stops)
                if at >= 0:
                    skipped = len(self._reader.text) - len(text)
                    yield from self._end(text[: max(0, at - skipped)].rstrip())
                    self.ended = True
                    return
                yield from self._say(text[: _settled(text, self._stops)])
                continue
            yield from self._say(text)
            self._sent = 0
            if not markup.MARKER.fullmatch(token):
                self._add_unit(token)
        yield from self._speak(at_end=False)

    def finish(self) -> Iterator[OutputPart]:
        """The last parts."""
        yield from self._end(self._text().rstrip())

    def _text(self) -> str:
        """The text since the last marker or unit; without white space that begins the output."""
        text = self._reader.text
        return text if self._reader.token else text.lstrip()

    def _end(self, text: str) -> Iterator[OutputPart]:
        yield from self._say(text)
        yield from self._speak(at_end=True)

    def _say(self, text: str) -> Iterator[OutputPart]:
        """The part of a text that was not given out yet."""
        if not text:
            return
        if self._kind is not Modality.TEXT:
            yield from self._speak(at_end=True)
            self._begin(Modality.TEXT)
        new, self._sent = text[self._sent :], max(self._sent, len(text))
        if new and not self.ended:
            yield self._part(new)

    def _add_unit(self, token: str) -> None:
        if self._kind is not Modality.SPEECH:
            context = self._context if not self._pieces else ""
            least = units.MIN_SPEECH_UNITS if self._pieces or context else 1
            self._speech = self._new_speech(context, least)
            self._begin(Modality.SPEECH)
        self._speech.add(token)

    def _speak(self, at_end: bool) -> Iterator[OutputPart]:
        if self._speech is None:
            return
        wave = self._limit.cut(self._speech.read(at_end))
        if len(wave):
            yield self._part(wave)
        if at_end:
            self._speech = None
        self.ended = self.ended or self._limit.reached

    def _begin(self, kind: Modality) -> None:
        self._kind, self._is_output = kind, False
        self._pieces += 1

    def _part(self, content: str | np.ndarray) -> OutputPart:
        self._outputs += not self._is_output
        self._is_output = True
        return OutputPart(content, self._kind, self._outputs - 1)


class SpeechReader:
    """Vocodes the units of one piece of speech while they are generated."""

    def __init__(
        self, tokenizer: SpeechTokenizer, voice: Voice, needs_pitch: bool, context: str, least: int
    ):
        """For one piece.

        Args:
          tokenizer: with a vocoder.
          voice: speaker and style.
          needs_pitch: speech without a pitch unit is left out.
          context: the speech before it, as a unit string, which is not given out.
          least: smallest number of Hu; with fewer, the piece is dropped.
        """
        self._tokenizer, self._voice, self._least = tokenizer, voice, least
        self._vocoder = tokenizer.vocoder_stream
        channels = self._vocoder.config.channels
        kinds = (("[Pi", needs_pitch or "pitch" in channels), ("[St", "style" in channels))
        self._needed = [kind for kind, is_needed in kinds if is_needed]
        self._needs_pitch = needs_pitch
        self._known = context  # later only the last pitch and style unit before `_new`
        self._new: list[str] = []
        self._count = 0
        self._state = None

    def add(self, token: str) -> None:
        """Adds a unit, such as "[Hu5]"."""
        self._new.append(token)
        self._count += token.startswith("[Hu")

    def read(self, at_end: bool) -> np.ndarray:
        """The samples that are known now and were not given out yet; all of them at the end."""
        nothing = np.zeros(0, np.float32)
        if self._count < self._least:
            return nothing
        last = max((i for i, t in enumerate(self._new, 1) if t.startswith("[Hu")), default=0)
        size = len(self._new) if at_end else last
        new, later = "".join(self._new[:size]), self._new[size:]
        if self._state is None:
            if at_end and self._needs_pitch and "[Pi" not in self._known + new:
                warnings.warn("Speech without any pitch unit was left out.", InputWarning, 2)
                return nothing
            # A unit before the first pitch or style unit has that one, so it must be known.
            if not at_end and any(kind not in self._known + new for kind in self._needed):
                return nothing
        self._new = later
        wave = self._step(new) if last else nothing
        return np.concatenate([wave, self._vocoder.finish(self._state)]) if at_end else wave

    def _step(self, new: str) -> np.ndarray:
        """Vocodes further units."""
        speech = units.from_string(self._known + new, self._vocoder.config.common_style)
        ids_uc = self._tokenizer.vocoder_ids(speech, *self._voice)
        if self._state is None:
            before = len(ids_uc) - units.count_hubert(new)
            self._state = self._vocoder.start(ids_uc[:before])
            ids_uc = ids_uc[before:]
        last = (("St", speech.style), ("Pi", speech.pitch))
        self._known = "".join(f"[{kind}{x[-1]}]" for kind, x in last if x is not None)
        self._state, wave = self._vocoder.step(self._state, ids_uc)
        return wave


def _settled(text: str, stops: Sequence[str]) -> int:
    """Length of the whole words of a text that no further text can change or end before them."""
    for size in range(max(map(len, stops), default=1) - 1, 0, -1):
        if any(text.endswith(stop[:size]) for stop in stops if len(stop) > size):
            text = text[: len(text) - size]
            break
    words = text.rstrip()
    if words == text:  # the last word may go on
        words = text[: max((i for i, c in enumerate(text) if c.isspace()), default=0)].rstrip()
    return len(words)
