"""The demo: the small models of the package hear, write, read aloud and go on."""

import dataclasses
import re
import time
from pathlib import Path

import matplotlib
import numpy as np
from rich.console import Console

matplotlib.use("Agg")  # a picture in a file needs no display
from matplotlib import pyplot  # noqa: E402

from spirit_jax import checkpoint, f0, units  # noqa: E402
from spirit_jax.audio import SAMPLE_RATE, load_audio, write_wav  # noqa: E402
from spirit_jax.errors import InputError  # noqa: E402
from spirit_jax.spiritlm import SpiritLM  # noqa: E402

TEXT = "please turn on the lights in the kitchen"  # to read aloud
START = "the young queen lost a book"  # of a story, to go on from
VOICES = ("rms", "slt")
MANNERS = ("lively", "sad")  # a recording of each is in assets
RECORDINGS = ("question", "request")  # in assets, by a voice that no network was trained on
# What stands before a text that is the same as the speech before or after it, and before what a
# request asks for, in all that the model was trained on (configs/tiny).
SAME, MEANING = "T:", "A:"
MOST_PIECES, MOST_UNITS = 60, 300  # of an answer
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
        line = f"{what:9} {content}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def speak(self, lm: SpiritLM, name: str, title: str, prompt: str, voice: str) -> None:
        """Keeps the likeliest speech after a prompt string as NAME.wav."""
        (ids,) = lm.generate_ids([prompt], "speech", max_new_tokens=MOST_UNITS)
        strings = [lm.text_tokenizer.decode(ids)]
        (said,) = lm.decode_outputs([prompt], strings, voice, least=1)  # a word may be short
        wave = said[0].content if said else np.zeros(SAMPLE_RATE // 2, np.float32)
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
    story = _words(START if text is None else text)
    text = _words(TEXT if text is None else text)
    if not text:
        raise InputError("There is no word to read aloud in that text.")
    known = (checkpoint.ASSETS / "spirit-tiny-base" / "words.txt").read_text().split()
    if unknown := [word for word in text.split() if word not in known]:
        console.print(f"The models have never met {', '.join(unknown)}: expect nonsense there.")
    paths = [_asset(name) for name in RECORDINGS] if speech is None else [speech]
    waves = [load_audio(path) for path in paths]
    stage = Stage(Path(output), console)
    with console.status("loading spirit-tiny-base"):
        lm = SpiritLM.from_pretrained("spirit-tiny-base")
    for number, wave in enumerate(waves, start=1):
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


def hear(stage: Stage, lm: SpiritLM, wave: np.ndarray, name: str) -> None:
    """Writes a recording down and goes on from it, as a question goes on with its answer, aloud.

    Where nothing is left to say, it tells what was meant: what a request asks for.
    """
    prefix = lm.text_tokenizer.word_prefix
    with stage.console.status("listening"):
        string = units.to_string(lm.speech_tokenizer.encode(wave))
    seconds = len(wave) / SAMPLE_RATE
    stage.tell("heard", f"{seconds:.1f} s, {units.count_hubert(string)} units: {string[:60]}...")
    with stage.console.status("writing"):
        words = complete(lm, f"[Speech]{string}[Text]{prefix}{SAME}")
        stage.tell("wrote", repr(words))
        stage.sounds.append(Sound(f"heard, and written down as: {words}", wave))
        goes_on = complete(lm, f"[Text]{prefix}{words}")
        if goes_on:
            stage.tell("goes on", repr(goes_on))
            prompt = f"[Text]{prefix}{SAME} {goes_on}[Speech]"
            stage.speak(lm, name, f"reads what it wrote: {goes_on}", prompt, VOICES[-1])
        else:
            meant = complete(lm, f"[Speech]{string}[Text]{prefix}{MEANING}")
            stage.tell("meant", repr(meant))


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
            start = f"[St{np.bincount(like.style).argmax()}][Pi{like.pitch[0]}]"
            prompt = f"[Text]{prefix}{SAME} {text}[Speech]{start}"
            title = f"{manner}, {VOICES[-1]} reads: {text}"
            stage.speak(lm, f"read-{manner}", title, prompt, VOICES[-1])


def complete(lm: SpiritLM, prompt: str) -> str:
    """The likeliest text after a prompt string, up to the first marker or unit."""
    (ids,) = lm.generate_ids([prompt], max_new_tokens=MOST_PIECES)
    return lm.text_tokenizer.decode(ids).split("[")[0].strip()


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
        axis.specgram(wave + 1e-6, NFFT=512, noverlap=384, Fs=SAMPLE_RATE, vmin=-130, vmax=-30)
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


def _words(text: str) -> str:
    """A text as the models know it: lower case, and without signs."""
    return " ".join(re.findall("[a-z']+", text.lower()))


def _asset(name: str) -> Path:
    return checkpoint.ASSETS / f"{name}.flac"
