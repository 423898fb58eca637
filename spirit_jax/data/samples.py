"""From documents to token sequences, in the formats that a mixture is made of."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from spirit_jax.data.interleave import InterleaveConfig, TokenLine, encode_text_span, interleave
from spirit_jax.data.records import Corpus, Utterance
from spirit_jax.errors import InputError
from spirit_jax.text import TextTokenizer
from spirit_jax.vocab import Vocab

FORMATS = ("interleaved", "text", "speech", "asr", "tts")
NEEDS_SPEECH, NEEDS_TEXT = ("interleaved", "speech", "asr", "tts"), ("text", "asr", "tts")


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
    """

    path: str
    name: str = ""
    share: float = 1.0
    format: str = "interleaved"
    interleave: InterleaveConfig = InterleaveConfig()

    def __post_init__(self):
        if self.format not in FORMATS:
            raise InputError(f"format is '{self.format}', expected one of {', '.join(FORMATS)}.")
        if not self.share > 0:
            raise InputError(f"share of {self.path} is {self.share}; it must be above 0.")


class Documents(Sequence[list[Utterance]]):
    """A corpus by documents: consecutive utterances of one `document` belong together."""

    def __init__(self, corpus: Corpus):
        self._corpus = corpus
        names = [utterance.document for utterance in corpus]
        starts = [i for i, name in enumerate(names) if i == 0 or not name or name != names[i - 1]]
        self._bounds = [*starts, len(names)]

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, index: int) -> list[Utterance]:
        return [self._corpus[i] for i in range(self._bounds[index], self._bounds[index + 1])]


def make_sample(
    document: Sequence[Utterance],
    source: SourceConfig,
    tokenizer: TextTokenizer,
    vocab: Vocab,
    rng: np.random.Generator,
) -> np.ndarray:
    """Token ids of a document in a source's format: int32, BOS first and EOS last.

    Raises:
      InputError: the document lacks what the format needs; the utterance is named.
    """
    for utterance in document:
        _check(utterance, source)
    if source.format == "interleaved":
        parts = [interleave(document, source.interleave, tokenizer, vocab, rng)]
    elif source.format == "text":
        words = [utterance.text for utterance in document]
        parts = [encode_text_span(words, tokenizer, vocab)]
    else:
        speech = [TokenLine.of(utterance, vocab).ids_n for utterance in document]
        marker = np.array([vocab.speech_marker], np.int32)
        if source.format == "speech":
            parts = [marker, *speech]
        else:
            parts = []
            for utterance, ids in zip(document, speech, strict=True):
                text = encode_text_span([utterance.text], tokenizer, vocab)
                pair = [marker, ids, text] if source.format == "asr" else [text, marker, ids]
                parts += pair
    ends = np.array([vocab.bos], np.int32), np.array([vocab.eos[0]], np.int32)
    return np.concatenate([ends[0], *parts, ends[1]])


def _check(utterance: Utterance, source: SourceConfig) -> None:
    lacks = None
    if source.format in NEEDS_SPEECH and utterance.units is None:
        lacks = "units"
    elif source.format in NEEDS_TEXT and not utterance.text:
        lacks = "text"
    elif source.format == "interleaved" and not utterance.words:
        lacks = "word times"
    if lacks:
        raise InputError(
            f"{source.path}: the utterance '{utterance.id}' has no {lacks}, which the format "
            f"'{source.format}' needs."
        )
