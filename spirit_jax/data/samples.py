"""Builds token sequences from documents, in the format of a source (see `SourceConfig`)."""

import itertools
from collections.abc import Sequence

import numpy as np

from spirit_jax.data import index as index_lib
from spirit_jax.data.configs import SourceConfig
from spirit_jax.data.corpus import Corpus
from spirit_jax.data.interleave import TokenLine, encode_text_span, interleave
from spirit_jax.data.records import Utterance
from spirit_jax.errors import InputError
from spirit_jax.text import TextTokenizer
from spirit_jax.vocab import Vocab

LONGEST_RUN = 3  # largest number of words that stay together when an utterance is shuffled
NEEDS_SPEECH, NEEDS_TEXT = ("interleaved", "speech", "asr", "tts"), ("text", "asr", "tts")


class Documents(Sequence[list[Utterance]]):
    """The documents of a corpus: consecutive utterances with the same `document`.

    Attributes:
      shard_ends: int64, number of documents up to the end of each shard.
    """

    def __init__(
        self, corpus: Corpus, source: SourceConfig | None = None, vocab: Vocab | None = None
    ):
        """Reads the index of the corpus.

        Args:
          corpus: the utterances.
          source: if given, every utterance must have what its format needs.
          vocab: if given, every unit must have a token.

        Raises:
          InputError: an utterance fails one of these checks.
        """
        self._corpus = corpus
        index = corpus.index()
        if source is not None:
            for number in np.flatnonzero(_lacks(index.content_n, source))[:1]:
                _check(corpus[number], source)
        if vocab is not None:
            _check_units(corpus, index, vocab)
        starts = np.flatnonzero(index.starts_n)
        self._bounds_n = np.append(starts, len(corpus))
        # Documents up to the end of each shard; one that spans two shards belongs to the first.
        self.shard_ends = np.searchsorted(starts, corpus.ends)

    def __len__(self) -> int:
        return len(self._bounds_n) - 1

    def __getitem__(self, index: int) -> list[Utterance]:
        first, end = self._bounds_n[index : index + 2]
        return [self._corpus[i] for i in range(first, end)]


def make_sample(
    document: Sequence[Utterance],
    source: SourceConfig,
    tokenizer: TextTokenizer,
    vocab: Vocab,
    rng: np.random.Generator,
) -> np.ndarray:
    """Token ids of a document in the format of a source.

    Args:
      document: consecutive utterances.
      source: the format, with the settings of interleaving, cropping and shuffling.
      tokenizer: the text tokenizer.
      vocab: the token ids.
      rng: random generator for spans, crops and shuffles.

    Returns:
      int32 (n,), with BOS first, if the model has one, and EOS last.

    Raises:
      InputError: an utterance lacks what the format needs.
    """
    for utterance in document:
        _check(utterance, source)
    if source.format == "interleaved":
        parts = [interleave(document, source.interleave, tokenizer, vocab, rng)]
    elif source.format == "text":
        words = [utterance.text for utterance in document]
        parts = [encode_text_span(words, tokenizer, vocab)]
    else:
        marker = np.array([vocab.speech_marker], np.int32)
        lines = [TokenLine.of(utterance, vocab) for utterance in document]
        if source.format == "speech":
            parts = [marker, *(line.ids_n for line in lines)]
        else:
            parts = []
            for utterance, line in zip(document, lines, strict=True):
                ids, words = line.ids_n, [utterance.text]
                draw = rng.random() if source.changes else 1.0
                if draw < source.crop:
                    ids, words = _crop(utterance, line, rng)
                elif draw < source.crop + source.shuffle:
                    ids, words = _shuffle(utterance, line, rng)
                text = encode_text_span([*filter(None, [source.flag]), *words], tokenizer, vocab)
                parts += [marker, ids, text] if source.format == "asr" else [text, marker, ids]
    bos = np.array([] if vocab.bos is None else [vocab.bos], np.int32)
    return np.concatenate([bos, *parts, np.array([vocab.eos[0]], np.int32)])


def _crop(
    utterance: Utterance, line: TokenLine, rng: np.random.Generator
) -> tuple[np.ndarray, list[str]]:
    """Ids and words of a random run of an utterance's words."""
    count = len(utterance.words)
    start = int(rng.integers(count))
    return _run(utterance, line, start, int(rng.integers(start, count)) + 1)


def _shuffle(
    utterance: Utterance, line: TokenLine, rng: np.random.Generator
) -> tuple[np.ndarray, list[str]]:
    """Ids and words of an utterance, its words shuffled in runs of at most `LONGEST_RUN`."""
    count, starts = len(utterance.words), [0]
    while starts[-1] < count:
        starts.append(min(starts[-1] + int(rng.integers(1, LONGEST_RUN + 1)), count))
    runs = [_run(utterance, line, *bounds) for bounds in itertools.pairwise(starts)]
    runs = [runs[place] for place in rng.permutation(len(runs))]
    ids = np.concatenate([run_ids for run_ids, _ in runs])
    return ids, [word for _, run_words in runs for word in run_words]


def _run(utterance: Utterance, line: TokenLine, start: int, stop: int) -> tuple:
    """Token ids and texts of the words from `start` to before `stop`.

    The first run of an utterance includes its leading silence, the last one its trailing silence.
    """
    words = utterance.words
    begin = words[start][1] if start else 0.0
    end = words[stop - 1][2] if stop < len(words) else utterance.seconds
    return line.cut(begin, end), [word for word, _, _ in words[start:stop]]


def _lacks(content_n: np.ndarray, source: SourceConfig) -> np.ndarray:
    """Whether utterances lack what a format needs; as `_check`, from the bits of an index."""
    needed = index_lib.UNITS * (source.format in NEEDS_SPEECH)
    needed |= index_lib.TEXT * (source.format in NEEDS_TEXT)
    needed |= index_lib.WORDS * (source.format == "interleaved" or source.changes)
    return content_n & needed != needed


def _check_units(corpus: Corpus, index: index_lib.Index, vocab: Vocab) -> None:
    """Raises an `InputError` that names the first utterance with a unit that has no token."""
    try:
        vocab.check_units(index.ranges, "")
    except InputError:
        for utterance in corpus:
            if utterance.units is not None:
                name = f"{corpus.folder}: the utterance '{utterance.id}'"
                vocab.check_units(utterance.units.streams(), name)
        raise


def _check(utterance: Utterance, source: SourceConfig) -> None:
    missing = None
    if source.format in NEEDS_SPEECH and utterance.units is None:
        missing = "units"
    elif source.format in NEEDS_TEXT and not utterance.text:
        missing = "text"
    elif (source.format == "interleaved" or source.changes) and not utterance.words:
        missing = "word times"
    if missing:
        by_changes = missing == "word times" and source.format != "interleaved"
        needed_by = "crop and shuffle need" if by_changes else f"the format '{source.format}' needs"
        raise InputError(
            f"{source.path}: the utterance '{utterance.id}' has no {missing}, which {needed_by}."
        )
