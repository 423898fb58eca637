"""The shards of a prepared corpus: ArrayRecord files of units, text and word times.

A record is an utterance. It has the units with repeats, so each training run can draw its own
spans. A prepared corpus is a folder of shards with lists of them (`shard_list`); `corpus` reads it.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgpack
import numpy as np
from array_record.python import array_record_module

from spirit_jax import files
from spirit_jax.errors import InputError
from spirit_jax.units import Units

SUFFIX = ".arrayrecord"


@dataclasses.dataclass(frozen=True)
class Utterance:
    """The units of a recording with its text, or text only.

    Attributes:
      id: unique in its corpus.
      units: with repeats, each stream at its own rate; None for text only.
      seconds: length of the recording; 0 for text only.
      text: the transcript; "" if unknown.
      words: (word, start, end) in seconds, in order; empty if unknown.
      speaker: name of the speaker; "" if unknown.
      document: the conversation, chapter or file that the utterance is part of; "" if none.
    """

    id: str
    units: Units | None = None
    seconds: float = 0.0
    text: str = ""
    words: tuple[tuple[str, float, float], ...] = ()
    speaker: str = ""
    document: str = ""

    def to_bytes(self) -> bytes:
        """The record: msgpack, with units as little-endian int16.

        Raises:
          InputError: units are not timed, or do not fit 16 bits.
        """
        fields = vars(self) | {"units": None}
        if self.units is not None:
            if not self.units.timed:
                raise InputError(f"{self.id}: units of a string are not timed; encode the audio.")
            streams = self.units.streams().items()
            fields["units"] = {name: self._pack(name, s) for name, s in streams}
        return msgpack.packb(fields)

    def _pack(self, name: str, units: np.ndarray) -> bytes:
        if (units != units.astype("<i2")).any():
            raise InputError(f"{self.id}: {name} units must fit 16 bits, but one is {max(units)}.")
        return units.astype("<i2").tobytes()

    @classmethod
    def from_bytes(cls, record: bytes) -> "Utterance":
        """The inverse of `to_bytes`; raises `InputError` if the record is damaged."""
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
    """Writes a shard of at least one utterance, with `files.whole_file`.

    Args:
      path: the file to write.
      utterances: the records.

    Returns:
      The number of records.

    Raises:
      InputError: the file cannot be written, for example because the disk is full.
    """
    path, count = files.as_path(path), 0
    with files.whole_file(path) as unfinished:
        # Groups of one record, since records are read in a random order.
        writer = array_record_module.ArrayRecordWriter(str(unfinished), "group_size:1")
        try:
            for utterance in utterances:
                writer.write(utterance.to_bytes())
                count += 1
        finally:
            _close(writer, path)
    return count


def read_shard(path: str | Path) -> Iterator[Utterance]:
    """The utterances of a shard; raises `InputError` if it is damaged."""
    try:
        with files.local_copy(path) as local:
            reader = array_record_module.ArrayRecordReader(str(local))
            records = (reader.read([number])[0] for number in range(reader.num_records()))
            yield from map(Utterance.from_bytes, records)
    except RuntimeError as error:
        raise files.unreadable(path, error, "is damaged.") from error


def count_records(path: Path) -> int:
    """The number of records of a shard; raises `InputError` if it is damaged."""
    try:
        with files.local_copy(path) as local:
            count = array_record_module.ArrayRecordReader(str(local)).num_records()
    except Exception as error:  # the library raises RuntimeError and its own kinds
        raise files.unreadable(path, error, "is not a shard of records.") from error
    if not count:  # as the library reports for a truncated file
        raise InputError(f"{path}: is not a complete shard (truncated?).")
    return count


def _close(writer: array_record_module.ArrayRecordWriter, path: Path) -> None:
    """Closes a shard; the library reports a full disk only here."""
    try:
        writer.close()
    except Exception as error:
        raise InputError(f"{path}: cannot be written ({files.describe(error)}).") from error
