"""The index of a prepared corpus: what a training must know of every record before it reads any.

`prepare` writes it, so that a training starts without reading the records. It takes six bytes a
record.
"""

import base64
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from spirit_jax import files
from spirit_jax import units as units_lib
from spirit_jax.errors import InputError

if TYPE_CHECKING:
    from spirit_jax.data.records import Utterance

UNITS, TEXT, WORDS = 1, 2, 4  # bits of `Index.content_n`
DTYPES = {"starts_n": "|b1", "content_n": "|u1", "units_n": "<u4"}


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Facts on consecutive records.

    Attributes:
      starts_n: bool (records,), whether a record is the first of its document.
      content_n: uint8 (records,), sum of `UNITS`, `TEXT` and `WORDS`, for what a record has.
      units_n: uint32 (records,), number of phonetic units without repeats.
      ranges: (smallest, largest) unit of all records, by stream.
      documents: names of the first and the last record's document.
    """

    starts_n: np.ndarray
    content_n: np.ndarray
    units_n: np.ndarray
    ranges: Mapping[str, tuple[int, int]]
    documents: tuple[str, str]

    def __len__(self) -> int:
        return len(self.starts_n)

    @classmethod
    def of(cls, utterances: Iterable["Utterance"]) -> "Index":
        """The index of utterances, which are read once."""
        builder = Builder()
        for utterance in utterances:
            builder.add(utterance)
        return builder.build()

    @classmethod
    def join(cls, parts: Sequence["Index"]) -> "Index":
        """The index of the records of all parts; a document may continue in the next part."""
        parts = [part for part in parts if len(part)]
        if not parts:
            return Builder().build()
        starts = [part.starts_n for part in parts]
        for number in range(1, len(parts)):
            last, first = parts[number - 1].documents[1], parts[number].documents[0]
            starts[number] = starts[number].copy()
            starts[number][0] = not first or first != last
        ranges: dict[str, tuple[int, int]] = {}
        for part in parts:
            for name, (low, high) in part.ranges.items():
                lowest, highest = ranges.get(name, (low, high))
                ranges[name] = (min(low, lowest), max(high, highest))
        return cls(
            np.concatenate(starts),
            np.concatenate([part.content_n for part in parts]),
            np.concatenate([part.units_n for part in parts]),
            ranges,
            (parts[0].documents[0], parts[-1].documents[1]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON can hold, for `from_dict`."""
        arrays = {name: base64.b64encode(data).decode() for name, data in self._arrays().items()}
        return arrays | {"ranges": dict(self.ranges), "documents": list(self.documents)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Index":
        """The inverse of `to_dict`; raises `InputError` for other values."""
        return _parse(values, lambda text: base64.b64decode(text, validate=True))

    def write(self, path: str | Path) -> None:
        """Writes the index with `files.whole_file`."""
        values = self._arrays() | {"ranges": dict(self.ranges), "documents": self.documents}
        with files.whole_file(path) as unfinished:
            unfinished.write_bytes(msgpack.packb(values))

    @classmethod
    def read(cls, path: str | Path) -> "Index":
        """Reads the file of `write`; raises `InputError` if it cannot be read."""
        try:
            values = msgpack.unpackb(files.read_bytes(path))
            return _parse(values, bytes)
        except (ValueError, msgpack.UnpackException, InputError) as error:
            raise InputError(f"{path}: is not an index ({files.describe(error)}).") from error

    def _arrays(self) -> dict[str, bytes]:
        return {name: getattr(self, name).astype(dtype).tobytes() for name, dtype in DTYPES.items()}


class Builder:
    """Collects the index of utterances one by one."""

    def __init__(self):
        self._starts: list[bool] = []
        self._content: list[int] = []
        self._units: list[int] = []
        self._ranges: dict[str, tuple[int, int]] = {}
        self._documents = ("", "")

    def add(self, utterance: "Utterance") -> None:
        """Adds the next utterance."""
        name, last = utterance.document, self._documents[1]
        self._starts.append(not self._starts or not name or name != last)
        self._documents = (self._documents[0] if len(self._starts) > 1 else name, name)
        content, count = TEXT * bool(utterance.text) + WORDS * bool(utterance.words), 0
        if utterance.units is not None:
            content += UNITS
            count = len(units_lib.dedup(utterance.units.hubert))
            for stream, units in utterance.units.streams().items():
                if len(units):
                    low, high = int(units.min()), int(units.max())
                    lowest, highest = self._ranges.get(stream, (low, high))
                    self._ranges[stream] = (min(low, lowest), max(high, highest))
        self._content.append(content)
        self._units.append(count)

    def watch(self, utterances: Iterable["Utterance"]) -> Iterable["Utterance"]:
        """Yields the utterances, and adds each."""
        for utterance in utterances:
            self.add(utterance)
            yield utterance

    def build(self) -> Index:
        """The index of the utterances so far."""
        return Index(
            np.array(self._starts, bool),
            np.array(self._content, np.uint8),
            np.array(self._units, np.uint32),
            dict(self._ranges),
            self._documents,
        )


def _parse(values: Mapping[str, Any], decode) -> Index:
    try:
        arrays = [np.frombuffer(decode(values[name]), dtype) for name, dtype in DTYPES.items()]
        ranges = {name: (int(low), int(high)) for name, (low, high) in values["ranges"].items()}
        first, last = map(str, values["documents"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"It is not an index: {files.describe(error)}.") from error
    if len({len(array) for array in arrays}) != 1:
        raise InputError("It is not an index: its columns have different lengths.")
    return Index(*arrays, ranges, (first, last))
