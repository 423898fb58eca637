"""The demo: the small models of the package hear, write, answer, read aloud, and draw it all."""

import dataclasses
import time
from importlib import resources
from pathlib import Path

import matplotlib
import numpy as np
from rich.console import Console

matplotlib.use("Agg")  # a picture in a file needs no display
from matplotlib import pyplot  # noqa: E402

from spirit_jax import f0, units  # noqa: E402
from spirit_jax.audio import SAMPLE_RATE, load_audio, write_wav  # noqa: E402
from spirit_jax.spiritlm import SpiritLM  # noqa: E402
from spirit_jax.vocab import Modality  # noqa: E402

TEXT = "the old king went to the forest"  # to read aloud
VOICES = ("rms", "slt")
FLAG = "T:"  # before the text of a pair of speech and text, in what the models were trained on
MANNERS = ("lively", "sad")  # there is a recording of each in assets
PICTURE_SECONDS = 12  # more would be too dense to read


@dataclasses.dataclass(frozen=True)
class Sound:
    """A panel of the picture: what it shows, and float32 samples at 16 kHz."""

    title: str
    wave: np.ndarray


def run(
    output: str | Path, speech: str | Path | None, text: str | None, console: Console
) -> list[Sound]:
    """Hears a recording, writes it down, goes on with it, and reads a sentence aloud.

    Args:
      output: folder for the WAV files and `demo.png`.
      speech: an audio file; a question by a voice that no network was trained on by default.
      text: to read aloud, in words of the small world that the models know; `TEXT` by default.
      console: where to tell about it.

    Returns:
      What was heard and said, in order.

    Raises:
      InputError: the recording cannot be used, or the folder not be written to.
    """
    output, start = Path(output), time.monotonic()
    text = " ".join((TEXT if text is None else text).lower().split())
    wave = load_audio(_asset("question") if speech is None else speech)

    def tell(what: str, content: str) -> None:
        console.print(f"{what:9} {content}", markup=False, highlight=False)

    with console.status("loading spirit-tiny-base"):
        lm = SpiritLM.from_pretrained("spirit-tiny-base")
    with console.status("listening"):
        heard = lm.speech_tokenizer.encode(wave)
        string = units.to_string(heard)
    seconds = len(wave) / SAMPLE_RATE
    tell("heard", f"{seconds:.1f} s, {units.count_hubert(string)} units: {string[:60]}...")
    with console.status("writing"):
        words = write_down(lm, string)
        tell("wrote", repr(words))
        continuation = _text(lm.generate([("text", words)], "text", max_new_tokens=30))
        tell("goes on", repr(continuation))
    sounds = [Sound(f"heard, and understood as: {words}", wave)]

    def keep(name: str, title: str, wave: np.ndarray) -> None:
        write_wav(output / f"{name}.wav", wave)
        tell("said", f"{output / name}.wav, {len(wave) / SAMPLE_RATE:.1f} s: {title}")
        sounds.append(Sound(title, wave))

    with console.status("speaking"):
        answers = lm.generate([("speech", heard)], "speech", max_new_tokens=150)
        for answer in answers:
            keep("goes-on", "what comes after it, in units alone", answer.content)
        if not answers:
            tell("said", "nothing: it takes the recording for all there is to say")
    _warn_of_words(lm, text, console)
    with console.status("reading aloud"):
        for voice in VOICES:
            keep(f"read-{voice}", f"{voice} reads: {text}", read_aloud(lm, text, voice))
    with console.status("loading spirit-tiny-expressive"):
        lm = SpiritLM.from_pretrained("spirit-tiny-expressive")
    with console.status("reading aloud in two manners"):
        for manner in MANNERS:
            like = lm.speech_tokenizer.encode(load_audio(_asset(manner)))
            keep(f"read-{manner}", f"{manner}: {text}", read_aloud(lm, text, "slt", like))
    with console.status("drawing"):
        draw(output / "demo.png", sounds)
    tell("drew", f"{output / 'demo.png'}")
    console.print(f"done in {time.monotonic() - start:.0f} s")
    return sounds


def write_down(lm: SpiritLM, string: str) -> str:
    """The words of a unit string."""
    prompt = f"[Speech]{string}[Text]{lm.text_tokenizer.word_prefix}{FLAG}"
    return _text(lm.generate(prompt=prompt, output_modality="text", max_new_tokens=60))


def read_aloud(lm: SpiritLM, text: str, voice: str, like: units.Units | None = None) -> np.ndarray:
    """A text spoken by a voice: float32 samples at 16 kHz, in the manner of `like` if it is given.

    Its style and pitch are taken at the start; what comes after is the language model's.
    """
    start = "" if like is None else f"[St{np.bincount(like.style).argmax()}][Pi{like.pitch[0]}]"
    prompt = f"[Text]{lm.text_tokenizer.word_prefix}{FLAG} {text}[Speech]"
    ids = lm.generate_ids([prompt + start], "speech", max_new_tokens=300)[0]
    said = start + lm.text_tokenizer.decode(ids)
    outputs = lm.decode_outputs([prompt], [said], voice)[0]
    return outputs[0].content if outputs else np.zeros(SAMPLE_RATE // 2, np.float32)


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


def _text(outputs: list) -> str:
    return "".join(piece.content for piece in outputs if piece.content_type is Modality.TEXT)


def _warn_of_words(lm: SpiritLM, text: str, console: Console) -> None:
    """A word that the models know is one piece of their vocabulary."""
    prefix = lm.text_tokenizer.word_prefix
    before = len(lm.text_tokenizer.encode("[Text]"))
    unknown = [
        word
        for word in text.split()
        if len(lm.text_tokenizer.encode(f"[Text]{prefix}{word}")) - before > 1
    ]
    if unknown:
        console.print(f"The models have never met {', '.join(unknown)}: expect nonsense there.")


def _asset(name: str) -> bytes:
    return (resources.files("spirit_jax") / "assets" / f"{name}.flac").read_bytes()
