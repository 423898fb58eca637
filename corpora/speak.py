"""Voices and manners: any sentence spoken by flite's and espeak-ng's American voices.

A manner is a change of pitch, of its range, of pace and of loudness. espeak-ng and flite change the
pace themselves, and espeak-ng the pitch too; for flite, whose voices do not all take a pitch, WORLD
(pyworld) analyses what it says and makes it anew with another pitch contour. Neutral speech goes
the same way, so that only the manner tells one from another.
"""

import dataclasses
import functools
import re
import tempfile

import numpy as np
import pyworld

from corpora import programs
from spirit_jax.audio import SAMPLE_RATE, load_audio

PEAK, LOUDNESS = 0.95, 0.06  # of the samples; root mean square, of neutral speech
NOISE = 3e-4  # root mean square; pocketsphinx finds nothing around silence of zeros
PAUSE = 0.1  # seconds before and after what espeak-ng says
SPEED = 160  # words a minute of espeak-ng, neutral
ESPEAK_PITCH = 1.5  # its pitch moves by less than it is told
FLOOR, CEILING = 60.0, 500.0  # Hz
PHONES = {"ax": "ah", "axr": "er", "pau": "sil"}  # flite's names of what pocketsphinx calls so


@dataclasses.dataclass(frozen=True)
class Manner:
    """How something is said, as factors of neutral speech.

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
    """A voice: its program, the program's name for it, and espeak-ng's pitch (0 to 99)."""

    program: str
    own_name: str
    pitch: int = 50


@dataclasses.dataclass(frozen=True)
class Speech:
    """What was said.

    Attributes:
      samples: 16 kHz, float32.
      phones: (phone, start, end) in seconds, where the program tells.
      words: (word, start, end) in seconds, where the program tells.
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
    """Says a sentence (`grammar.Sentence.spoken`).

    Raises:
      InputError: flite or espeak-ng is not there or does not speak.
    """
    how, who = MANNERS[manner], VOICES[voice]
    if who.program == "flite":
        speech = _flite(spoken, who, how)
    else:
        speech = _espeak(spoken, who, how)
    samples = speech.samples * (LOUDNESS * how.loudness / np.sqrt(np.mean(speech.samples**2)))
    samples *= min(1.0, (PEAK - 6 * NOISE) / np.abs(samples).max())
    samples += NOISE * np.random.default_rng(0).standard_normal(len(samples)).clip(-6, 6)
    return dataclasses.replace(speech, samples=samples.astype(np.float32))


def change_pitch(samples: np.ndarray, pitch: float, spread: float) -> np.ndarray:
    """Multiplies the mean of F0 by `pitch` and the spread of its logarithm by `spread`."""
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
    told, samples = _run_flite(spoken, voice.own_name, *stretch, "-psdur")
    seconds = len(samples) / SAMPLE_RATE
    phones, start = [], 0.0
    for name, end in re.findall(r"(\w+):([\d.]+)", told):
        end = min(float(end), seconds)
        if end > start:
            phones.append((PHONES.get(name, name), start, end))
        start = end
    samples = change_pitch(samples, manner.pitch, manner.range)
    words = _words(re.sub(r"[,.?]", "", spoken).split(), voice.own_name, phones)
    return Speech(samples, tuple(phones), words)


def _words(spoken: list[str], voice: str, phones: list[tuple]) -> tuple:
    """Times of words from those of phones; () if there are more or fewer phones than expected."""
    said = [phone for phone in phones if phone[0] != "sil"]
    counts = [_phone_count(word, voice) for word in spoken]
    if sum(counts) != len(said):
        return ()
    ends = np.cumsum(counts)
    return tuple(
        (word.lower(), said[end - count][1], said[end - 1][2])
        for word, count, end in zip(spoken, counts, ends, strict=True)
    )


@functools.cache
def _phone_count(word: str, voice: str) -> int:
    told, _ = _run_flite(word, voice, "-ps")
    return len([phone for phone in told.split() if phone != "pau"])


def _run_flite(text: str, voice: str, *options: str) -> tuple[str, np.ndarray]:
    """What flite prints, and the samples."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = ["flite", "-voice", voice, *options, "-t", text, "-o", file.name]
        told = programs.run(command, "flite")
        return told.decode(), load_audio(file.name)


def _espeak(spoken: str, voice: Voice, manner: Manner) -> Speech:
    changes = ESPEAK_PITCH * (manner.pitch - 1), manner.range - 1
    pitch, spread = (f"{round(100 * change):+d}%" for change in changes)
    marked = f'<prosody pitch="{pitch}" range="{spread}">{spoken}</prosody>'
    speed = ["-s", str(round(SPEED / manner.length)), "-p", str(voice.pitch)]
    command = ["espeak-ng", "-m", "-v", voice.own_name, *speed, "--stdout", marked]
    samples = load_audio(programs.run(command, "espeak-ng"))
    return Speech(np.pad(samples, int(PAUSE * SAMPLE_RATE)))
