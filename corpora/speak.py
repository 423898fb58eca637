"""Synthesises sentences with flite's and espeak-ng's American voices, in several manners.

A manner is a change of pitch, pitch range, speaking rate and loudness. Both programs change the
rate themselves, and espeak-ng the pitch too. Not all of flite's voices have a pitch setting, so
WORLD (pyworld) analyses their speech and resynthesises it with a changed F0 contour. Neutral speech
is resynthesised in the same way, so that manners do not differ in artefacts.
"""

import dataclasses
import functools
import io
import re
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from corpora import programs
from spirit_jax import files
from spirit_jax.audio import SAMPLE_RATE, load_audio

PEAK, LOUDNESS = 0.95, 0.06  # of the samples; root mean square, of neutral speech
NOISE = 3e-4  # root mean square; pocketsphinx cannot align around digital silence
PAUSE = 0.1  # seconds of silence before and after espeak-ng's speech
SPEED = 160  # words a minute of espeak-ng, neutral
ESPEAK_PITCH = 1.5  # its pitch changes by less than the factor that it is given
FLOOR, CEILING = 60.0, 500.0  # Hz
PHONES = {"ax": "ah", "axr": "er", "pau": "sil"}  # pocketsphinx's names of flite's phones


@dataclasses.dataclass(frozen=True)
class Manner:
    """A manner of speaking, as factors relative to neutral speech.

    Attributes:
      pitch: of the mean of F0.
      range: of the spread of log F0.
      length: of the duration.
      loudness: of the amplitude.
    """

    pitch: float = 1.0
    range: float = 1.0
    length: float = 1.0
    loudness: float = 1.0


@dataclasses.dataclass(frozen=True)
class Voice:
    """A voice: its program, its name in that program, and espeak-ng's pitch (0 to 99)."""

    program: str
    name: str
    pitch: int = 50


@dataclasses.dataclass(frozen=True)
class Speech:
    """Synthesised or recorded speech.

    Attributes:
      samples: 16 kHz, float32.
      phones: (phone, start, end) in seconds; empty if unknown.
      words: (word, start, end) in seconds; empty if unknown.
    """

    samples: np.ndarray
    phones: tuple = ()
    words: tuple = ()


MANNERS = {
    "neutral": Manner(),
    "lively": Manner(pitch=1.25, range=1.8, length=0.85, loudness=1.6),
    "sad": Manner(pitch=0.85, range=0.4, length=1.25, loudness=0.5),
}
FLITE = {name: Voice("flite", name) for name in ("kal16", "rms", "slt")}
ESPEAK = {
    f"espeak-{name}": Voice("espeak-ng", f"en-us+{name}", pitch)
    for name, pitch in {
        "m1": 45, "m2": 55, "m3": 40, "m4": 50, "m7": 60,
        "f1": 50, "f2": 45, "f3": 55, "f4": 40, "f5": 60,
    }.items()
}  # fmt: skip
HELD_OUT = {"espeak-steph": Voice("espeak-ng", "en-us+steph", 50)}
VOICES = FLITE | ESPEAK | HELD_OUT


def speak(spoken: str, voice: str, manner: str) -> Speech:
    """Synthesises a sentence.

    Args:
      spoken: see `grammar.Sentence.spoken`.
      voice: a name in `VOICES`.
      manner: a name in `MANNERS`.

    Raises:
      InputError: flite or espeak-ng is not installed, or it fails.
    """
    synthesise = _flite if VOICES[voice].program == "flite" else _espeak
    speech = synthesise(spoken, VOICES[voice], MANNERS[manner])
    loudness = LOUDNESS * MANNERS[manner].loudness
    samples = speech.samples * (loudness / np.sqrt(np.mean(speech.samples**2)))
    samples *= min(1.0, (PEAK - 6 * NOISE) / np.abs(samples).max())
    samples += NOISE * np.random.default_rng(0).standard_normal(len(samples)).clip(-6, 6)
    return dataclasses.replace(speech, samples=samples.astype(np.float32))


def write_flac(path: Path, samples: np.ndarray) -> None:
    """Writes samples at 16 kHz as 16-bit FLAC, whole or not at all, into a folder that may be new.

    Raises:
      InputError: the file cannot be written.
    """
    data = io.BytesIO()  # libsndfile does not report why it cannot write a file
    soundfile.write(data, samples, SAMPLE_RATE, "PCM_16", format="FLAC")
    with files.whole_file(path) as unfinished:
        unfinished.write_bytes(data.getvalue())


def change_pitch(samples: np.ndarray, pitch: float, spread: float) -> np.ndarray:
    """Multiplies the mean of F0 by `pitch` and the spread of its logarithm by `spread`."""
    import pyworld

    samples = samples.astype(np.float64)
    f0, times = pyworld.dio(samples, SAMPLE_RATE, FLOOR, CEILING, allowed_range=0.2)
    f0 = pyworld.stonemask(samples, f0, times, SAMPLE_RATE)
    envelope = pyworld.cheaptrick(samples, f0, times, SAMPLE_RATE)
    noise = pyworld.d4c(samples, f0, times, SAMPLE_RATE)
    voiced = f0 > 0
    if voiced.any():
        mean = np.exp(np.log(f0[voiced]).mean())
        f0[voiced] = (pitch * mean * (f0[voiced] / mean) ** spread).clip(FLOOR, CEILING)
    return pyworld.synthesize(f0, envelope, noise, SAMPLE_RATE)[: len(samples)]


def _flite(spoken: str, voice: Voice, manner: Manner) -> Speech:
    stretch = ["--setf", f"duration_stretch={manner.length}"]
    output, samples = _run_flite(spoken, voice.name, *stretch, "-psdur")
    seconds = len(samples) / SAMPLE_RATE
    phones, start = [], 0.0
    for name, end in re.findall(r"(\w+):([\d.]+)", output):
        end = min(float(end), seconds)
        if end > start:
            phones.append((PHONES.get(name, name), start, end))
        start = end
    samples = change_pitch(samples, manner.pitch, manner.range)
    words = _words(re.sub(r"[,.?]", "", spoken).split(), voice.name, phones)
    return Speech(samples, tuple(phones), words)


def _words(spoken: list[str], voice: str, phones: list[tuple]) -> tuple:
    """Times of words from those of phones; () if there are more or fewer phones than expected."""
    speech = [phone for phone in phones if phone[0] != "sil"]
    counts = [_phone_count(word, voice) for word in spoken]
    if sum(counts) != len(speech):
        return ()
    ends = np.cumsum(counts)
    return tuple(
        (word.lower(), speech[end - count][1], speech[end - 1][2])
        for word, count, end in zip(spoken, counts, ends, strict=True)
    )


@functools.cache
def _phone_count(word: str, voice: str) -> int:
    output, _ = _run_flite(word, voice, "-ps")
    return len([phone for phone in output.split() if phone != "pau"])


def _run_flite(text: str, voice: str, *options: str) -> tuple[str, np.ndarray]:
    """Flite's standard output, and the samples."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = ["flite", "-voice", voice, *options, "-t", text, "-o", file.name]
        output = programs.run(command, "flite")
        return output.decode(), load_audio(file.name)


def _espeak(spoken: str, voice: Voice, manner: Manner) -> Speech:
    changes = ESPEAK_PITCH * (manner.pitch - 1), manner.range - 1
    pitch, spread = (f"{round(100 * change):+d}%" for change in changes)
    marked = f'<prosody pitch="{pitch}" range="{spread}">{spoken}</prosody>'
    speed = ["-s", str(round(SPEED / manner.length)), "-p", str(voice.pitch)]
    command = ["espeak-ng", "-m", "-v", voice.name, *speed, "--stdout", marked]
    samples = load_audio(programs.run(command, "espeak-ng"))
    return Speech(np.pad(samples, int(PAUSE * SAMPLE_RATE)))
