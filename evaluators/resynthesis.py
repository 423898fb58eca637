"""Metrics of resynthesised speech: word errors, F0, manner of speaking and durations.

Words are recognised by pocketsphinx, F0 is estimated by probabilistic YIN, and manners are
classified from F0 by logistic regression.

Letters: t F0 frames, of 5 ms; in `Units`, frames of 40 ms.
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
from spirit_jax.evaluation import scoring
from spirit_jax.models import hifigan
from spirit_jax.speech_tokenizer import SpeechTokenizer
from spirit_jax.units import Units

WORKERS = 2
GROSS_ERROR = 0.2  # the F0 of a frame is wrong above this relative error (Chu and Alwan, 2009)

# Beam widths of the recogniser's search. With pocketsphinx's defaults (1e-48, 7e-29) one unclear
# word often prunes the whole sentence: the word error rate then measures the pruning.
BEAMS = {"beam": 1e-80, "pbeam": 1e-80, "wbeam": 1e-60}


@dataclasses.dataclass(frozen=True, eq=False)
class SpeechSample:
    """Speech to be measured.

    Attributes:
      samples: float32 at 16 kHz.
      text: the reference transcript.
      speaker: name of the voice.
      style: manner of speaking, such as "neutral".
      f0_t: F0 in Hz; set by `with_f0`.
      voiced_t: whether each frame is voiced; set by `with_f0`.
    """

    samples: np.ndarray
    text: str
    speaker: str = ""
    style: str = ""
    f0_t: np.ndarray | None = None
    voiced_t: np.ndarray | None = None


def in_processes(
    function: Callable[[SpeechSample], Any], samples: Sequence[SpeechSample], description: str
) -> list[Any]:
    """The results of a function for each sample, computed by several processes."""
    # Not a `multiprocessing.Pool`, which would wait for a worker that died.
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = pool.map(function, samples, chunksize=4)
        return list(track(results, description, len(samples), console=Console(stderr=True)))


def with_f0(sample: SpeechSample) -> SpeechSample:
    """The sample with F0, estimated by probabilistic YIN."""
    f0_t, voiced_t = f0.pyin_f0(sample.samples)
    return dataclasses.replace(sample, f0_t=f0_t, voiced_t=voiced_t > 0.5)


def word_error_rate(samples: Sequence[SpeechSample], recognised: Sequence[Sequence[str]]) -> float:
    """Word error rate in percent of the reference words.

    Args:
      samples: with their reference transcripts.
      recognised: the recognised words of each.
    """
    references = [sample.text for sample in samples]
    hypotheses = [" ".join(words) for words in recognised]
    return scoring.error_rates(references, hypotheses, "en")["wer"]


def recogniser(grammar: Path) -> Callable[[SpeechSample], list[str]]:
    """A function that recognises the words of a sample by pocketsphinx with a JSGF grammar.

    Raises:
      InputError: the grammar does not exist (pocketsphinx would then end the process).
    """
    if not grammar.is_file():
        raise InputError(f"{grammar}: there is no such grammar.")
    return functools.partial(_recognise, grammar)


def _recognise(grammar: Path, sample: SpeechSample) -> list[str]:
    decoder = _decoder(grammar)
    decoder.start_utt()
    decoder.process_raw((sample.samples.clip(-1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return hypothesis.hypstr.split() if hypothesis else []


@functools.cache
def _decoder(grammar: Path) -> Decoder:
    return Decoder(loglevel="FATAL", jsgf=str(grammar), bestpath=False, **BEAMS)


def sentence_grammar(texts: Sequence[str]) -> str:
    """A JSGF grammar that accepts exactly these sentences."""
    return f"#JSGF V1.0;\ngrammar prompts;\npublic <sentence> = {' | '.join(sorted(set(texts)))};\n"


def f0_figures(
    originals: Sequence[SpeechSample], resynthesised: Sequence[SpeechSample]
) -> dict[str, float]:
    """Compares the F0 of resynthesised speech with that of the recordings.

    The frames of all samples are compared together.

    Returns:
      f0_correlation: Pearson correlation, over the frames that are voiced in both.
      f0_frame_error: percent of frames whose voicing differs or whose F0 is wrong by more than a
        fifth (Chu and Alwan, 2009).
    """
    tracks = []
    for original, copy in zip(originals, resynthesised, strict=True):
        pair = original.f0_t, original.voiced_t, copy.f0_t, copy.voiced_t
        size = min(len(original.f0_t), len(copy.f0_t))
        tracks.append(np.stack([track_t[:size] for track_t in pair]))
    true_t, voiced_t, copy_t, copy_voiced_t = np.concatenate(tracks, axis=1)
    both_t = (voiced_t > 0) & (copy_voiced_t > 0)
    wrong_t = both_t & (np.abs(copy_t - true_t) > GROSS_ERROR * true_t)
    return {
        "f0_correlation": float(np.corrcoef(true_t[both_t], copy_t[both_t])[0, 1]),
        "f0_frame_error": float(100 * np.mean((voiced_t != copy_voiced_t) | wrong_t)),
    }


class MannerClassifier:
    """Classifies manners of speaking from F0 statistics, with one classifier per voice."""

    def __init__(self, samples: Sequence[SpeechSample]):
        """Fits the classifiers to samples with F0 and known manners."""
        self._voices = {}
        for voice in {sample.speaker for sample in samples}:
            of_voice = [sample for sample in samples if sample.speaker == voice]
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            model.fit([_manner_features(s) for s in of_voice], [s.style for s in of_voice])
            self._voices[voice] = model

    def accuracy(self, samples: Sequence[SpeechSample]) -> float:
        """Percent of samples whose manner is classified correctly."""
        return float(100 * np.mean([self.predict(sample) == sample.style for sample in samples]))

    def predict(self, sample: SpeechSample) -> str:
        """The manner of a sample; its speaker must be one of the voices fitted."""
        return self._voices[sample.speaker].predict([_manner_features(sample)])[0]


def _manner_features(sample: SpeechSample) -> list[float]:
    if not sample.voiced_t.any():
        return [0.0] * 5
    log_t = np.log(sample.f0_t[sample.voiced_t])
    low, high = np.quantile(log_t, [0.1, 0.9])
    return [log_t.mean(), log_t.std(), low, high, np.abs(np.diff(log_t)).mean()]


def duration_figures(folder: Path, encoded: Sequence[Units], voices: Sequence[str]) -> dict:
    """Compares predicted durations of units with those of recordings.

    A unit string has no repeated units, so the vocoder predicts the duration of each unit.

    Args:
      folder: of a speech tokenizer.
      encoded: units of recordings, with repeats.
      voices: the speaker of each.

    Returns:
      duration_correlation: Pearson correlation of predicted and true log(1 + frames), over all
        units without repeats.
      pace: total length of speech from unit strings over the total length of the recordings.
    """
    model, params = hifigan.load(model_folder.find_network(folder, "hifigan"))
    predict = functools.partial(model.apply, {"params": params}, method="log_durations")
    true, predicted, generated_samples, true_samples = [], [], 0, 0
    tokenizer = SpeechTokenizer.from_pretrained(folder)
    for units_t, voice in zip(encoded, voices, strict=True):
        starts = units.dedup(units_t.hubert)
        true.append(np.log1p(np.diff(np.append(starts, len(units_t)))))
        codes_bt = units_t.hubert[starts][None]
        predicted.append(predict(codes_bt, np.array([len(starts)]))[0][0])
        string = tokenizer.to_string(units_t)
        generated_samples += len(tokenizer.decode(string, speaker_id=voice))
        true_samples += len(units_t) * model.config.code_hop
    correlations = np.corrcoef(np.concatenate(true), np.concatenate(predicted))
    return {
        "duration_correlation": float(correlations[0, 1]),
        "pace": generated_samples / true_samples,
    }
