"""How good resynthesised speech is: words, F0, manner and durations, judged by other programs.

Letters: t F0 frames, of 5 ms.
"""

import dataclasses
import functools
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from pocketsphinx import Decoder
from rich.console import Console
from rich.progress import track
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spirit_jax import f0, model_folder, units
from spirit_jax.errors import InputError
from spirit_jax.evaluation import answers
from spirit_jax.models import hifigan
from spirit_jax.speech_tokenizer import SpeechTokenizer
from spirit_jax.units import Units

WORKERS = 2
FAR_OFF = 0.2  # share of the true F0 by which a frame is wrong

# Of the recogniser's search. With its own (1e-48, 7e-29) an unclear word often loses the whole
# sentence: what is counted is then what the search gave up, not what cannot be understood.
BEAMS = {"beam": 1e-80, "pbeam": 1e-80, "wbeam": 1e-60}


@dataclasses.dataclass(frozen=True, eq=False)
class Sound:
    """Speech to be judged.

    Attributes:
      samples: 16 kHz.
      text: what is said.
      speaker: the voice.
      style: its manner.
      f0_t, voiced_t: F0 in Hz and whether a frame is voiced; see `with_f0`.
    """

    samples: np.ndarray
    text: str
    speaker: str = ""
    style: str = ""
    f0_t: np.ndarray | None = None
    voiced_t: np.ndarray | None = None


def in_processes(function: Callable[[Sound], Any], sounds: Sequence[Sound], what: str) -> list[Any]:
    """What a function makes of each sound, in several processes, with a progress bar."""
    # Not a `Pool`, which waits for ever for a worker that died.
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        made = pool.map(function, sounds, chunksize=4)
        return list(track(made, what, len(sounds), console=Console(stderr=True)))


def with_f0(sound: Sound) -> Sound:
    """The same with F0 by probabilistic YIN."""
    f0_t, voiced_t = f0.pyin_f0(sound.samples)
    return dataclasses.replace(sound, f0_t=f0_t, voiced_t=voiced_t > 0.5)


def word_error_rate(sounds: Sequence[Sound], heard: Sequence[Sequence[str]]) -> float:
    """Word errors, percent of the words that are said.

    Args:
      sounds: with their texts.
      heard: the words that were recognised in each.
    """
    said = [sound.text for sound in sounds]
    return answers.error_rates(said, [" ".join(words) for words in heard], "en")["wer"]


def recogniser(grammar: Path) -> Callable[[Sound], list[str]]:
    """What gives the words that pocketsphinx hears, with a JSGF grammar; of each sound by itself.

    Raises:
      InputError: there is no such grammar, at which pocketsphinx itself ends the process.
    """
    if not grammar.is_file():
        raise InputError(f"{grammar}: there is no such grammar.")
    return functools.partial(_recognise, grammar)


def _recognise(grammar: Path, sound: Sound) -> list[str]:
    decoder = _decoder(grammar)
    decoder.start_utt()
    decoder.process_raw((sound.samples.clip(-1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()
    found = decoder.hyp()
    return found.hypstr.split() if found else []


@functools.cache
def _decoder(grammar: Path) -> Decoder:
    return Decoder(loglevel="FATAL", jsgf=str(grammar), bestpath=False, **BEAMS)


def sentence_grammar(texts: Sequence[str]) -> str:
    """A JSGF grammar of whole sentences."""
    return f"#JSGF V1.0;\ngrammar prompts;\npublic <sentence> = {' | '.join(sorted(set(texts)))};\n"


def f0_figures(originals: Sequence[Sound], made: Sequence[Sound]) -> dict[str, float]:
    """How F0 goes with that of the originals, over all frames of all recordings.

    Returns:
      f0_correlation: where both are voiced.
      f0_frame_error: percent of frames that are voiced in one alone or off by over a fifth (Chu and
        Alwan, 2009).
    """
    tracks = []
    for one, other in zip(originals, made, strict=True):
        both = one.f0_t, one.voiced_t, other.f0_t, other.voiced_t
        size = min(len(one.f0_t), len(other.f0_t))
        tracks.append(np.stack([track_t[:size] for track_t in both]))
    true_t, voiced_t, found_t, found_voiced_t = np.concatenate(tracks, axis=1)
    both_t = (voiced_t > 0) & (found_voiced_t > 0)
    off_t = both_t & (np.abs(found_t - true_t) > FAR_OFF * true_t)
    return {
        "f0_correlation": float(np.corrcoef(true_t[both_t], found_t[both_t])[0, 1]),
        "f0_frame_error": float(100 * np.mean((voiced_t != found_voiced_t) | off_t)),
    }


class MannerClassifier:
    """Tells manners by F0 alone, for each voice; loudness and pace have no say."""

    def __init__(self, sounds: Sequence[Sound]):
        """Learns from recordings whose manner is known."""
        self._voices = {}
        for voice in {sound.speaker for sound in sounds}:
            own = [sound for sound in sounds if sound.speaker == voice]
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            model.fit([_manner_features(s) for s in own], [s.style for s in own])
            self._voices[voice] = model

    def accuracy(self, sounds: Sequence[Sound]) -> float:
        """Percent of recordings whose manner is found."""
        return float(100 * np.mean([self.tell(sound) == sound.style for sound in sounds]))

    def tell(self, sound: Sound) -> str:
        """The manner of speech of one of the voices."""
        return self._voices[sound.speaker].predict([_manner_features(sound)])[0]


def _manner_features(sound: Sound) -> list[float]:
    if not sound.voiced_t.any():
        return [0.0] * 5
    log_t = np.log(sound.f0_t[sound.voiced_t])
    low, high = np.quantile(log_t, [0.1, 0.9])
    return [log_t.mean(), log_t.std(), low, high, np.abs(np.diff(log_t)).mean()]


def duration_figures(folder: Path, heard: Sequence[Units], voices: Sequence[str]) -> dict:
    """How long units last if they are spoken from strings, beside how long they do.

    Args:
      folder: of a speech tokenizer.
      heard: units of recordings.
      voices: who speaks them.

    Returns:
      duration_correlation: of log(1 + frames) of every unit, predicted and true.
      pace: samples of speech from strings over those that the units stand for, all together.
    """
    model, params = hifigan.load(model_folder.find_network(folder, "hifigan"))
    predict = functools.partial(model.apply, {"params": params}, method="log_durations")
    true, predicted, spoken, meant = [], [], 0, 0
    speaker = SpeechTokenizer.from_pretrained(folder)
    for one, voice in zip(heard, voices, strict=True):
        starts = units.dedup(one.hubert)
        true.append(np.log1p(np.diff(np.append(starts, len(one)))))
        codes_bt = one.hubert[starts][None]
        predicted.append(predict(codes_bt, np.array([len(starts)]))[0][0])
        spoken += len(speaker.decode(speaker.to_string(one), speaker_id=voice))
        meant += len(one) * model.config.code_hop
    together = np.corrcoef(np.concatenate(true), np.concatenate(predicted))
    return {"duration_correlation": float(together[0, 1]), "pace": spoken / meant}
