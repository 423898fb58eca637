"""The demo: the small models of the package hear, write, read aloud and go on."""

import dataclasses
import itertools
import shutil
import time
from pathlib import Path

import matplotlib
import numpy as np
from rich.console import Console

matplotlib.use("Agg")  # a picture in a file needs no display
from matplotlib import pyplot  # noqa: E402

from spirit_jax import (  # noqa: E402
    f0,
    files,
    markup,
    model_folder,
    small_world,
    transcription,
    units,
)
from spirit_jax.audio import SAMPLE_RATE, load_audio, write_wav  # noqa: E402
from spirit_jax.errors import InputError  # noqa: E402
from spirit_jax.spiritlm import SpiritLM  # noqa: E402

TEXT = "please turn on the lights in the kitchen"  # to read aloud
START = "the young queen lost a book"  # of a story, to go on from
UNCLEAR = "unclear: what the model takes the request for does not fit its words"
VOICES = ("rms", "slt")
MANNERS = ("lively", "sad")  # a recording of each is in assets
RECORDINGS = ("question", "request")  # in assets, by a voice that no network was trained on
# What stands before a text that is the same as the speech before or after it, and before what a
# request asks for, in all that the model was trained on (configs/tiny).
SAME, MEANING = "T:", "A:"
MOST_PIECES, MOST_UNITS = 60, 300  # of an answer
SILENCE = 0.1  # seconds before and after what is spoken: players cut off the first and last moment
LONGEST_NAME = 40  # characters of what cannot be read
PICTURE_SECONDS = 12  # more would be too dense to read


@dataclasses.dataclass(frozen=True)
class Sound:
    """A panel of the picture: what it shows, and float32 samples at 16 kHz."""

    title: str
    wave: np.ndarray


@dataclasses.dataclass
class Stage:
    """Where the models' words and sounds go: a console, WAV files in a folder, and `sounds`."""

    output: Path
    console: Console
    sounds: list[Sound] = dataclasses.field(default_factory=list)

    def tell(self, what: str, content: str) -> None:
        """Prints a line."""
        line = f"{what:10} {content}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def tell_source(self, name: str) -> None:
        """Says what is said in a recording of assets, and where its copy lies."""
        said = files.read_json(model_folder.ASSETS / "recordings.json")[name]
        self.tell("recording", f"{self.output / _asset(name).name}, which says {said!r}")

    def speak(self, lm: SpiritLM, name: str, title: str, prompt: str, voice: str) -> None:
        """Keeps the likeliest speech after a prompt string as NAME.wav."""
        (ids,) = lm.generate_ids([prompt], "speech", max_new_tokens=MOST_UNITS)
        strings = [lm.text_tokenizer.decode_prompt(ids)]
        (said,) = lm.decode_outputs([prompt], strings, voice, least=1)  # a word may be short
        wave = said[0].content if said else np.zeros(0, np.float32)
        title = title if said else f"{title} (the model said nothing)"
        wave = np.pad(wave, round(SILENCE * SAMPLE_RATE))
        path = self.output / f"{name}.wav"
        write_wav(path, wave)
        self.tell("said", f"{path}, {len(wave) / SAMPLE_RATE:.1f} s: {title}")
        self.sounds.append(Sound(title, wave))


def run(
    output: str | Path, speech: str | Path | None, text: str | None, console: Console
) -> list[Sound]:
    """Hears recordings, writes them down and answers, and reads a text aloud and goes on from it.

    Args:
      output: folder for the WAV files and `demo.png`.
      speech: an audio file; `RECORDINGS` by default.
      text: to read aloud and to go on from, in words of the small world that the models know;
        `TEXT` and `START` by default.
      console: where to tell about it.

    Returns:
      What was heard and said, in order.

    Raises:
      InputError: a recording cannot be used, or the folder not be written to.
    """
    start = time.monotonic()
    output = Path(output)
    story, unread = small_world.read_out(START if text is None else text)
    text, _ = small_world.read_out(TEXT if text is None else text)
    name_unread(text, unread, console)
    paths = {name: _asset(name) for name in RECORDINGS} if speech is None else {"": speech}
    waves = {name: load_audio(path) for name, path in paths.items()}
    stage = Stage(output, console)
    with console.status("loading spirit-tiny-base"):
        lm = SpiritLM.from_pretrained("spirit-tiny-base")
    check_length(lm, text)
    for name in (*RECORDINGS, *MANNERS):
        with files.whole_file(output / _asset(name).name) as copy:
            shutil.copyfile(_asset(name), copy)
    for number, (name, wave) in enumerate(waves.items(), start=1):
        if speech is None:
            stage.tell_source(name)
        hear(stage, lm, wave, f"answer-{number}")
    read(stage, lm, text)
    go_on(stage, lm, story)
    with console.status("loading spirit-tiny-expressive"):
        lm = SpiritLM.from_pretrained("spirit-tiny-expressive")
    read_in_manners(stage, lm, text)
    with console.status("drawing"):
        draw(stage.output / "demo.png", stage.sounds)
    stage.tell("drew", f"{stage.output / 'demo.png'}")
    console.print(f"done in {time.monotonic() - start:.0f} s")
    return stage.sounds


def name_unread(text: str, unread: list[str], console: Console) -> None:
    """Says once what of a text is not read aloud, and which words the models do not know.

    Args:
      text, unread: what `small_world.read_out` gives.
      console: where to say it.

    Raises:
      InputError: nothing is left to read.
    """
    left_out = ", ".join(repr(part[:LONGEST_NAME]) for part in unread)
    if not text:
        raise InputError(
            "There is no word to read aloud in that text"
            + (f": {left_out} cannot be read." if unread else ".")
        )
    if unread:
        console.print(f"Left out, since the models cannot read it: {left_out}.", markup=False)
    known = (model_folder.ASSETS / "spirit-tiny-base" / "words.txt").read_text().split()
    if unknown := list(dict.fromkeys(word for word in text.split() if word not in known)):
        console.print(f"The models have never met {', '.join(unknown)}: expect nonsense there.")


def check_length(lm: SpiritLM, text: str) -> None:
    """Raises an `InputError` for a text that leaves no room for the speech that reads it aloud."""
    tokens = len(lm.text_tokenizer.encode(f"[Text]{SAME} {text}[Speech]"))
    most = lm.max_tokens - MOST_UNITS
    if tokens > most:
        raise InputError(f"The text has {tokens} tokens; at most {most} can be read. Shorten it.")


def hear(stage: Stage, lm: SpiritLM, wave: np.ndarray, name: str) -> None:
    """Writes a recording down and goes on from it, as a question goes on with its answer, aloud.

    Where nothing is left to say, it tells what was meant: what a request asks for. Of a recording
    that is not understood it tells no more than that.
    """
    prefix = lm.text_tokenizer.word_prefix
    with stage.console.status("listening"):
        (transcript,) = lm.transcribe([wave])
    heard = f"{len(wave) / SAMPLE_RATE:.1f} s"
    if not transcript.said:
        stage.tell("heard", f"{heard}: {transcription.NOTHING_SAID}")
        return
    string = units.to_string(lm.speech_tokenizer.encode(wave))
    stage.tell("heard", f"{heard}, {units.count_hubert(string)} units: {string[:60]}...")
    words = transcript.describe()
    stage.tell("wrote", repr(words) if transcript.understood else words)
    stage.tell("sure", transcription.describe_scores(lm.transcription_config, transcript))
    stage.sounds.append(Sound(f"heard, and written down as: {words}", wave))
    if not transcript.understood:
        return
    with stage.console.status("writing"):
        goes_on = complete(lm, f"[Text]{prefix}{markup.escape(words)}")
    if goes_on:
        stage.tell("goes on", repr(goes_on))
        prompt = f"[Text]{prefix}{SAME} {markup.escape(goes_on)}[Speech]"
        stage.speak(lm, name, f"reads what it wrote: {goes_on}", prompt, VOICES[-1])
    elif small_world.intent_of(words):
        stage.tell("meant", meaning(lm, string, words))


def meaning(lm: SpiritLM, string: str, words: str) -> str:
    """What a spoken request asks for, if the model takes it for what its words say.

    Args:
      lm: the model.
      string: the unit string of the recording.
      words: of its transcript.
    """
    prompt = f"[Speech]{string}[Text]{lm.text_tokenizer.word_prefix}{MEANING}"
    # As long as a transcript's prompt: in as many rows, the programs of the transcript serve.
    rows = [prompt] * transcription.ROWS
    ids, *_ = lm.generate_ids(rows, max_new_tokens=lm.transcription_config.max_new_tokens)
    meant = first_text(lm, ids)
    return repr(meant) if meant == small_world.intent_of(words) else UNCLEAR


def read(stage: Stage, lm: SpiritLM, text: str) -> None:
    """Reads a text aloud in all voices."""
    prefix = lm.text_tokenizer.word_prefix
    with stage.console.status("speaking"):
        for voice in VOICES:
            prompt = f"[Text]{prefix}{SAME} {text}[Speech]"
            stage.speak(lm, f"read-{voice}", f"{voice} reads: {text}", prompt, voice)


def go_on(stage: Stage, lm: SpiritLM, text: str) -> None:
    """Goes on from a text, in text and in speech."""
    prompt = f"[Text]{lm.text_tokenizer.word_prefix}{text}"
    with stage.console.status("making up what comes next"):
        stage.tell("goes on", f"{text!r}: {complete(lm, prompt)!r}")
        prompt += "[Speech]"
        stage.speak(lm, "goes-on", f"what may come after: {text}", prompt, VOICES[-1])


def read_in_manners(stage: Stage, lm: SpiritLM, text: str) -> None:
    """Reads a text aloud as recordings of each manner begin: by their style and pitch."""
    prefix = lm.text_tokenizer.word_prefix
    with stage.console.status("speaking in two manners"):
        for manner in MANNERS:
            like = lm.speech_tokenizer.encode(load_audio(_asset(manner)))
            stage.tell_source(manner)
            start = f"[St{np.bincount(like.style).argmax()}][Pi{like.pitch[0]}]"
            prompt = f"[Text]{prefix}{SAME} {text}[Speech]{start}"
            title = f"{manner}, {VOICES[-1]} reads: {text}"
            stage.speak(lm, f"read-{manner}", title, prompt, VOICES[-1])


def complete(lm: SpiritLM, prompt: str) -> str:
    """The likeliest text after a prompt string, up to the first marker or unit."""
    # With room for as much as speech takes, so that the programs that speak serve here too.
    (ids,) = lm.generate_ids([prompt], max_new_tokens=MOST_UNITS)
    return first_text(lm, ids)


def first_text(lm: SpiritLM, ids: list[int]) -> str:
    """The text at the start of generated ids, up to the first marker or unit."""
    text_ids = itertools.takewhile(lambda token: token < lm.vocab.text_size, ids[:MOST_PIECES])
    return lm.text_tokenizer.decode(list(text_ids)).strip()


def draw(path: str | Path, sounds: list[Sound]) -> None:
    """Spectrograms of sounds with their F0, one below the other on the same scales.

    Args:
      path: PNG file to write.
      sounds: what to draw; longer ones than `PICTURE_SECONDS` are cut.
    """
    figure, axes = pyplot.subplots(
        len(sounds),
        1,
        figsize=(11, 1.9 * len(sounds)),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, sound in zip(axes[:, 0], sounds, strict=True):
        wave = sound.wave[: PICTURE_SECONDS * SAMPLE_RATE]
        noise = 1e-6 * np.random.default_rng(0).standard_normal(len(wave))  # silence has no dB
        axis.specgram(wave + noise, NFFT=512, noverlap=384, Fs=SAMPLE_RATE, vmin=-130, vmax=-30)
        axis.set(ylabel="Hz", ylim=(0, 6000))
        axis.set_title(sound.title, fontsize=9, loc="left")
        f0_t, voiced_t = f0.pyin_f0(wave)
        times = np.arange(len(f0_t)) / f0.FRAME_RATE
        pitch = axis.twinx()
        pitch.plot(times, np.where(voiced_t > 0, f0_t, np.nan), "w.", markersize=2)
        pitch.set(ylabel="F0, Hz", ylim=(0, 500))
    axes[-1, 0].set_xlabel("seconds")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _asset(name: str) -> Path:
    return model_folder.ASSETS / f"{name}.flac"
