"""Transcription of speech, and whether a transcript counts as understood.

A language model writes fluent sentences of its training domain whatever the audio is. Two scores
say how far to trust a transcript; `python -m evaluators.calibrate` chose their thresholds for the
packaged models:

* the mean log probability of the transcript's tokens after the recording;
* the mean log probability of the recording's units after the transcript, as if the model read it
  aloud. It rejects sounds without words, after which a model may be sure of a short word.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spirit_jax import config, markup
from spirit_jax.audio import MIN_SAMPLES, SAMPLE_RATE, Audio, load_audio
from spirit_jax.errors import InputError
from spirit_jax.text import TextTokenizer
from spirit_jax.units import Units

CONFIG_NAME = "transcription.json"
NOT_UNDERSTOOD, NOTHING_SAID = "not understood", "nothing was said"
ROWS = 8  # of a batch, always: other shapes would round the scores in another way

# A sound in which nothing changes has no speech in it.
FRAME, HOP = 400, 160  # samples: 25 ms, and 10 ms from one to the next
SMOOTHED = 5  # frames
BANDS = (100, 400, 800, 1300, 2000, 3000, 4500)  # Hz
LEAST_CHANGE = 10.0  # dB from a quiet to a loud frame of the band that changes most
FLOOR = 1 / 32_768  # root mean square; as quiet as the rounding of 16-bit samples


@dataclasses.dataclass(frozen=True)
class TranscriptionConfig:
    """How a model was taught to write speech down: `transcription.json` of its folder.

    Attributes:
      prompt: the prompt string; {speech} stands for the recording's units. It may begin with
        examples, for a model that needs them.
      end: what ends the transcript; "" for the end of the generation.
      max_new_tokens: of a transcript.
      min_log_prob: the least mean natural log probability of a token at which a transcript is
        understood; None if that was not calibrated.
      read_aloud: the prompt string of reading aloud; {text} stands for the transcript. "" for a
        model that does not.
      min_read_aloud: the least mean natural log probability of the recording's unit tokens after
        that prompt; None if that was not calibrated.
      command: how the two least values were calibrated.
      figures: what they do on recordings that were not used for them, in percent.
    """

    prompt: str
    end: str = ""
    max_new_tokens: int = 60
    min_log_prob: float | None = None
    read_aloud: str = ""
    min_read_aloud: float | None = None
    command: str = ""
    figures: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.prompt.count("{speech}") != 1:
            raise InputError("The prompt of a transcription has {speech} once.")
        if self.read_aloud and self.read_aloud.count("{text}") != 1:
            raise InputError("The prompt of reading aloud has {text} once.")
        for name in ("min_log_prob", "min_read_aloud"):
            least = getattr(self, name)
            if least is not None and not -math.inf < least <= 0:
                raise InputError(f"{name} is {least}; a log probability is 0 or less, and finite.")
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1.")
        if self.min_read_aloud is not None and not self.read_aloud:
            raise InputError("min_read_aloud needs read_aloud, the prompt of reading aloud.")

    @property
    def flag(self) -> str:
        """What a transcript begins with in training, such as "T:"; it is no part of the words."""
        return self.prompt.rpartition("[Text]")[2].strip()


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What a model wrote down of a recording.

    Attributes:
      text: the words; "" where nothing was said.
      log_prob: mean natural log probability of a token of the transcript, its end included, by the
        model's own distribution over text tokens (temperature 1); None where nothing was said.
      read_aloud: mean natural log probability of the recording's unit tokens after the transcript;
        None where nothing was said, or for a model that does not read aloud.
      understood: whether both scores reach what was calibrated; None if nothing was calibrated.
      said: whether there is anything in the recording that could be speech.
    """

    text: str
    log_prob: float | None
    read_aloud: float | None
    understood: bool | None
    said: bool = True

    def describe(self) -> str:
        """The words, or why there are none."""
        if not self.said:
            return NOTHING_SAID
        return NOT_UNDERSTOOD if self.understood is False else self.text


def describe_scores(how: TranscriptionConfig, transcript: Transcript) -> str:
    """How sure a model is of a transcript, beside how sure it must be, in a phrase."""
    scores = (
        ("a token", transcript.log_prob, how.min_log_prob),
        ("a unit read aloud", transcript.read_aloud, how.min_read_aloud),
    )
    return "mean log probability " + ", ".join(
        f"{score:.2f} {name}" + (f" (understood from {least} on)" if least is not None else "")
        for name, score, least in scores
        if score is not None
    )


def read_config(folder: str | Path) -> TranscriptionConfig:
    """How the model of a folder transcribes.

    Raises:
      InputError: its folder does not say, or the file is damaged.
    """
    path = Path(folder) / CONFIG_NAME
    if not path.is_file():
        raise InputError(
            f"{folder}: does not say how it writes speech down ({CONFIG_NAME} is not there); write "
            "one, or give a prompt with examples (docs/evaluation.md has both)."
        )
    return config.read(TranscriptionConfig, path)


def drop_flag(folder: str | Path, text: str) -> str:
    """A generated text without the flag by which the model of a folder marks a transcript."""
    if not (Path(folder) / CONFIG_NAME).is_file():
        return text
    flag, words = read_config(folder).flag, text.lstrip()
    return words.removeprefix(flag).lstrip() if flag and words.startswith(flag) else text


def copy_config(source: str | Path, output: str | Path) -> None:
    """Copies a folder's `transcription.json`, if it has one, for a model that was trained further.

    What was calibrated holds for the model that it was calibrated with, so it is left out.
    """
    if (Path(source) / CONFIG_NAME).is_file():
        own = dataclasses.replace(
            read_config(source), min_log_prob=None, min_read_aloud=None, command="", figures={}
        )
        config.write(own, Path(output) / CONFIG_NAME)


def transcribe(
    lm: Any, how: TranscriptionConfig, recordings: Sequence[Audio | Units]
) -> list[Transcript]:
    """What a model writes down of recordings; see `SpiritLM.transcribe`.

    Args:
      lm: a `SpiritLM`.
      how: it transcribes.
      recordings: each in any form that `SpeechTokenizer.encode` takes, or units.
    """
    waves = {i: load_audio(r) for i, r in enumerate(recordings) if not isinstance(r, Units)}
    spoken = [i for i, wave in waves.items() if not is_still(wave)]
    encoded = lm.speech_tokenizer.encode_batch([waves[i] for i in spoken])
    units_by_index = {i: recording for i, recording in enumerate(recordings) if i not in waves}
    units_by_index |= zip(spoken, encoded, strict=True)
    strings = {
        i: lm.speech_tokenizer.to_string(units) for i, units in units_by_index.items() if len(units)
    }

    prompts = {
        i: fill(how.prompt, {"speech": string}.__getitem__, lm.text_tokenizer)
        for i, string in strings.items()
    }
    sizes = {i: len(ids) for i, ids in _encoded(lm, prompts)}
    for i, size in sizes.items():
        if size + how.max_new_tokens > lm.max_tokens:
            name = recordings[i] if isinstance(recordings[i], str | Path) else f"recording {i}"
            raise InputError(
                f"{name}: is too long to transcribe: {size} tokens and {how.max_new_tokens} of the "
                f"transcript, and the model has room for {lm.max_tokens}; cut it into pieces."
            )
    written: dict[int, tuple[str, float]] = {}
    for rows in _groups(sizes, ROWS, 16):
        # The first again where a row is free: it ends when that does.
        own = [prompts[i] for i in rows] + [prompts[rows[0]]] * (ROWS - len(rows))
        given = lm.continue_prompts(own, "text", max_new_tokens=how.max_new_tokens)
        for i, continuation in zip(rows, given, strict=False):
            text = lm.text_tokenizer.decode(continuation.ids)
            text = text.split(how.end)[0] if how.end else text
            written[i] = text.strip(), float(np.mean(continuation.log_probs))

    aloud = _score_aloud(lm, how, {i: text for i, (text, _) in written.items() if text}, strings)
    transcripts = []
    for i in range(len(recordings)):
        text, log_prob = written.get(i, ("", None))
        if text:
            transcripts.append(judge(how, Transcript(text, log_prob, aloud.get(i), None)))
        else:
            transcripts.append(Transcript("", None, None, None, said=False))
    return transcripts


def _score_aloud(
    lm: Any, how: TranscriptionConfig, texts: dict[int, str], strings: dict[int, str]
) -> dict[int, float]:
    """The mean log probability of each recording's unit tokens after its transcript."""
    if not how.read_aloud:
        return {}
    pairs = {
        i: (fill(how.read_aloud, {"text": text}.__getitem__, lm.text_tokenizer), strings[i])
        for i, text in texts.items()
    }
    sizes = {i: len(ids) for i, ids in _encoded(lm, {i: a + b for i, (a, b) in pairs.items()})}
    aloud = {}
    for rows in _groups(sizes, ROWS, 32):
        for i, (total, count) in zip(rows, lm.score([pairs[i] for i in rows]), strict=True):
            aloud[i] = total / count
    return aloud


def judge(how: TranscriptionConfig, transcript: Transcript) -> Transcript:
    """A transcript with whether it is understood."""
    if not transcript.said or how.min_log_prob is None:
        return dataclasses.replace(transcript, understood=None)
    understood = transcript.log_prob >= how.min_log_prob
    if how.min_read_aloud is not None:
        understood &= transcript.read_aloud >= how.min_read_aloud
    return dataclasses.replace(transcript, understood=understood)


def _encoded(lm: Any, prompts: dict[int, str]) -> Iterator[tuple[int, list[int]]]:
    return ((i, lm.text_tokenizer.encode(prompt)) for i, prompt in prompts.items())


def _groups(sizes: dict[int, int], rows: int, smallest: int) -> Iterator[list[int]]:
    """At most `rows` keys at a time, of sizes that are padded to the same power of two.

    So each is computed in the same shapes whatever it is beside, with the same rounding.
    """
    padded: dict[int, list[int]] = {}
    for key, size in sizes.items():
        padded.setdefault(max(size - 1, smallest - 1).bit_length(), []).append(key)
    for keys in padded.values():
        for first in range(0, len(keys), rows):
            yield keys[first : first + rows]


def fill(template: str, content_of: Callable[[str], str], tokenizer: TextTokenizer) -> str:
    """The prompt string of a template.

    Args:
      template: a prompt string in which {speech}, {text} and {label} stand for what is put there;
        a word behind a marker gets the tokenizer's usual space.
      content_of: what that is, by these names: a unit string for speech, else text, in which what
        looks like a marker or unit is text.
      tokenizer: of the model.
    """
    spaced = re.sub(r"\[Text\](?=.)", lambda match: match[0] + tokenizer.word_prefix, template)
    parts: list[markup.Part] = []
    for place, piece in enumerate(re.split(r"\{(speech|text|label)\}", spaced)):
        if place % 2 and piece != "speech":
            parts.append(markup.Part(content_of(piece)))
        else:
            parts += markup.parse(content_of(piece) if place % 2 else piece)
    return markup.render(parts)


def is_still(samples_t: np.ndarray) -> bool:
    """Whether nothing changes in a sound: silence, steady noise or hum, or too short for speech.

    Speech changes by tens of dB within a second in every band, and still by 10 dB in the clearest
    one beside noise that is as loud. Frames are compared by their energy in bands, in which steady
    noise hardly varies.

    Args:
      samples_t: float32, 16 kHz.
    """
    if len(samples_t) < MIN_SAMPLES:
        return True
    starts = np.arange(0, len(samples_t) - FRAME + 1, HOP)
    frames = samples_t[starts[:, None] + np.arange(FRAME)] * np.hanning(FRAME).astype(np.float32)
    power_tf = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    edges = [round(hertz * FRAME / SAMPLE_RATE) for hertz in BANDS]
    floor_f = FLOOR**2 * np.sum(np.hanning(FRAME) ** 2)
    for low, high in zip(edges, edges[1:], strict=False):
        energy_t = power_tf[:, low:high].mean(axis=1) + floor_f
        smooth_t = np.convolve(energy_t, np.ones(SMOOTHED) / SMOOTHED, mode="valid")
        quiet, loud = np.percentile(10 * np.log10(smooth_t), [5, 95]) if len(smooth_t) else (0, 0)
        if loud - quiet >= LEAST_CHANGE:
            return False
    return True
