"""The demo: the packaged models transcribe, synthesise and continue text and speech."""

import dataclasses
import itertools
import shutil
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from spirit_jax import files, markup, model_folder, small_world, transcription, units
from spirit_jax.audio import SAMPLE_RATE, load_audio, write_wav
from spirit_jax.errors import InputError
from spirit_jax.files import lock
from spirit_jax.pictures import Panel, draw
from spirit_jax.spiritlm import SpiritLM

TEXT = "please turn on the lights in the kitchen"  # to synthesise
START = "the young queen lost a book"  # of a story, to continue
UNCLEAR = "unclear: the generated intent does not match the transcript"
SPEAKERS = ("rms", "slt")
STYLES = ("lively", "sad")  # a recording of each is in assets
RECORDINGS = ("question", "request")  # in assets, by a speaker that is not in the training data
# In the training data (configs/tiny), the flag before a transcript, and before a request's intent.
TRANSCRIPT, INTENT = "T:", "A:"
MAX_PIECES, MAX_UNITS = 60, 300  # of a generated text, and of generated speech
SILENCE = 0.1  # seconds of padding: players cut off the start and end of a file
LONGEST_NAME = 40  # characters shown of a part of the text that cannot be synthesised


@dataclasses.dataclass
class Results:
    """The output of the demo.

    Attributes:
      output: folder for WAV files.
      console: for printed lines.
      panels: of the figure.
    """

    output: Path
    console: Console
    panels: list[Panel] = dataclasses.field(default_factory=list)

    def print(self, label: str, content: str) -> None:
        """Prints a line with a label."""
        line = f"{label:10} {content}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def print_recording(self, name: str) -> None:
        """Prints the path and the reference transcript of a recording of assets."""
        reference = files.read_json(model_folder.ASSETS / "recordings.json")[name]
        self.print("recording", f"{self.output / _asset(name).name}: {reference!r}")

    def synthesise(self, lm: SpiritLM, name: str, title: str, prompt: str, speaker: str) -> None:
        """Writes the speech that continues a prompt string (greedy) to NAME.wav, and adds a panel.

        Args:
          lm: the language model.
          name: of the file, without suffix.
          title: of the panel.
          prompt: prompt string.
          speaker: of the vocoder.
        """
        (ids,) = lm.generate_ids([prompt], "speech", max_new_tokens=MAX_UNITS)
        strings = [lm.text_tokenizer.decode_prompt(ids)]
        # least=1, since a short word has few units.
        (speech,) = lm.decode_outputs([prompt], strings, speaker, least=1)
        wave = speech[0].content if speech else np.zeros(0, np.float32)
        title = title if speech else f"{title} (no speech was generated)"
        wave = np.pad(wave, round(SILENCE * SAMPLE_RATE))
        path = self.output / f"{name}.wav"
        write_wav(path, wave)
        self.print("speech", f"{path}, {len(wave) / SAMPLE_RATE:.1f} s: {title}")
        self.panels.append(Panel(title, wave))


def run(
    output: str | Path, speech: str | Path | None, text: str | None, console: Console
) -> list[Panel]:
    """Transcribes and answers recordings, synthesises a text, and continues a story.

    Args:
      output: folder for the WAV files and `demo.png`.
      speech: an audio file; `RECORDINGS` by default.
      text: the text to synthesise and to continue, in the words that the packaged models know;
        `TEXT` and `START` by default.
      console: for printed lines.

    Returns:
      The panels of the figure, in order.

    Raises:
      InputError: a recording cannot be used, the text is too long, or the folder cannot be written
        or is in use by another process.
    """
    start = time.monotonic()
    output = files.as_path(output)
    story, unread = small_world.read_out(START if text is None else text)
    text, _ = small_world.read_out(TEXT if text is None else text)
    report_unknown(text, unread, console)
    paths = {name: _asset(name) for name in RECORDINGS} if speech is None else {"": speech}
    waves = {name: load_audio(path) for name, path in paths.items()}
    results = Results(output, console)
    with lock.hold(output, "demo.lock", choice="output folder"):
        _run(results, waves, text, story, are_packaged=speech is None)
    console.print(f"done in {time.monotonic() - start:.0f} s")
    return results.panels


def _run(
    results: Results, waves: dict[str, np.ndarray], text: str, story: str, are_packaged: bool
) -> None:
    """Writes all results; whether `waves` are those of `RECORDINGS` is `are_packaged`."""
    with results.console.status("loading spirit-tiny-base"):
        lm = SpiritLM.from_pretrained("spirit-tiny-base")
    check_length(lm, text)
    for name in (*RECORDINGS, *STYLES):
        with files.whole_file(results.output / _asset(name).name) as copy:
            shutil.copyfile(_asset(name), copy)
    for number, (name, wave) in enumerate(waves.items(), start=1):
        if are_packaged:
            results.print_recording(name)
        transcribe_and_answer(results, lm, wave, f"answer-{number}")
    read(results, lm, text)
    continue_story(results, lm, story)
    with results.console.status("loading spirit-tiny-expressive"):
        lm = SpiritLM.from_pretrained("spirit-tiny-expressive")
    read_in_styles(results, lm, text)
    with results.console.status("drawing"):
        draw(results.output / "demo.png", results.panels)
    results.print("figure", f"{results.output / 'demo.png'}")


def report_unknown(text: str, unread: list[str], console: Console) -> None:
    """Prints which parts of a text are not synthesised, and which words the models do not know.

    Args:
      text: words from `small_world.read_out`.
      unread: unreadable parts from `small_world.read_out`.
      console: to print to.

    Raises:
      InputError: the text has no words.
    """
    left_out = ", ".join(repr(part[:LONGEST_NAME]) for part in unread)
    if not text:
        raise InputError(
            "The text has no words that can be read"
            + (f": {left_out} cannot be read." if unread else ".")
        )
    if unread:
        console.print(f"Left out, since the models cannot read it: {left_out}.", markup=False)
    known = (model_folder.ASSETS / "spirit-tiny-base" / "words.txt").read_text().split()
    if unknown := list(dict.fromkeys(word for word in text.split() if word not in known)):
        console.print(f"The models do not know {', '.join(unknown)}; expect errors there.")


def check_length(lm: SpiritLM, text: str) -> None:
    """Raises an `InputError` if a text is too long for its speech to fit in the model's context."""
    tokens = len(lm.text_tokenizer.encode(f"[Text]{TRANSCRIPT} {text}[Speech]"))
    most = lm.max_tokens - MAX_UNITS
    if tokens > most:
        raise InputError(
            f"The text has {tokens} tokens; at most {most} can be synthesised. Shorten it."
        )


def transcribe_and_answer(results: Results, lm: SpiritLM, wave: np.ndarray, name: str) -> None:
    """Transcribes a recording; continues a question with its answer, or gives a request's intent.

    The answer is synthesised. A recording that is not understood is only transcribed.

    Args:
      results: where to print and write.
      lm: the language model.
      wave: float32 (t,) samples at 16 kHz.
      name: of the answer's WAV file, without suffix.
    """
    prefix = lm.text_tokenizer.word_prefix
    with results.console.status("transcribing"):
        (transcript,) = lm.transcribe([wave])
    length = f"{len(wave) / SAMPLE_RATE:.1f} s"
    if not transcript.has_speech:
        results.print("input", f"{length}: {transcription.NOTHING_SAID}")
        return
    string = units.to_string(lm.speech_tokenizer.encode(wave))
    results.print("input", f"{length}, {units.count_hubert(string)} units: {string[:60]}...")
    words = transcript.describe()
    results.print("transcript", repr(words) if transcript.understood else words)
    results.print("scores", transcription.describe_scores(lm.transcription_config, transcript))
    results.panels.append(Panel(f"input, transcribed as: {words}", wave))
    if not transcript.understood:
        return
    with results.console.status("generating"):
        answer = complete(lm, f"[Text]{prefix}{markup.escape(words)}")
    if answer:
        results.print("answer", repr(answer))
        prompt = f"[Text]{prefix}{TRANSCRIPT} {markup.escape(answer)}[Speech]"
        results.synthesise(lm, name, f"answer, synthesised: {answer}", prompt, SPEAKERS[-1])
    elif small_world.intent_of(words):
        results.print("intent", find_intent(lm, string, words))


def find_intent(lm: SpiritLM, string: str, words: str) -> str:
    """The intent of a spoken request, or `UNCLEAR` if it does not match the transcript.

    Args:
      lm: the language model.
      string: the unit string of the recording.
      words: the transcript of the recording.
    """
    prompt = f"[Speech]{string}[Text]{lm.text_tokenizer.word_prefix}{INTENT}"
    # The batch size and length of transcription, so that no other program is compiled.
    rows = [prompt] * transcription.ROWS
    ids, *_ = lm.generate_ids(rows, max_new_tokens=lm.transcription_config.max_new_tokens)
    intent = first_text(lm, ids)
    return repr(intent) if intent == small_world.intent_of(words) else UNCLEAR


def read(results: Results, lm: SpiritLM, text: str) -> None:
    """Synthesises a text with each speaker.

    Args:
      results: where to print and write.
      lm: the language model.
      text: words from `small_world.read_out`.
    """
    prefix = lm.text_tokenizer.word_prefix
    with results.console.status("synthesising"):
        for speaker in SPEAKERS:
            prompt = f"[Text]{prefix}{TRANSCRIPT} {text}[Speech]"
            title = f"{speaker} reads: {text}"
            results.synthesise(lm, f"read-{speaker}", title, prompt, speaker)


def continue_story(results: Results, lm: SpiritLM, text: str) -> None:
    """Continues a text in text and in speech.

    Args:
      results: where to print and write.
      lm: the language model.
      text: words from `small_world.read_out`.
    """
    prompt = f"[Text]{lm.text_tokenizer.word_prefix}{text}"
    with results.console.status("continuing a story"):
        results.print("story", f"{text!r}: {complete(lm, prompt)!r}")
        prompt += "[Speech]"
        results.synthesise(lm, "story", f"continuation of: {text}", prompt, SPEAKERS[-1])


def read_in_styles(results: Results, lm: SpiritLM, text: str) -> None:
    """Synthesises a text in each style, prompted by a recording's style unit and first pitch unit.

    Args:
      results: where to print and write.
      lm: an expressive language model.
      text: words from `small_world.read_out`.
    """
    prefix = lm.text_tokenizer.word_prefix
    with results.console.status("synthesising in two styles"):
        for style in STYLES:
            recording = lm.speech_tokenizer.encode(load_audio(_asset(style)))
            results.print_recording(style)
            start = f"[St{np.bincount(recording.style).argmax()}][Pi{recording.pitch[0]}]"
            prompt = f"[Text]{prefix}{TRANSCRIPT} {text}[Speech]{start}"
            title = f"{style}, {SPEAKERS[-1]} reads: {text}"
            results.synthesise(lm, f"read-{style}", title, prompt, SPEAKERS[-1])


def complete(lm: SpiritLM, prompt: str) -> str:
    """The text that continues a prompt string (greedy), up to the first marker or unit."""
    # The limit of speech, so that no other program is compiled than for synthesis.
    (ids,) = lm.generate_ids([prompt], max_new_tokens=MAX_UNITS)
    return first_text(lm, ids)


def first_text(lm: SpiritLM, ids: list[int]) -> str:
    """The text at the start of generated ids, up to the first marker or unit."""
    text_ids = itertools.takewhile(lambda token: token < lm.vocab.text_size, ids[:MAX_PIECES])
    return lm.text_tokenizer.decode(list(text_ids)).strip()


def _asset(name: str) -> Path:
    return model_folder.ASSETS / f"{name}.flac"
