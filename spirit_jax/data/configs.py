"""How prepared corpora, recordings and their changes are configured. Importing this is cheap."""

import dataclasses

from spirit_jax import f0, limits
from spirit_jax.errors import InputError

RULES = ("spans", "poisson", "half", "coin")


@dataclasses.dataclass(frozen=True)
class InterleaveConfig:
    """How long spans are.

    Attributes:
      rule: "spans", lengths uniform within the bounds below (the paper); "poisson", lengths of
        Poisson(`mean_words`), of which `speech_share` is speech (Zeng et al., arXiv 2411.17607);
        "half", a text span within its bounds and then half as many words of speech; "coin", each
        word is speech with a chance of `speech_share`.
      text_words, speech_words: least and most words of a span, for "spans" and "half".
      mean_words: of a span, for "poisson".
      speech_share: of words, for "poisson" and "coin".
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
                raise InputError(f"{name} is {low} to {high}; expected 1 or more, rising.")
        if not 0 < self.speech_share < 1 or self.mean_words <= 0:
            raise InputError("speech_share must lie between 0 and 1, and mean_words above 0.")


FORMATS = ("interleaved", "text", "speech", "asr", "tts")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One part of a mixture.

    Attributes:
      path: a prepared corpus.
      name: for metrics.
      share: of the tokens of the mixture, relative to the other sources'.
      format: "interleaved"; "text" or "speech" alone; "asr", speech and then its text, and "tts",
        text and then its speech, an utterance after another.
      interleave: how, for "interleaved".
      flag: a word before the text of a pair ("asr", "tts"), which tells a pair from the interleaved
        data, where the text goes on after the speech.
      crop: of utterances in pairs, the share that is cut to a random run of its words.
      shuffle: of utterances in pairs, the share whose words are put in another order, in runs of at
        most three, so that what is said cannot be guessed from what is usual.
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
            raise InputError(f"{self.path}: crop and shuffle are shares of one whole, 0 or more.")
        if (self.flag or self.changes) and self.format not in ("asr", "tts"):
            raise InputError(
                f"{self.path}: flag, crop and shuffle are for pairs, not for '{self.format}'."
            )

    @property
    def changes(self) -> bool:
        """Whether utterances in pairs are changed."""
        return bool(self.crop or self.shuffle)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What to train on.

    Attributes:
      sources: the mixture.
      seq_len: tokens of a row.
      batch_rows: rows of a step, over all hosts.
      shards: virtual shards; divides `batch_rows` or is divided by it.
      seed: of all random choices.
      cross_documents: attention crosses the documents of a row, as in the paper.
      packing_bins: rows that are filled at a time, by first fit.
    """

    sources: tuple[SourceConfig, ...] = ()
    seq_len: int = 1024
    batch_rows: int = 8
    shards: int = 64
    seed: int = 0
    cross_documents: bool = False
    packing_bins: int = 8

    def __post_init__(self):
        limits.check_numbers(self, seed=limits.SEED)
        if min(self.seq_len - 1, self.batch_rows, self.shards, self.packing_bins) < 1:
            raise InputError("seq_len must be 2 or more; batch_rows, shards, packing_bins 1.")
        if self.batch_rows % self.shards and self.shards % self.batch_rows:
            raise InputError(
                f"shards is {self.shards}, which neither divides batch_rows {self.batch_rows} nor "
                "is divided by it."
            )


@dataclasses.dataclass(frozen=True)
class SpeechDataConfig:
    """What recordings to train on.

    Attributes:
      sources: manifests or folders, as `data.manifest.read_source` takes them.
      held_out: the same, for evaluation.
      batch_rows: recordings (or segments of them) of a step, over all hosts.
      seed: of all random choices.
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
    """What happens to a recording; each change is drawn by itself.

    Attributes:
      stretch, pitch, reverberation, noise: the probability of each.
      stretch_rates: how many times as fast.
      pitch_semitones: up, or down where negative.
      reverberation_seconds: until the echo is 60 dB weaker (RT60).
      noise_db: by how much the recording is louder than the noise.
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
                raise InputError(f"augment.{name} is {bounds}, expected the least and the most.")
        if min(self.stretch_rates[0], self.reverberation_seconds[0]) <= 0:
            raise InputError("augment.stretch_rates and reverberation_seconds must be above 0.")


@dataclasses.dataclass(frozen=True)
class F0Config:
    """How F0 is found, and where it is kept.

    Attributes:
      folder: of the files; "" for RUN_DIR/f0.
      resolution: of probabilistic YIN, in semitones; the default is what `SpeechTokenizer` uses.
      workers: processes that compute; 0 for one a core.
    """

    folder: str = ""
    resolution: float = f0.PYIN_RESOLUTION
    workers: int = 0

    def __post_init__(self):
        if not 0 < self.resolution < 1 or self.workers < 0:
            raise InputError("f0.resolution must be above 0 and below 1, f0.workers 0 or more.")


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """How a corpus is prepared.

    Attributes:
      shard_items: items of a shard, about: a document is never parted.
      max_seconds: longer recordings are split at silences.
      threads: that read recordings while units are computed.
      window: recordings read ahead, which are encoded together.
    """

    shard_items: int = 512
    max_seconds: float = 60.0
    threads: int = 4
    window: int = 64

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not value >= 1:  # NaN too
                raise InputError(f"{name} is {value}; expected a number from 1.")
