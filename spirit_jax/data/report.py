"""What became of a corpus that was prepared: hours, units, rejects, and a picture of them."""

import collections
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spirit_jax import checksums, files
from spirit_jax import units as units_lib
from spirit_jax.data.manifest import Item
from spirit_jax.data.records import Utterance
from spirit_jax.errors import InputError, LackError


@dataclasses.dataclass
class Counts:
    """What became of a portion of items.

    Attributes:
      items: that were used.
      utterances: made of them.
      seconds: of speech.
      units: phonetic units, without repeats.
      frames: phonetic units with repeats.
      words: with times.
      words_repaired: words that had no times, or impossible ones; see `timing.fit_words`.
      characters: of text.
      texts_lost: recordings with text that were split without word times.
      histogram: how often each phonetic unit comes, with repeats.
      lengths: seconds of utterances.
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
    lengths: list[float] = dataclasses.field(default_factory=list)
    rejects: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def add(self, item: Item, made: Sequence[Utterance], repaired: int = 0) -> None:
        """An item, its utterances, and how many of its words had times repaired."""
        self.items += 1
        self.words_repaired += repaired
        self.utterances += len(made)
        self.texts_lost += len(made) > 1 and bool(item.text) and not item.words
        for one in made:
            self.characters += len(one.text)
            self.words += len(one.words)
            if one.units is not None:
                self.seconds += one.seconds
                self.lengths.append(round(one.seconds, 2))
                self.units += len(units_lib.dedup(one.units.hubert))
                self.frames += len(one.units.hubert)
                self.histogram.update(str(unit) for unit in one.units.hubert)

    def reject(self, name: str, audio: str, reason: str) -> None:
        """An item that was not used."""
        self.rejects.append({"id": name, "audio": audio, "reason": reason})

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return vars(self) | {"histogram": dict(self.histogram)}

    def join(self, other: dict[str, Any]) -> None:
        """Adds what `to_dict` gave of another portion."""
        for name, value in other.items():
            if name == "histogram":
                self.histogram.update(value)
            else:
                setattr(self, name, getattr(self, name) + value)


def read_note(path: str | Path) -> dict[str, Any]:
    """What was written beside a shard: "items", "shard" and "counts"; see `prepare.make_shard`.

    Raises:
      InputError: the note is damaged or from an earlier version.
    """
    try:
        note = checksums.read_json(path)
    except LackError:
        raise
    except InputError as error:
        raise InputError(f"{error} Remove it and prepare again; its shard is made anew.") from error
    if not {"items", "shard", "counts"} <= note.keys():
        raise InputError(f"{path}: is no note of a shard.")
    return note


def read_notes(output: Path, part: int, parts: int) -> list[dict[str, Any]]:
    """The notes of a part's shards, in order; see `read_note`."""
    paths = sorted(output.glob(f"part-{part:05d}-of-{parts:05d}-*.json"))
    return [read_note(path) for path in paths]


def write(output: Path, notes: Sequence[dict[str, Any]], part: int, parts: int) -> dict[str, Any]:
    """Writes a part's report and rejects, from the notes of its shards; returns the report.

    Raises:
      InputError: no item of the part could be used.
    """
    total = Counts()
    for note in notes:
        total.join(note["counts"])
    name = f"{part:05d}-of-{parts:05d}"
    lines = [json.dumps(reject) + "\n" for reject in total.rejects]
    files.write_text(output / f"rejects-{name}.jsonl", "".join(lines))
    summary = summarise(total)
    files.write_json(output / f"report-{name}.json", summary)
    if not total.items and total.rejects:
        first = total.rejects[0]
        has_line = first["reason"].lower().startswith(f"{first['id']}: ")  # an id such as "line 3"
        named = first["reason"] if has_line else f"{first['id']}: {first['reason']}"
        raise InputError(f"{output}: none of {len(lines)} items can be used; the first: {named}")
    return summary


def summarise(total: Counts) -> dict[str, Any]:
    """The report: totals, and what they come to a second."""
    seconds = max(total.seconds, 1e-9)
    reasons = collections.Counter(_kind(reject["reason"]) for reject in total.rejects)
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
        "rejected": len(total.rejects),
        "rejects": dict(reasons.most_common()),
        "histogram": {k: total.histogram[k] for k in sorted(total.histogram, key=int)},
        "lengths": total.lengths,
    }


def _kind(reason: str) -> str:
    """A reason without the names of what it is about."""
    words = [w for w in reason.split() if not any(sign in w for sign in "/'\"0123456789")]
    return " ".join(words)[:80]


def describe(told: dict[str, Any]) -> str:
    """A report as a few lines for people."""
    lines = [
        f"{told['items']} items, {told['utterances']} utterances, {told['hours']:.2f} hours",
        f"{told['units']} units, {told['units_per_second']:.1f} a second "
        f"({told['frames_per_second']:.1f} with repeats), {len(told['histogram'])} different",
        f"{told['words']} words with times, {told['characters']} characters of text",
    ]
    if told["words_repaired"]:
        lines.append(
            f"{told['words_repaired']} words had no times, or impossible ones, and got the time "
            "between their neighbours"
        )
    if told["texts_lost"]:
        lines.append(f"{told['texts_lost']} long recordings lost their text: no word times")
    lines += [f"rejected {count}: {reason}" for reason, count in told["rejects"].items()]
    return "\n".join(lines)


def plot(told: dict[str, Any], path: str | Path) -> None:
    """Draws how often units come, and how long utterances are, to a picture file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    above, below = figure.subplots(2, 1)
    counts = np.sort(np.array(list(told["histogram"].values()), float))[::-1]
    above.bar(np.arange(len(counts)), counts / max(counts.sum(), 1), width=1.0)
    above.set(title=f"{len(counts)} phonetic units by how often they come", ylabel="share")
    below.hist(told["lengths"], bins=40)
    title = f"{told['utterances']} utterances, {told['hours']:.2f} hours, "
    title += f"{told['units_per_second']:.1f} units a second"
    below.set(title=title, xlabel="seconds of an utterance", ylabel="utterances")
    figure.savefig(path)
