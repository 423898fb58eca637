"""From recordings to a prepared corpus: units with their time line, text and word times.

Items are taken in portions. A portion makes one shard, and beside it a note: what it was made of
and what became of it. Where the note is, the portion is done, so a run that was stopped resumes. At
the end the list of shards is written, without which a corpus counts as not finished.
"""

import collections
import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spirit_jax import checksums, files, lock
from spirit_jax.audio import SAMPLE_RATE, load_audio
from spirit_jax.data import report
from spirit_jax.data.configs import PrepareConfig
from spirit_jax.data.manifest import Item, fingerprint, read_source, source_checksum
from spirit_jax.data.records import PREPARED, SUFFIX, Shard, Utterance, write_list, write_shard
from spirit_jax.data.timing import Entry, fit_words
from spirit_jax.errors import InputError, LackError
from spirit_jax.model_folder import unit_hashes
from spirit_jax.speech_tokenizer import SpeechTokenizer

FRAME = SAMPLE_RATE // 50  # samples over which loudness is taken, to find silences
SHORTEST = 0.08  # seconds; less has no units


@dataclasses.dataclass(frozen=True)
class Portion:
    """The items of one shard, and its file's name without suffix."""

    name: str
    items: tuple[Item, ...]


def prepare(
    source: str,
    output: str | Path,
    tokenizer: SpeechTokenizer | None,
    config: PrepareConfig = PrepareConfig(),
    part: int = 1,
    parts: int = 1,
    progress: Callable[[int], None] = lambda items: None,
) -> dict[str, Any]:
    """Prepares one of `parts` parts of a source; returns the part's report (see `report`).

    Args:
      source: see `manifest.read_source`.
      output: a folder; the parts of a corpus share it.
      tokenizer: makes units; None if the source is text alone.
      config: how.
      part: from 1.
      parts: how many share the work.
      progress: is told of items as they are done.

    Raises:
      InputError: a source that cannot be read, no item of it that can be used, a folder that was
        started from something else, a part that another process prepares, or a full disk.
    """
    output = Path(output)
    try:
        waiting = portions(source, config, part, parts)
        first = list(itertools.islice(waiting, 1))  # a source that is none leaves nothing behind
        with hold_part(output, part) as held:
            made_of = begin(output, source, tokenizer, config, parts)
            for portion in itertools.chain(first, waiting):
                held.check()
                make_shard(portion, output, tokenizer, config)
                progress(len(portion.items))
            return finish(output, source, made_of, part)
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({files.describe(error)}).") from error


def hold_part(output: Path, part: int) -> contextlib.AbstractContextManager[lock.Lock]:
    """The lock on one part of a corpus; other processes may prepare other parts meanwhile."""
    name = f"prepare-{part:05d}.lock"
    return lock.hold(output, name, f"part {part} of {output}", "folder")


def begin(
    output: Path,
    source: str,
    tokenizer: SpeechTokenizer | None,
    config: PrepareConfig,
    parts: int,
) -> dict[str, Any]:
    """Notes what the folder is made of, and returns it.

    Raises:
      InputError: the folder was started from something else.
    """
    about = {} if tokenizer is None else tokenizer.config
    made_of = {
        "source": source,
        "source content": source_checksum(source),
        "parts": parts,
        "shard_items": config.shard_items,
        "max_seconds": config.max_seconds,
        "tokenizer": unit_hashes(about) if about else {},
        "f0_method": about.f0_method if about else "",
        "chunk_seconds": about.chunk_seconds if about else 0.0,
    }
    note = output / PREPARED
    if not note.is_file():
        checksums.write_json(note, made_of)
    before = checksums.read_json(note)
    for name, value in made_of.items():
        if before.get(name) != value:
            raise InputError(
                f"{output}: was begun with {name} {before.get(name)!r}, and now it is {value!r}; "
                "take another folder, or remove this one."
            )
    return made_of


def finish(output: Path, source: str, made_of: dict[str, Any], part: int) -> dict[str, Any]:
    """Writes a part's report and the list of its shards; returns the report.

    Raises:
      InputError: no item of the part could be used, or the source changed meanwhile.
    """
    if source_checksum(source) != made_of["source content"]:
        raise InputError(
            f"{source}: has changed while it was prepared; remove {output}, and prepare it again."
        )
    parts = made_of["parts"]
    notes = report.read_notes(output, part, parts)
    shards = [Shard(**note["shard"]) for note in notes if note["shard"]]
    write_list(output, shards, made_of["tokenizer"], part, parts)
    return report.write(output, notes, part, parts)


def portions(source: str, config: PrepareConfig, part: int, parts: int) -> Iterator[Portion]:
    """The portions of a part: whole documents, dealt out in turn."""
    if not 1 <= part <= parts:
        raise InputError(f"There is no part {part} of {parts}; parts are counted from 1.")
    own = itertools.islice(_documents(read_source(source)), part - 1, None, parts)
    number, waiting = 0, []
    for document in own:
        waiting += document
        if len(waiting) >= config.shard_items:
            yield Portion(_shard_name(part, parts, number), tuple(waiting))
            number, waiting = number + 1, []
    if waiting:
        yield Portion(_shard_name(part, parts, number), tuple(waiting))


def make_shard(
    portion: Portion, output: Path, tokenizer: SpeechTokenizer | None, config: PrepareConfig
) -> None:
    """Prepares a portion, unless it is done.

    Raises:
      InputError: it is done, and was made of other items, or its note is damaged.
    """
    note, path = output / f"{portion.name}.json", output / f"{portion.name}{SUFFIX}"
    items = _checksum(portion.items)
    if note.is_file():
        if report.read_note(note)["items"] != items:
            raise InputError(
                f"{path}: was prepared from other items than those that are there now (a text, "
                "word times, or a recording's size or time of change differs); take another "
                "folder, or remove this one."
            )
        return
    counts, records = report.Counts(), 0
    utterances = _encode(portion.items, tokenizer, config, counts)
    first = next(utterances, None)
    if first is not None:  # a shard has at least one
        records = write_shard(path, itertools.chain([first], utterances))
    shard = vars(Shard.of(path, records)) if records else None
    checksums.write_json(note, {"items": items, "shard": shard, "counts": counts.to_dict()})


def _checksum(items: Sequence[Item]) -> str:
    """What tells the items of a portion from others."""
    digests = []
    for item in items:
        about = vars(item) | {"audio": item.audio_name}
        try:
            recording = checksums.of_bytes(fingerprint(item)) if item.audio is not None else ""
        except LackError:
            raise
        except InputError as error:
            recording = str(error)
        digests.append(checksums.of_value([about, recording]))
    return checksums.of_value(digests)


def _encode(
    items: Sequence[Item],
    tokenizer: SpeechTokenizer | None,
    config: PrepareConfig,
    counts: report.Counts,
) -> Iterator[Utterance]:
    """Utterances of items in order; windows of them are encoded together, while others are read."""

    def read(item: Item) -> ReadItem | str:
        try:
            return _read(item, tokenizer, config)
        except LackError:
            raise
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(config.threads) as pool:
        for window, coming in _ahead(pool, read, items, config.window):
            pieces = [piece for got in coming if not isinstance(got, str) for piece in got.pieces]
            waves = [wave for _, wave in pieces if wave is not None]
            units = iter(tokenizer.encode_batch(waves) if waves else ())
            for item, got in zip(window, coming, strict=True):
                if isinstance(got, str):
                    counts.reject(item.id, item.audio_name, got)
                    continue
                made = [_utterance(piece, wave, units) for piece, wave in got.pieces]
                if all(one.units is not None and not len(one.units.hubert) for one in made):
                    counts.reject(item.id, item.audio_name, "The recording has no units.")
                    continue
                counts.add(item, made, got.repaired)
                yield from made


def _ahead(pool, read, items: Sequence[Item], size: int):
    """(window of items, what `read` makes of them); the next window is read meanwhile."""
    windows = [items[start : start + size] for start in range(0, len(items), size)]
    started: collections.deque = collections.deque()
    for window in [*windows, None]:
        if window is not None:
            started.append((window, [pool.submit(read, item) for item in window]))
        if len(started) == 2 or window is None and started:
            due, jobs = started.popleft()
            yield due, [job.result() for job in jobs]


class ReadItem(NamedTuple):
    """The pieces of an item with their samples, and how many of its words had times repaired."""

    pieces: list[tuple[Item, np.ndarray | None]]
    repaired: int = 0


def _read(item: Item, tokenizer: SpeechTokenizer | None, config: PrepareConfig) -> ReadItem:
    """Reads an item; raises `InputError` where it cannot be used."""
    if item.problem:
        raise InputError(item.problem)
    if item.audio is None:
        item, repaired = _fit_words(item, None)
        return ReadItem([(item, None)], repaired)
    if tokenizer is None:
        raise InputError("There is audio, and no model to make units of it (--model).")
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
    """The item with words whose times keep the rules, and how many had to be repaired."""
    entries = [Entry(*word, low=0.0, high=seconds) for word in item.words]
    words, repaired = fit_words(entries, item.audio_name or item.id, seconds)
    return dataclasses.replace(item, words=words), repaired


def find_splits(wave: np.ndarray, words: Sequence, limit: float) -> list[int]:
    """Where to cut a recording, as samples from 0 to its length, no two further than `limit` s.

    Each cut is at the softest place in the last third before the limit, between words where their
    times are known; only a word longer than that third is cut itself.
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
    """A piece of a recording, its words counted from its own start."""
    low, high = start / SAMPLE_RATE, stop / SAMPLE_RATE
    own = tuple(
        (word, max(begin, low) - low, min(end, high) - low)
        for word, begin, end in item.words
        if low <= (begin + end) / 2 < high
    )
    piece = dataclasses.replace(
        item,
        id=f"{item.id}#{number}",
        words=own,
        # Without word times nobody knows which words of the text are in this piece.
        text=" ".join(word for word, _, _ in own),
        document=item.document or item.id,
    )
    return piece, wave[start:stop]


def _utterance(item: Item, wave: np.ndarray | None, units: Iterator) -> Utterance:
    fields = (item.text, item.words, item.speaker, item.document)
    if wave is None:
        return Utterance(item.id, None, 0.0, *fields)
    return Utterance(item.id, next(units), len(wave) / SAMPLE_RATE, *fields)


def _documents(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Consecutive items of the same document together, others alone."""
    numbered = enumerate(items)
    for _, group in itertools.groupby(numbered, lambda pair: pair[1].document or pair[0]):
        yield [item for _, item in group]


def _shard_name(part: int, parts: int, number: int) -> str:
    return f"part-{part:05d}-of-{parts:05d}-{number:05d}"
