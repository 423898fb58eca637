"""Settings of corpora, recordings and augmentation. This module imports no JAX."""

import dataclasses
import math

from spirit_jax import f0, limits
from spirit_jax.errors import InputError

RULES = ("spans", "poisson", "half", "coin")


@dataclasses.dataclass(frozen=True)
class InterleaveConfig:
    """How the lengths of text and speech spans are drawn.

    Attributes:
      rule: "spans", uniform within the bounds below (Spirit LM, arXiv 2402.05755); "poisson", with
        Poisson lengths and a share `speech_share` of speech (Zeng et al., arXiv 2411.17607);
        "half", a text span within its bounds, then half as many words of speech; "coin", each word
        is speech with the probability `speech_share`.
      text_words: smallest and largest number of words of a text span, for "spans" and "half".
      speech_words: the same of a speech span, for "spans" and "half".
      mean_words: mean number of words of a span, for "poisson".
      speech_share: share of words that are speech, for "poisson" and "coin".
    """

    rule: str = "spans"
    text_words: tuple[int, int] = (10, 30)
    speech_words: tuple[int, int] = (5, 15)
    mean_words: float = 10.0
    speech_share: float = 0.3

    def __post_init__(self):
        if self.rule not in RULES:
            raise InputError(f"rule is '{self.rule}', expected one of {', '.join(RULES)}.")
        for name in ("text_words", "speech_words"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise InputError(f"{name} is {low} to {high}; expected 1 <= low <= high.")
        if not 0 < self.speech_share < 1 or self.mean_words <= 0:
            raise InputError("speech_share must lie between 0 and 1, and mean_words above 0.")


MAX_WORKERS = 256
FORMATS = ("interleaved", "text", "speech", "asr", "tts")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """A source of the training mixture.

    Attributes:
      path: a prepared corpus.
      name: shown in metrics.
      share: share of the tokens of the mixture, relative to the other sources.
      format: "interleaved"; "text" or "speech" only; or pairs: "asr", the speech of each utterance
        and then its text, or "tts", the text of each utterance and then its speech.
      interleave: spans, for "interleaved".
      flag: a word before the text of pairs. It distinguishes pairs from interleaved data, where
        the text after speech continues it.
      crop: probability that an utterance of a pair is cropped to a random run of its words.
      shuffle: probability that the words of an utterance of a pair are shuffled, in runs of at most
        three, so that the model cannot guess words from the words before.
    """

    path: str
    name: str = ""
    share: float = 1.0
    format: str = "interleaved"
    interleave: InterleaveConfig = InterleaveConfig()
    flag: str = ""
    crop: float = 0.0
    shuffle: float = 0.0

    def __post_init__(self):
        if self.format not in FORMATS:
            raise InputError(f"format is '{self.format}', expected one of {', '.join(FORMATS)}.")
        if not self.share > 0:
            raise InputError(f"share of {self.path} is {self.share}; it must be above 0.")
        if min(self.crop, self.shuffle) < 0 or self.crop + self.shuffle > 1:
            raise InputError(
                f"{self.path}: crop and shuffle must be 0 or more, and at most 1 together."
            )
        if (self.flag or self.changes) and self.format not in ("asr", "tts"):
            raise InputError(
                f"{self.path}: flag, crop and shuffle are for pairs, not for '{self.format}'."
            )

    @property
    def changes(self) -> bool:
        """Whether utterances of pairs may be cropped or shuffled."""
        return bool(self.crop or self.shuffle)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data of language model training.

    Attributes:
      sources: the mixture.
      seq_len: tokens of a row.
      batch_rows: rows of a step, over all hosts.
      shards: number of virtual shards; divides `batch_rows` or is divided by it.
      seed: random seed.
      cross_documents: whether attention crosses the documents of a row, as in the paper.
      packing_bins: rows that are filled at a time, by first fit.
      workers: processes of a host that compute rows in advance; 0 for none. The rows do not depend
        on it.
    """

    sources: tuple[SourceConfig, ...] = ()
    seq_len: int = 1024
    batch_rows: int = 8
    shards: int = 64
    seed: int = 0
    cross_documents: bool = False
    packing_bins: int = 8
    workers: int = 0

    def __post_init__(self):
        limits.check_numbers(self, seed=limits.SEED)
        if not 0 <= self.workers <= MAX_WORKERS:
            raise InputError(f"workers is {self.workers}; expected 0 to {MAX_WORKERS}.")
        if min(self.seq_len - 1, self.batch_rows, self.shards, self.packing_bins) < 1:
            raise InputError("seq_len must be 2 or more; batch_rows, shards, packing_bins 1.")
        if self.batch_rows % self.shards and self.shards % self.batch_rows:
            raise InputError(
                f"shards is {self.shards}, which neither divides batch_rows {self.batch_rows} nor "
                "is divided by it."
            )


@dataclasses.dataclass(frozen=True)
class SpeechDataConfig:
    """The data of speech network training.

    Attributes:
      sources: manifests or folders; see `data.manifest.read_source`.
      held_out: the same, for evaluation.
      batch_rows: recordings or segments of a step, over all hosts.
      seed: random seed.
    """

    sources: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    batch_rows: int = 16
    seed: int = 0

    def __post_init__(self):
        limits.check_numbers(self, seed=limits.SEED)
        if self.batch_rows < 1:
            raise InputError("batch_rows must be at least 1.")


KINDS = ("stretch", "pitch", "reverberation", "noise")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of recordings; each change is drawn independently.

    Attributes:
      stretch: probability of time stretching.
      pitch: probability of a pitch shift.
      reverberation: probability of reverberation.
      noise: probability of additive noise.
      stretch_rates: smallest and largest factor of speed.
      pitch_semitones: smallest and largest shift; negative is down.
      reverberation_seconds: smallest and largest reverberation time (RT60).
      noise_db: smallest and largest signal-to-noise ratio in dB.
    """

    stretch: float = 0.5
    pitch: float = 0.5
    reverberation: float = 0.5
    noise: float = 0.5
    stretch_rates: tuple[float, float] = (0.8, 1.2)
    pitch_semitones: tuple[float, float] = (-4.0, 4.0)
    reverberation_seconds: tuple[float, float] = (0.2, 0.8)
    noise_db: tuple[float, float] = (5.0, 15.0)

    def __post_init__(self):
        if not all(0 <= getattr(self, kind) <= 1 for kind in KINDS):
            raise InputError(f"augment: the probabilities of {', '.join(KINDS)} are 0 to 1.")
        for name in ("stretch_rates", "pitch_semitones", "reverberation_seconds", "noise_db"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or bounds[0] > bounds[1]:
                raise InputError(f"augment.{name} is {bounds}; expected [smallest, largest].")
        if min(self.stretch_rates[0], self.reverberation_seconds[0]) <= 0:
            raise InputError("augment.stretch_rates and reverberation_seconds must be above 0.")


@dataclasses.dataclass(frozen=True)
class F0Config:
    """Estimation of F0 and its cache.

    Attributes:
      folder: of the cache; "" for RUN_DIR/f0.
      resolution: of probabilistic YIN, in semitones; by default as in `SpeechTokenizer`.
      workers: number of processes; 0 for the number of cores.
    """

    folder: str = ""
    resolution: float = f0.PYIN_RESOLUTION
    workers: int = 0

    def __post_init__(self):
        if not 0 < self.resolution < 1 or self.workers < 0:
            raise InputError("f0.resolution must be above 0 and below 1, f0.workers 0 or more.")


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Settings of the preparation of a corpus.

    Attributes:
      shard_items: approximate number of items of a shard; documents are not split.
      max_seconds: longer recordings are split at silences.
      threads: number of threads that read recordings while units are computed.
      window: largest number of recordings that are encoded together.
      window_seconds: length of the recordings that are encoded together, on each device.
    """

    shard_items: int = 512
    max_seconds: float = 60.0
    threads: int = 4
    window: int = 64
    window_seconds: float = 900.0

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not value >= 1:  # NaN too
                raise InputError(f"{name} is {value}; expected a number from 1.")


def check_alignment(batch_size: int, min_score: float | None) -> None:
    """Raises `InputError` for a size of batches or a least score that alignment cannot use."""
    if type(batch_size) is not int or batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; expected a whole number from 1.")
    if min_score is not None and not math.isfinite(min_score):  # NaN would reject nothing
        raise InputError(f"min_score is {min_score}; expected a finite number.")
