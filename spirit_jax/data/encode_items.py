"""Encodes the items of a corpus as utterances: reads, splits and encodes recordings."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from spirit_jax.audio import SAMPLE_RATE, load_audio
from spirit_jax.data import report
from spirit_jax.data.configs import PrepareConfig
from spirit_jax.data.items import Item
from spirit_jax.data.read_ahead import read_ahead
from spirit_jax.data.records import Utterance
from spirit_jax.data.timing import Entry, fit_words
from spirit_jax.errors import InputError, ResourceError
from spirit_jax.speech_tokenizer import SpeechTokenizer

FRAME = SAMPLE_RATE // 50  # samples of a frame whose power is measured, to find silences
SHORTEST = 0.08  # seconds; shorter recordings are rejected, since they have no units


def encode_items(
    items: Sequence[Item],
    tokenizer: SpeechTokenizer | None,
    config: PrepareConfig,
    counts: report.Counts,
) -> Iterator[Utterance]:
    """Encodes items, in order.

    The recordings of a window are encoded together, while the next ones are read.

    Args:
      items: of a portion of a corpus.
      tokenizer: computes the units; None if there are only texts.
      config: longest segment, threads, and size of a window.
      counts: every item is added to it, or listed there as rejected.

    Yields:
      The utterances of each item that can be used. A long recording has several.
    """

    def read(item: Item) -> tuple[Item, ReadItem | str]:
        try:
            return item, _read(item, tokenizer, config)
        except ResourceError:
            raise
        except InputError as error:
            return item, str(error)

    devices = tokenizer.devices if tokenizer else 1
    with ThreadPoolExecutor(config.threads) as pool:
        pairs = read_ahead(pool, read, items, 2 * config.threads)
        for window in _windows(pairs, config.window * devices, config.window_seconds * devices):
            segments = [
                segment
                for _, result in window
                if not isinstance(result, str)
                for segment in result.segments
            ]
            waves = [wave for _, wave in segments if wave is not None]
            units = iter(tokenizer.encode_batch(waves) if waves else ())
            for item, result in window:
                if isinstance(result, str):
                    counts.reject(item.id, item.audio_name, result)
                    continue
                utterances = [_utterance(segment, wave, units) for segment, wave in result.segments]
                utterances = [each for each in utterances if not _is_blank(each, tokenizer)]
                if all(u.units is not None and not len(u.units.hubert) for u in utterances):
                    counts.reject(item.id, item.audio_name, "The recording has no units.")
                    continue
                counts.add(item, utterances, result.repaired)
                yield from utterances


def _windows(pairs, most_items: int, most_seconds: float) -> Iterator[list]:
    """Groups (item, result) pairs up to a number of items and a length of audio."""
    window, samples = [], 0
    for pair in pairs:
        window.append(pair)
        if not isinstance(pair[1], str):
            samples += sum(len(wave) for _, wave in pair[1].segments if wave is not None)
        if len(window) >= most_items or samples >= most_seconds * SAMPLE_RATE:
            yield window
            window, samples = [], 0
    if window:
        yield window


class ReadItem(NamedTuple):
    """An item that was read, as segments.

    Attributes:
      segments: (item, samples) of each segment; a long recording has several. Samples are None for
        an item without audio.
      repaired: number of words whose times were repaired.
    """

    segments: list[tuple[Item, np.ndarray | None]]
    repaired: int = 0


def _read(item: Item, tokenizer: SpeechTokenizer | None, config: PrepareConfig) -> ReadItem:
    """Reads an item; raises `InputError` if it cannot be used."""
    if item.problem:
        raise InputError(item.problem)
    if item.audio is None:
        item, repaired = _fit_words(item, None)
        return ReadItem([(item, None)], repaired)
    if tokenizer is None:
        raise InputError("There is audio, but no model to encode it (--model).")
    wave = load_audio(item.audio)
    seconds = len(wave) / SAMPLE_RATE
    if seconds < SHORTEST:
        raise InputError(f"The recording is {seconds:.3f} s long; it has no units.")
    item, repaired = _fit_words(item, seconds)
    limit = min(config.max_seconds, tokenizer.config.chunk_seconds)
    bounds = find_splits(wave, item.words, limit)
    if len(bounds) == 2:
        return ReadItem([(item, wave)], repaired)
    cuts = enumerate(itertools.pairwise(bounds))
    return ReadItem([_cut(item, wave, number, *cut) for number, cut in cuts], repaired)


def _fit_words(item: Item, seconds: float | None) -> tuple[Item, int]:
    """The item with valid word times, and the number of words that were repaired."""
    entries = [Entry(*word, low=0.0, high=seconds) for word in item.words]
    words, repaired = fit_words(entries, item.audio_name or item.id, seconds)
    return dataclasses.replace(item, words=words), repaired


def find_splits(wave: np.ndarray, words: Sequence, limit: float) -> list[int]:
    """Where to split a long recording.

    Each split is in the last third before the limit, at the frame with the lowest power. Frames
    inside of words are excluded, unless words fill that third without a gap.

    Args:
      wave: float32 (t,) samples at 16 kHz.
      words: (word, start, end) in seconds; may be empty.
      limit: longest segment in seconds.

    Returns:
      Sample positions: 0, the splits, and the length of the recording.
    """
    size = int(limit * SAMPLE_RATE)
    cuts = [0]
    while len(wave) - cuts[-1] > size:
        low, high = cuts[-1] + 2 * size // 3, cuts[-1] + size
        frames = np.arange(low, high - FRAME + 1, FRAME)
        power = np.array([np.mean(np.square(wave[start : start + FRAME])) for start in frames])
        middles = (frames + FRAME // 2) / SAMPLE_RATE
        inside = np.zeros(len(frames), bool)
        for _, start, end in words:
            inside |= (start < middles) & (middles < end)
        if not inside.all():
            power[inside] = np.inf
        cuts.append(int(frames[np.argmin(power)]) + FRAME // 2)
    return [*cuts, len(wave)]


def _cut(item: Item, wave: np.ndarray, number: int, start: int, stop: int):
    """(item, samples) of a segment of a recording; word times are relative to its start."""
    low, high = start / SAMPLE_RATE, stop / SAMPLE_RATE
    words = tuple(
        (word, max(begin, low) - low, min(end, high) - low)
        for word, begin, end in item.words
        if low <= (begin + end) / 2 < high
    )
    segment = dataclasses.replace(
        item,
        id=f"{item.id}#{number}",
        words=words,
        # Without word times it is unknown which words of the text are in this segment.
        text=" ".join(word for word, _, _ in words),
        document=item.document or item.id,
    )
    return segment, wave[start:stop]


def _utterance(item: Item, wave: np.ndarray | None, units: Iterator) -> Utterance:
    fields = (item.text, item.words, item.speaker, item.document)
    if wave is None:
        return Utterance(item.id, None, 0.0, *fields)
    return Utterance(item.id, next(units), len(wave) / SAMPLE_RATE, *fields)


def _is_blank(utterance: Utterance, tokenizer: SpeechTokenizer | None) -> bool:
    """Whether all phonetic units are blanks: the encoder noticed no speech.

    Such an utterance is not used, since a model may have no token for the blank.
    """
    return utterance.units is not None and tokenizer.is_blank(utterance.units)
