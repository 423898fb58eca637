"""The report of a prepared corpus: hours, units, rejected items, and a plot."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spirit_jax import checksums, files
from spirit_jax import units as units_lib
from spirit_jax.data.manifest import Item
from spirit_jax.data.records import Utterance
from spirit_jax.errors import InputError, ResourceError, plural


class NothingUsed(InputError):
    """No item of a part could be used."""


@dataclasses.dataclass
class Counts:
    """Statistics of a portion of items.

    Attributes:
      items: number of used items.
      utterances: number of their utterances.
      seconds: of speech.
      units: number of phonetic units without repeats.
      frames: number of phonetic units with repeats.
      words: number of words with times.
      words_repaired: number of words whose times were missing or impossible; see
        `timing.fit_words`.
      characters: of text.
      texts_lost: number of recordings that lost their text, since they were split without word
        times.
      histogram: counts of the phonetic units, with repeats.
      lengths: number of utterances by length, in seconds rounded down to a half.
      rejects: items that were not used, with reasons.
    """

    items: int = 0
    utterances: int = 0
    seconds: float = 0.0
    units: int = 0
    frames: int = 0
    words: int = 0
    words_repaired: int = 0
    characters: int = 0
    texts_lost: int = 0
    histogram: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    lengths: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    rejects: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def add(self, item: Item, utterances: Sequence[Utterance], repaired: int = 0) -> None:
        """Adds an item.

        Args:
          item: the item.
          utterances: its utterances.
          repaired: number of words whose times were repaired.
        """
        self.items += 1
        self.words_repaired += repaired
        self.utterances += len(utterances)
        self.texts_lost += len(utterances) > 1 and bool(item.text) and not item.words
        for utterance in utterances:
            self.characters += len(utterance.text)
            self.words += len(utterance.words)
            if utterance.units is not None:
                self.seconds += utterance.seconds
                self.lengths.update([_bin(utterance.seconds)])
                self.units += len(units_lib.dedup(utterance.units.hubert))
                self.frames += len(utterance.units.hubert)
                self.histogram.update(str(unit) for unit in utterance.units.hubert)

    def reject(self, name: str, audio: str, reason: str) -> None:
        """Adds a rejected item.

        Args:
          name: its id.
          audio: its audio path, or "".
          reason: why it cannot be used.
        """
        self.rejects.append({"id": name, "audio": audio, "reason": reason})

    def to_dict(self) -> dict[str, Any]:
        """The statistics as JSON values."""
        return vars(self) | {"histogram": dict(self.histogram), "lengths": dict(self.lengths)}

    def join(self, other: dict[str, Any]) -> None:
        """Adds the result of `to_dict` of another portion, without its rejected items."""
        for name, value in other.items():
            if name == "lengths" and isinstance(value, list):  # of an earlier version
                value = collections.Counter(map(_bin, value))
            if name in ("histogram", "lengths"):
                getattr(self, name).update(value)
            elif name != "rejects":
                setattr(self, name, getattr(self, name) + value)


def _bin(seconds: float) -> str:
    return str(int(seconds * 2) / 2)


def read_note(path: str | Path) -> dict[str, Any]:
    """The note of a shard: "items", "shard" and "counts"; see `prepare.make_shard`.

    Raises:
      InputError: the note is damaged or from an earlier version.
    """
    try:
        note = checksums.read_json(path)
    except ResourceError:
        raise
    except InputError as error:
        message = f"{error} Remove it and prepare again; its shard is written again."
        raise InputError(message) from error
    if not {"items", "shard", "counts"} <= note.keys():
        raise InputError(f"{path}: is not the note of a shard.")
    return note


def read_notes(output: Path, part: int, parts: int) -> Iterator[dict[str, Any]]:
    """The notes of a part's shards, in order.

    Args:
      output: the folder of the corpus.
      part: number of the part, from 1.
      parts: number of parts.

    Raises:
      InputError: see `read_note`.
    """
    return map(read_note, sorted(output.glob(f"part-{part:05d}-of-{parts:05d}-*.json")))


def write(output: Path, counts: Iterable[dict[str, Any]], part: int, parts: int) -> dict[str, Any]:
    """Writes the report and the rejected items of a part.

    Only the totals are kept in memory.

    Args:
      output: the folder of the corpus.
      counts: results of `Counts.to_dict`, of the part's portions.
      part: number of the part, from 1.
      parts: number of parts.

    Returns:
      The report; see `summarise`.

    Raises:
      NothingUsed: no item of the part could be used.
    """
    total, reasons = Counts(), collections.Counter()
    first: dict[str, str] = {}

    def rejects() -> Iterator[dict[str, str]]:
        for portion in counts:
            total.join(portion)
            for reject in portion["rejects"]:
                reasons[_kind(reject["reason"])] += 1
                first.update(first or reject)
                yield reject

    name = f"{part:05d}-of-{parts:05d}"
    files.write_json_lines(output / f"rejects-{name}.jsonl", rejects())
    summary = summarise(total, reasons)
    files.write_json(output / f"report-{name}.json", summary)
    if not total.items and first:
        has_line = first["reason"].lower().startswith(f"{first['id']}: ")  # an id such as "line 3"
        reason = first["reason"] if has_line else f"{first['id']}: {first['reason']}"
        raise NothingUsed(
            f"{output}: none of {reasons.total()} items can be used; the first: {reason}"
        )
    return summary


def summarise(total: Counts, reasons: Mapping[str, int]) -> dict[str, Any]:
    """The report: totals, rates per second, and counts of reasons for rejection."""
    seconds = max(total.seconds, 1e-9)
    return {
        "items": total.items,
        "utterances": total.utterances,
        "hours": total.seconds / 3600,
        "units": total.units,
        "units_per_second": total.units / seconds,
        "frames_per_second": total.frames / seconds,
        "words": total.words,
        "words_repaired": total.words_repaired,
        "characters": total.characters,
        "texts_lost": total.texts_lost,
        "rejected": sum(reasons.values()),
        "rejects": dict(collections.Counter(reasons).most_common()),
        "histogram": {k: total.histogram[k] for k in sorted(total.histogram, key=int)},
        "lengths": {k: total.lengths[k] for k in sorted(total.lengths, key=float)},
    }


def _kind(reason: str) -> str:
    """A reason without names and numbers, to group reasons."""
    words = [w for w in reason.split() if not any(sign in w for sign in "/'\"0123456789")]
    return " ".join(words)[:80]


def describe(summary: dict[str, Any]) -> str:
    """A report as a few lines of text."""
    lines = [
        f"{plural(summary['items'], 'item')}, {plural(summary['utterances'], 'utterance')}, "
        f"{summary['hours']:.2f} hours",
        f"{plural(summary['units'], 'unit')}, {summary['units_per_second']:.1f} a second "
        f"({summary['frames_per_second']:.1f} with repeats), "
        f"{len(summary['histogram'])} different",
        f"{plural(summary['words'], 'word')} with times, "
        f"{plural(summary['characters'], 'character')} of text",
    ]
    if summary["words_repaired"]:
        lines.append(
            f"{plural(summary['words_repaired'], 'word')} with no times, or impossible ones, got "
            "the time between the neighbours"
        )
    if summary["texts_lost"]:
        count = plural(summary["texts_lost"], "long recording")
        lines.append(f"{count} lost the text: no word times")
    lines += [f"rejected {count}: {reason}" for reason, count in summary["rejects"].items()]
    return "\n".join(lines)


def plot(summary: dict[str, Any], path: str | Path) -> None:
    """Plots the frequencies of units and the lengths of utterances to an image file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    above, below = figure.subplots(2, 1)
    counts = np.sort(np.array(list(summary["histogram"].values()), float))[::-1]
    above.bar(np.arange(len(counts)), counts / max(counts.sum(), 1), width=1.0)
    above.set(title=f"{len(counts)} phonetic units by frequency", ylabel="share")
    starts = np.array(list(summary["lengths"]), float)
    below.bar(starts, list(summary["lengths"].values()), width=0.5, align="edge")
    title = f"{plural(summary['utterances'], 'utterance')}, {summary['hours']:.2f} hours, "
    title += f"{summary['units_per_second']:.1f} units a second"
    below.set(title=title, xlabel="seconds of an utterance", ylabel="utterances")
    figure.savefig(path)
