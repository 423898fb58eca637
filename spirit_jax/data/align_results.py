"""The results of an alignment: OUTPUT.partial, its division into OUTPUT and rejects, statistics.

OUTPUT.partial has a line for every item in order, so that an interrupted run resumes. Its first
line has the source and the settings. At the end it is split into OUTPUT and, for items that failed,
OUTPUT.rejects.jsonl.
"""

import collections
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spirit_jax import files
from spirit_jax.data.manifest import source_checksum
from spirit_jax.errors import InputError, plural

LETTERS = 10  # largest number of characters that a report lists


@dataclasses.dataclass
class AlignReport:
    """Statistics of an alignment.

    Attributes:
      aligned: number of items with word times.
      rejected: number of items that could not be used.
      repaired: number of words with missing or impossible times in a file; see `timing.fit_words`.
      unknown: number of labels of unknown words in files; they are not among the words.
      stars: number of words that the aligner does not know or cannot spell.
      letters: the unknown characters or words, with the number of words.
    """

    aligned: int = 0
    rejected: int = 0
    repaired: int = 0
    unknown: int = 0
    stars: int = 0
    letters: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def notes(self) -> list[str]:
        """Warnings about the words, one sentence each."""
        notes = []
        if self.repaired:
            notes.append(
                f"{plural(self.repaired, 'word')} with no times, or impossible ones, got the time "
                "between the neighbours."
            )
        if self.unknown:
            notes.append(
                f"{plural(self.unknown, 'spoken word')} left out: the files have only a "
                "label there, such as <unk> or spn."
            )
        if self.stars:
            letters = ", ".join(f"{c} ({n})" for c, n in self.letters.most_common(LETTERS))
            letters += ", ..." if len(self.letters) > LETTERS else ""
            notes.append(
                f"The times of {plural(self.stars, 'word')} are less exact, since the aligner "
                f"does not know the word or its characters: {letters}."
            )
        return notes


def resume(partial: Path, source: Path, settings: Mapping[str, Any]) -> int:
    """The number of items in OUTPUT.partial, which is created if it does not exist.

    A truncated last line is removed.

    Args:
      partial: OUTPUT.partial.
      source: the manifest or folder.
      settings: what the word times depend on, as JSON values by name.

    Raises:
      InputError: the source cannot be read, or OUTPUT.partial is damaged, or was started with
        another source or other settings.
    """
    inputs = {"source": str(source), "content of the source": source_checksum(str(source))}
    if not inputs["content of the source"]:
        raise InputError(f"{source}: cannot be read (there is no such file or folder).")
    inputs |= settings
    if not partial.is_file():
        files.write_text(partial, json.dumps(inputs) + "\n")
        return 0
    with files.open_binary(partial) as file:
        stored = _parse_header(file.readline(), partial)
        changed = [name for name in inputs if stored.get(name) != inputs[name]]
        if changed:
            differences = ", ".join(
                name
                if name.startswith("content")
                else f"{name} {stored.get(name)!r}, now {value!r}"
                for name, value in inputs.items()
                if name in changed
            )
            raise InputError(
                f"{partial}: was started with another source or other settings ({differences}); "
                "remove it to start again."
            )
        count, end = 0, file.tell()
        while (line := file.readline()).endswith(b"\n"):
            count, end = count + 1, file.tell()
    if line and not files.is_bucket(partial):  # an object of a bucket is never truncated
        os.truncate(partial, end)
    return count


def _parse_header(line: bytes, partial: Path) -> dict[str, Any]:
    try:
        header = files.parse_json(line.decode("utf-8"))
        if isinstance(header, dict):
            return header
    except ValueError:
        pass
    raise InputError(f"{partial}: its first line is damaged; remove it to start again.")


def split(partial: Path, source: Path, output: Path) -> AlignReport:
    """Writes OUTPUT and the rejects from a complete OUTPUT.partial, and removes it.

    Args:
      partial: OUTPUT.partial.
      source: the manifest or folder, for messages.
      output: the manifest to write.

    Returns:
      Statistics of all items.

    Raises:
      InputError: no item can be used, or OUTPUT.partial is damaged.
    """
    rejects = output.with_name(output.name + ".rejects.jsonl")
    report, reason = AlignReport(), ""
    for entry in _read_partial(partial):
        report.rejected += "reject" in entry
        report.aligned += "item" in entry
        reason = reason or entry.get("reject", {}).get("reason", "")
        for name, count in entry.get("counts", {}).items():
            if name == "letters":
                report.letters.update(count)
            else:
                setattr(report, name, getattr(report, name) + count)
    if report.rejected:
        _write_entries(partial, "reject", rejects)
    else:
        rejects.unlink(missing_ok=True)  # of an earlier run
    if report.aligned:  # OUTPUT last: when it exists, the run is complete
        _write_entries(partial, "item", output)
    partial.unlink()
    if not report.aligned:
        raise InputError(
            f"{source}: none of its {report.rejected} items can be used, see {rejects}; "
            f"the first: {reason}"
        )
    return report


def _write_entries(partial: Path, kind: str, path: Path) -> None:
    entries = (entry[kind] for entry in _read_partial(partial) if kind in entry)
    files.write_json_lines(path, entries)


def _read_partial(partial: Path) -> Iterator[dict[str, Any]]:
    """The lines of OUTPUT.partial without the first."""
    for number, entry in files.read_json_lines(partial):
        if number == 1:
            continue
        if not isinstance(entry, dict) or len(entry.keys() & {"item", "reject"}) != 1:
            raise InputError(f"{partial}: line {number} is damaged; remove it to start again.")
        yield entry
