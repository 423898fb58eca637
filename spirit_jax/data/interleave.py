"""Interleaving of aligned speech and text, with new random spans each time a document is used.

Source: Spirit LM (arXiv 2402.05755, section 3). Spans of text and speech alternate at word
boundaries, with a marker at every switch. In each utterance, repeated phonetic and pitch units are
dropped, and the streams are merged into one sequence of tokens. Speech spans are cut from it by
time.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from spirit_jax import markup
from spirit_jax import units as units_lib
from spirit_jax.data.configs import InterleaveConfig
from spirit_jax.data.records import Utterance
from spirit_jax.text import TextTokenizer
from spirit_jax.vocab import Modality, Vocab


@dataclasses.dataclass(frozen=True)
class Span:
    """The words from `start` up to, not including, `stop` of a document, as text or as speech."""

    modality: Modality
    start: int
    stop: int


def draw_spans(words: int, config: InterleaveConfig, rng: np.random.Generator) -> list[Span]:
    """Draws alternating spans of text and speech that cover all words.

    Args:
      words: number of words of the document.
      config: rule and lengths of spans.
      rng: random generator.

    Returns:
      The spans, in order.
    """
    if config.rule == "coin":
        speech = rng.random(words) < config.speech_share
        bounds = [0, *(np.flatnonzero(speech[1:] != speech[:-1]) + 1), words] if words else [0]
        return [
            Span(Modality.SPEECH if speech[start] else Modality.TEXT, int(start), int(stop))
            for start, stop in zip(bounds, bounds[1:], strict=False)
        ]
    modality = Modality.SPEECH if rng.random() < 0.5 else Modality.TEXT
    spans: list[Span] = []
    start = last_text = 0
    while start < words:
        length = _draw_length(modality, last_text, config, rng)
        stop = min(start + length, words)
        spans.append(Span(modality, start, stop))
        if modality is Modality.TEXT:
            last_text = length
        start = stop
        modality = Modality.TEXT if modality is Modality.SPEECH else Modality.SPEECH
    return spans


def _draw_length(
    modality: Modality, last_text: int, config: InterleaveConfig, rng: np.random.Generator
) -> int:
    is_speech = modality is Modality.SPEECH
    if config.rule == "poisson":
        # Spans alternate, so a modality's share of words is its share of the two mean lengths.
        share = config.speech_share if is_speech else 1 - config.speech_share
        return max(1, int(rng.poisson(2 * config.mean_words * share)))
    if config.rule == "half" and is_speech:
        text = last_text or int(rng.integers(config.text_words[0], config.text_words[1] + 1))
        return max(1, round(text / 2))
    low, high = config.speech_words if is_speech else config.text_words
    return int(rng.integers(low, high + 1))


@dataclasses.dataclass(frozen=True)
class TokenLine:
    """The speech tokens of one utterance, merged in order of time (see `units.merge`).

    Attributes:
      ids_n: int32, token ids.
      frames_n: int32, the phonetic frame (about 40 ms) at which each token begins.
      rate: phonetic frames per second in this recording.
    """

    ids_n: np.ndarray
    frames_n: np.ndarray
    rate: float

    @classmethod
    def of(cls, utterance: Utterance, vocab: Vocab) -> "TokenLine":
        """The tokens of an utterance with units; raises `InputError` for a unit without a token."""
        vocab.check_units(utterance.units.streams(), f"The utterance '{utterance.id}'")
        known = {"style": vocab.style_units, "pitch": vocab.pitch_units, "hubert": True}
        merged = units_lib.merge(utterance.units, [name for name in known if known[name]])
        first_ids = [vocab.first_ids.get(name, 0) for name in units_lib.MERGED_STREAMS]
        ids = merged.units_n + np.array(first_ids, np.int32)[merged.streams_n]
        # A pitch or style unit within a frame is cut together with the next frame. 1e-6 compensates
        # rounding.
        rate = units_lib.HUBERT_RATE
        frames = np.ceil(merged.seconds_n * rate - 1e-6).astype(np.int32)
        if utterance.seconds:
            rate = len(utterance.units) / utterance.seconds
        return cls(ids.astype(np.int32), frames, rate)

    def cut(self, start: float, end: float) -> np.ndarray:
        """Ids of tokens whose frame is at least floor(start * rate) and below ceil(end * rate)."""
        low = np.searchsorted(self.frames_n, np.floor(start * self.rate + 1e-6))
        high = np.searchsorted(self.frames_n, np.ceil(end * self.rate - 1e-6))
        return self.ids_n[low:high]


def interleave(
    document: Sequence[Utterance],
    config: InterleaveConfig,
    tokenizer: TextTokenizer,
    vocab: Vocab,
    rng: np.random.Generator,
) -> np.ndarray:
    """Interleaved token ids of a document.

    Spans may cross utterances. A speech span has the silences between its words, but not those
    between utterances.

    Args:
      document: utterances with aligned words.
      config: rule and lengths of spans.
      tokenizer: the text tokenizer.
      vocab: the token ids.
      rng: random generator.

    Returns:
      int32 (n,), without BOS and EOS.
    """
    lines = [TokenLine.of(utterance, vocab) for utterance in document]
    words = [(i, *word) for i, utterance in enumerate(document) for word in utterance.words]
    pieces: list[np.ndarray] = []
    for span in draw_spans(len(words), config, rng):
        span_words = words[span.start : span.stop]
        if span.modality is Modality.TEXT:
            texts = [word for _, word, _, _ in span_words]
            pieces.append(encode_text_span(texts, tokenizer, vocab))
        else:
            pieces.append(np.array([vocab.speech_marker], np.int32))
            for i in range(span_words[0][0], span_words[-1][0] + 1):
                times = [(start, end) for j, _, start, end in span_words if j == i]
                if times:
                    pieces.append(lines[i].cut(times[0][0], times[-1][1]))
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int32)


def encode_text_span(words: Sequence[str], tokenizer: TextTokenizer, vocab: Vocab) -> np.ndarray:
    """The ids of the text marker and the words after it, encoded as in a prompt.

    Args:
      words: they are joined by spaces; text that looks like markup is escaped.
      tokenizer: the text tokenizer.
      vocab: the token ids.

    Returns:
      int32 (n,), beginning with the id of the text marker, without BOS.
    """
    text = markup.Part(tokenizer.word_prefix + " ".join(words))
    marker = markup.Part(markup.NAMES["text"], is_token=True)
    ids = tokenizer.encode(tokenizer.markup.render([marker, text]))
    return np.array(ids[ids.index(vocab.text_marker) :], np.int32)
