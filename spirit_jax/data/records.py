"""Utterances on disk: ArrayRecord shards of units, text and word times.

A prepared corpus is a folder of `*.arrayrecord` files. A record keeps the undeduplicated time line,
so that every training run chooses anew how to cut it.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgpack
import numpy as np
from array_record.python import array_record_module

from spirit_jax.errors import InputError
from spirit_jax.units import Units

SUFFIX = ".arrayrecord"


@dataclasses.dataclass(frozen=True)
class Utterance:
    """A recording's units with its text, or text alone.

    Attributes:
      id: unique in its corpus.
      units: with repeats, at their own rates; None for text alone.
      seconds: the recording's length; 0 for text alone.
      text: what is said; "" if that is not known.
      words: (word, start, end) in seconds, rising; empty if that is not known.
      speaker: who speaks; "" if that is not known.
      document: the conversation, chapter or file this is part of; "" if it stands alone.
    """

    id: str
    units: Units | None = None
    seconds: float = 0.0
    text: str = ""
    words: tuple[tuple[str, float, float], ...] = ()
    speaker: str = ""
    document: str = ""

    def to_bytes(self) -> bytes:
        """One record."""
        fields = vars(self) | {"units": None}
        if self.units is not None:
            streams = self.units.to_dict().items()
            fields["units"] = {name: np.asarray(s, "<i2").tobytes() for name, s in streams}
        return msgpack.packb(fields)

    @classmethod
    def from_bytes(cls, record: bytes) -> "Utterance":
        """The inverse of `to_bytes`; raises `InputError` for a record that is none."""
        try:
            fields = msgpack.unpackb(record)
            if fields["units"] is not None:
                streams = {n: np.frombuffer(s, "<i2") for n, s in fields["units"].items()}
                fields["units"] = Units.from_dict(streams)
            fields["words"] = tuple((word, start, end) for word, start, end in fields["words"])
            return cls(**fields)
        except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
            raise InputError("A record is not an utterance of a prepared corpus.") from error


def write_shard(path: str | Path, utterances: Iterable[Utterance]) -> int:
    """Writes one shard of one or more, whole or not at all; returns how many it has."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    # One record a group: records are read in a random order.
    writer = array_record_module.ArrayRecordWriter(str(unfinished), "group_size:1")
    count = 0
    try:
        for utterance in utterances:
            writer.write(utterance.to_bytes())
            count += 1
    except BaseException:
        writer.close()
        unfinished.unlink(missing_ok=True)
        raise
    writer.close()
    unfinished.replace(path)
    return count


def find_shards(folder: str | Path) -> list[Path]:
    """The shards of a prepared corpus, in order; raises `InputError` if there are none."""
    shards = sorted(Path(folder).glob("*" + SUFFIX))
    if not shards:
        raise InputError(f"{folder}: holds no prepared corpus (no *{SUFFIX} files).")
    return shards


class Corpus(Sequence[Utterance]):
    """The utterances of a prepared corpus, read when they are asked for."""

    def __init__(self, folder: str | Path):
        """Opens every shard; raises `InputError` for one that is damaged."""
        self._readers, ends = [], []
        self._paths = find_shards(folder)
        for path in self._paths:
            try:
                reader = array_record_module.ArrayRecordReader(str(path))
                count = reader.num_records()
            except Exception as error:  # the library raises RuntimeError and its own kinds
                raise InputError(f"{path}: is not a shard of records.") from error
            if not count:  # what the library sees in a file that was cut short
                raise InputError(f"{path}: is not a whole shard (truncated?).")
            ends.append((ends[-1] if ends else 0) + count)
            self._readers.append(reader)
        self._ends = np.array(ends)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Utterance:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        first = self._ends[shard - 1] if shard else 0
        try:
            (record,) = self._readers[shard].read([int(index - first)])
        except Exception as error:
            raise InputError(f"{self._paths[shard]}: is damaged.") from error
        return Utterance.from_bytes(record)

    def __iter__(self) -> Iterator[Utterance]:
        return (self[index] for index in range(len(self)))
