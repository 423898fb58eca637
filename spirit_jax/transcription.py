"""Transcription of recordings by a language model, with confidence scores.

A language model generates fluent sentences like those of its training data for any input. Two
scores measure how reliable a transcript is. `python -m evaluators.calibrate` finds their thresholds
for the packaged models:

* the mean log probability of the transcript's tokens, given the recording;
* the mean log probability of the recording's units, given the transcript, as in speech synthesis.
  It detects sounds without words, for which the model may give a short word a high probability.

Both scores can be high for a recording that is shorter than any sentence, or clipped, so these are
checked on the samples (`find_problem`). A recording that was cut off between two words, or in the
middle of a sentence that is still a plausible one, cannot be distinguished from a complete one.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spirit_jax import config, files, markup
from spirit_jax.audio import MIN_SAMPLES, SAMPLE_RATE, Audio, load_audio
from spirit_jax.errors import InputError
from spirit_jax.text import TextTokenizer
from spirit_jax.units import Units

CONFIG_NAME = "transcription.json"
NOT_UNDERSTOOD, NOTHING_SAID = "not understood", "nothing was said"
# Constants of `find_problem`. At most 0.4 % of the samples of a recording that is not clipped are
# above this part of its peak, in the 530 recordings of evaluators.calibrate, and 13 % of a sine.
# The packaged recordings, amplified and clipped, have some right transcripts up to 11 % (Base),
# and only wrong ones from 17 % on.
NEAR_PEAK = 0.98
MAX_NEAR_PEAK = 0.15  # share of samples

ROWS = 8  # fixed batch size: with other shapes the scores would be rounded differently

# Constants of `is_still`: a sound whose spectrum does not change has no speech in it.
FRAME, HOP = 400, 160  # samples: frames of 25 ms, every 10 ms
SMOOTHED = 5  # frames
BANDS = (100, 400, 800, 1300, 2000, 3000, 4500)  # Hz
LEAST_CHANGE = 10.0  # dB between quiet and loud frames, in the band that changes most
FLOOR = 1 / 32_768  # root mean square; the level of the rounding of 16-bit samples


@dataclasses.dataclass(frozen=True)
class TranscriptionConfig:
    """The prompts and thresholds of a model: `transcription.json` of its folder.

    Attributes:
      prompt: the prompt string, with {speech} in place of the recording's units. It may begin with
        examples, for a model that needs them.
      end: string at which the transcript is cut; "" for the end of the generation.
      max_new_tokens: the most tokens of a transcript.
      min_log_prob: the smallest mean natural log probability of a token for which a transcript
        counts as understood; None without calibration.
      read_aloud: the prompt string of speech synthesis, with {text} in place of the transcript; ""
        if the model cannot synthesise.
      min_read_aloud: the smallest mean natural log probability of the recording's unit tokens after
        the prompt `read_aloud`; None without calibration.
      min_seconds: the transcript of a shorter recording does not count as understood.
      command: the calibration command.
      figures: results of the thresholds on held-out recordings, in percent.
    """

    prompt: str
    end: str = ""
    max_new_tokens: int = 60
    min_log_prob: float | None = None
    read_aloud: str = ""
    min_read_aloud: float | None = None
    min_seconds: float = 0.0
    command: str = ""
    figures: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.prompt.count("{speech}") != 1:
            raise InputError("The prompt of a transcription must contain {speech} once.")
        if self.read_aloud and self.read_aloud.count("{text}") != 1:
            raise InputError("The prompt read_aloud must contain {text} once.")
        for name in ("min_log_prob", "min_read_aloud"):
            threshold = getattr(self, name)
            if threshold is not None and not -math.inf < threshold <= 0:
                raise InputError(
                    f"{name} is {threshold}; a log probability is finite and 0 or less."
                )
        if not 0 <= self.min_seconds < math.inf:
            raise InputError(f"min_seconds is {self.min_seconds}; it must be 0 or more.")
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1.")
        if self.min_read_aloud is not None and not self.read_aloud:
            raise InputError("min_read_aloud needs the prompt read_aloud.")

    @property
    def flag(self) -> str:
        """The marker before transcripts in training, such as "T:"; not part of the words."""
        return self.prompt.rpartition("[Text]")[2].strip()


@dataclasses.dataclass(frozen=True)
class Transcript:
    """A transcript of a recording, with its scores.

    Attributes:
      text: the words; "" if the recording has no speech.
      log_prob: mean natural log probability of the transcript's tokens, including EOS, in the
        model's distribution over text tokens at temperature 1; None without speech.
      read_aloud: mean natural log probability of the recording's unit tokens, given the transcript;
        None without speech, or if the model cannot synthesise.
      understood: whether both scores reach their thresholds and there is no problem; None without
        calibration, if there is no problem.
      has_speech: whether the recording may contain speech.
      problem: why no transcript of the recording is reliable (see `find_problem`); usually "".
    """

    text: str
    log_prob: float | None
    read_aloud: float | None
    understood: bool | None
    has_speech: bool = True
    problem: str = ""

    def describe(self) -> str:
        """The words, or the reason why there are none."""
        if not self.has_speech:
            return NOTHING_SAID
        if self.understood is not False:
            return self.text
        return f"{NOT_UNDERSTOOD}: {self.problem}" if self.problem else NOT_UNDERSTOOD


def describe_scores(settings: TranscriptionConfig, transcript: Transcript) -> str:
    """The scores of a transcript and their thresholds, in a phrase."""
    scores = (
        ("of the text", transcript.log_prob, settings.min_log_prob),
        ("of the units given the text", transcript.read_aloud, settings.min_read_aloud),
    )
    return "mean log probability " + ", ".join(
        f"{score:.2f} {name}" + (f" (threshold {threshold})" if threshold is not None else "")
        for name, score, threshold in scores
        if score is not None
    )


def read_config(folder: str | Path) -> TranscriptionConfig:
    """Reads `transcription.json` of a model folder.

    Raises:
      InputError: the folder has no such file, or it is damaged.
    """
    path = files.as_path(folder) / CONFIG_NAME
    if not path.is_file():
        raise InputError(
            f"{folder}: has no {CONFIG_NAME}, which has the prompt of transcription; write one, or "
            "give a prompt with examples (docs/eval.md has both)."
        )
    return config.read(TranscriptionConfig, path)


def drop_flag(folder: str | Path, text: str) -> str:
    """A generated text without the flag that a model puts before transcripts, if it has one."""
    if not (files.as_path(folder) / CONFIG_NAME).is_file():
        return text
    flag, words = read_config(folder).flag, text.lstrip()
    return words.removeprefix(flag).lstrip() if flag and words.startswith(flag) else text


def copy_config(source: str | Path, output: str | Path) -> None:
    """Copies a folder's `transcription.json`, if it has one, for a model that was trained further.

    The thresholds are dropped, since they are calibrated for the original model only.
    """
    if (files.as_path(source) / CONFIG_NAME).is_file():
        settings = dataclasses.replace(
            read_config(source),
            min_log_prob=None,
            min_read_aloud=None,
            min_seconds=0.0,
            command="",
            figures={},
        )
        config.write(settings, files.as_path(output) / CONFIG_NAME)


def transcribe(
    lm: Any, settings: TranscriptionConfig, recordings: Sequence[Audio | Units]
) -> list[Transcript]:
    """Transcribes recordings; see `SpiritLM.transcribe`.

    Args:
      lm: a `SpiritLM`.
      settings: prompts and thresholds.
      recordings: each in any form that `SpeechTokenizer.encode` accepts, or units.

    Returns:
      A transcript for each recording, in order.

    Raises:
      InputError: a recording cannot be read, or is too long.
    """
    waves = {i: load_audio(r) for i, r in enumerate(recordings) if not isinstance(r, Units)}
    strings = encode_recordings(lm, recordings, waves)
    prompts = {
        i: fill(settings.prompt, {"speech": string}.__getitem__, lm.text_tokenizer)
        for i, string in strings.items()
    }
    sizes = {i: len(lm.text_tokenizer.encode(prompt)) for i, prompt in prompts.items()}
    for i, size in sizes.items():
        if size + settings.max_new_tokens > lm.max_tokens:
            name = recordings[i] if isinstance(recordings[i], str | Path) else f"recording {i}"
            raise InputError(
                f"{name}: is too long to transcribe: {size} tokens and {settings.max_new_tokens} "
                f"of the transcript, but the model has {lm.max_tokens} positions; split it."
            )
    texts: dict[int, str] = {}
    log_probs: dict[int, float] = {}
    for indices in _groups(sizes, ROWS, 16):
        # Free rows repeat the first prompt, so they do not generate longer than it.
        padding = [prompts[indices[0]]] * (ROWS - len(indices))
        rows = [prompts[i] for i in indices] + padding
        continuations = lm.continue_prompts(rows, "text", max_new_tokens=settings.max_new_tokens)
        for i, continuation in zip(indices, continuations, strict=False):
            text = lm.text_tokenizer.decode(continuation.ids)
            text = text.split(settings.end)[0] if settings.end else text
            texts[i], log_probs[i] = text.strip(), float(np.mean(continuation.log_probs))

    texts = {i: text for i, text in texts.items() if text}
    read_aloud = score_read_aloud(lm, settings, texts, strings)
    transcripts = [Transcript("", None, None, None, has_speech=False)] * len(recordings)
    for i, text in texts.items():
        problem = find_problem(settings, waves[i]) if i in waves else ""
        transcript = Transcript(text, log_probs[i], read_aloud.get(i), None, problem=problem)
        transcripts[i] = apply_thresholds(settings, transcript)
    return transcripts


def encode_recordings(
    lm: Any, recordings: Sequence[Audio | Units], waves: dict[int, np.ndarray]
) -> dict[int, str]:
    """The unit strings of recordings that may contain speech; they and `waves` are by index."""
    with_speech = [i for i, wave in waves.items() if not is_still(wave)]
    tokenizer = lm.speech_tokenizer
    encoded = tokenizer.encode_batch([waves[i] for i in with_speech])
    units_by_index = {i: recording for i, recording in enumerate(recordings) if i not in waves}
    units_by_index |= zip(with_speech, encoded, strict=True)
    return {
        i: tokenizer.to_string(units)
        for i, units in units_by_index.items()
        if len(units) and not tokenizer.is_blank(units)
    }


def score_read_aloud(
    lm: Any, settings: TranscriptionConfig, texts: dict[int, str], strings: dict[int, str]
) -> dict[int, float]:
    """The mean log probability of each recording's unit tokens, given its transcript."""
    if not settings.read_aloud:
        return {}
    pairs = {
        i: (fill(settings.read_aloud, {"text": text}.__getitem__, lm.text_tokenizer), strings[i])
        for i, text in texts.items()
    }
    sizes = {i: len(lm.text_tokenizer.encode(a + b)) for i, (a, b) in pairs.items()}
    scores = {}
    for indices in _groups(sizes, ROWS, 32):
        sums = lm.score([pairs[i] for i in indices])
        for i, (total, count) in zip(indices, sums, strict=True):
            scores[i] = total / count
    return scores


def apply_thresholds(settings: TranscriptionConfig, transcript: Transcript) -> Transcript:
    """The transcript with `understood` set."""
    if transcript.problem:
        return dataclasses.replace(transcript, understood=False)
    if not transcript.has_speech or settings.min_log_prob is None:
        return dataclasses.replace(transcript, understood=None)
    understood = transcript.log_prob >= settings.min_log_prob
    if settings.min_read_aloud is not None:
        understood &= transcript.read_aloud >= settings.min_read_aloud
    return dataclasses.replace(transcript, understood=understood)


def _groups(sizes: dict[int, int], rows: int, smallest: int) -> Iterator[list[int]]:
    """Groups of at most `rows` keys whose sizes are padded to the same power of two.

    The shapes of a computation, and so its rounding, then do not depend on the other keys.
    """
    padded: dict[int, list[int]] = {}
    for key, size in sizes.items():
        padded.setdefault(max(size - 1, smallest - 1).bit_length(), []).append(key)
    for keys in padded.values():
        for first in range(0, len(keys), rows):
            yield keys[first : first + rows]


def fill(template: str, content_of: Callable[[str], str], tokenizer: TextTokenizer) -> str:
    """Fills in a template.

    Args:
      template: a prompt string with the placeholders {speech}, {text} and {label}. A word directly
        after a marker gets the tokenizer's `word_prefix`.
      content_of: the content of a placeholder, by its name: a unit string for speech, else a text,
        which is escaped.
      tokenizer: the text tokenizer of the model.

    Returns:
      The prompt string.
    """
    spaced = re.sub(r"\[Text\](?=.)", lambda match: match[0] + tokenizer.word_prefix, template)
    notation = tokenizer.markup
    parts: list[markup.Part] = []
    for number, piece in enumerate(re.split(r"\{(speech|text|label)\}", spaced)):
        is_placeholder = number % 2 == 1
        if is_placeholder and piece != "speech":
            parts.append(markup.Part(content_of(piece)))
        else:
            parts += notation.parse(content_of(piece) if is_placeholder else piece)
    return notation.render(parts)


def find_problem(settings: TranscriptionConfig, samples_t: np.ndarray) -> str:
    """Why no transcript of a recording is reliable, with what to do; "" if there is no reason.

    Args:
      settings: `min_seconds` is used.
      samples_t: float32 (t,) samples at 16 kHz.
    """
    seconds = len(samples_t) / SAMPLE_RATE
    if seconds < settings.min_seconds:
        return (
            f"the recording has {seconds:.2f} s, and a whole sentence at least "
            f"{settings.min_seconds} s; record a whole sentence"
        )
    level_t = np.abs(samples_t)
    near = np.count_nonzero(level_t >= NEAR_PEAK * level_t.max(initial=0))
    share = near / max(1, len(level_t))
    if share > MAX_NEAR_PEAK:
        return (
            f"{share:.0%} of the samples are near the largest value, as in a clipped recording; "
            "record it at a lower volume"
        )
    return ""


def is_still(samples_t: np.ndarray) -> bool:
    """Whether a sound cannot be speech: it is silence, steady noise or hum, or too short.

    The energy of speech changes by tens of dB within a second in every frequency band. With noise
    of the same loudness it still changes by 10 dB in some band. The energy of steady noise hardly
    changes.

    Args:
      samples_t: float32 (t,) samples at 16 kHz.
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
