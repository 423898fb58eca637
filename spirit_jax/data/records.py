"""Prepared corpora on disk: ArrayRecord shards of units, text and word times.

A prepared corpus is a folder of `*.arrayrecord` files, and a list of the shards with their
checksums for every part of the preparation. A record has the units with repeats, so each training
run can draw its own spans.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgpack
import numpy as np
from array_record.python import array_record_module

from spirit_jax import checksums, files
from spirit_jax.errors import InputError
from spirit_jax.units import Units

SUFFIX = ".arrayrecord"
PREPARED = "prepare.json"  # the inputs of a preparation; written before the first shard
OPEN_SHARDS = 128  # largest number of open files, over all corpora


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


@dataclasses.dataclass(frozen=True)
class Shard:
    """The entry of a shard in a list of shards.

    Attributes:
      name: of the file.
      records: number of records.
      bytes: size of the file.
      checksum: see `checksums.of_file`.
    """

    name: str
    records: int
    bytes: int
    checksum: str

    @classmethod
    def of(cls, path: str | Path, records: int) -> "Shard":
        """The entry for a file with a known number of records."""
        path = Path(path)
        return cls(path.name, records, path.stat().st_size, checksums.of_file(path))


@dataclasses.dataclass(frozen=True)
class ShardList:
    """The shards of all parts of a preparation.

    Attributes:
      shards: sorted by name.
      tokenizer: hashes of the networks that computed the units, by name (see
        `model_folder.unit_hashes`); empty if there are no units, or if unknown.
    """

    shards: tuple[Shard, ...]
    tokenizer: Mapping[str, str]


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
    path, count = Path(path), 0
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


def write_list(
    folder: str | Path,
    shards: Iterable[Shard],
    tokenizer: Mapping[str, str],
    part: int = 1,
    parts: int = 1,
) -> None:
    """Writes the list of shards of a part, which completes the part.

    Args:
      folder: of the corpus.
      shards: of the part.
      tokenizer: see `ShardList`.
      part: number of the part, from 1.
      parts: number of parts.

    Raises:
      InputError: the list cannot be written.
    """
    values = {
        "part": part,
        "parts": parts,
        "tokenizer": dict(tokenizer),
        "shards": [vars(shard) for shard in sorted(shards, key=lambda shard: shard.name)],
    }
    checksums.write_json(_list_path(folder, part, parts), values)


def read_list(folder: str | Path) -> ShardList | None:
    """The lists of all parts; None for a corpus of an earlier version, which has no lists.

    Raises:
      InputError: a part is missing or damaged, or the parts are from different preparations.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("corpus-*-of-*.json"))
    if not paths:
        prepared = folder / PREPARED
        if prepared.is_file() and f'"{checksums.FIELD}"' in files.read_text(prepared):
            raise InputError(f"{folder}: prepare has not finished it; run prepare again.")
        return None
    lists = []
    for path in paths:
        values = checksums.read_json(path)
        try:
            shards = tuple(Shard(**fields) for fields in values["shards"])
            preparation = (values["parts"], values["tokenizer"])
            if path != _list_path(folder, values["part"], values["parts"]):
                raise ValueError("it has another part's name")
        except (KeyError, TypeError, ValueError) as error:
            reason = f"is not a list of shards ({files.describe(error)})."
            raise InputError(f"{path}: {reason}") from error
        lists.append((shards, preparation))
    parts, tokenizer = lists[0][1]
    if any(preparation != lists[0][1] for _, preparation in lists):
        raise InputError(f"{folder}: holds parts of different preparations; prepare it again.")
    for part in range(1, parts + 1):
        if not _list_path(folder, part, parts).is_file():
            raise InputError(f"{folder}: prepare has not finished part {part} of {parts}.")
    shards = sorted((shard for part, _ in lists for shard in part), key=lambda shard: shard.name)
    return ShardList(tuple(shards), tokenizer)


def fingerprint(folder: str | Path) -> str:
    """A hash of the content of a prepared corpus: 16 hex digits.

    It is computed from the listed checksums of the shards. Without a list, the shards are read.

    Raises:
      InputError: there is no corpus, or it is incomplete.
    """
    shard_list = read_list(folder)
    if shard_list is None:
        paths = find_shards(folder)
        pairs = list(zip([path.name for path in paths], checksums.of_files(paths), strict=True))
    else:
        pairs = [(shard.name, shard.checksum) for shard in shard_list.shards]
    return checksums.of_value(pairs)[:16]


def find_shards(folder: str | Path) -> list[Path]:
    """The shards of a prepared corpus, in order; raises `InputError` if there are none."""
    shards = sorted(Path(folder).glob("*" + SUFFIX))
    if not shards:
        raise InputError(f"{folder}: has no prepared corpus (no *{SUFFIX} files).")
    return shards


class Corpus(Sequence[Utterance]):
    """The utterances of a prepared corpus, read lazily.

    Attributes:
      folder: of the corpus.
      tokenizer: hashes of the networks that computed the units; see `ShardList`.
    """

    def __init__(self, folder: str | Path):
        """Opens a corpus, and compares the size and checksum of every shard with the list.

        A corpus of an earlier version, without a list, is opened with a notice on standard error.

        Raises:
          InputError: a shard is missing, damaged or of another corpus, or the preparation is not
            finished.
        """
        self.folder = Path(folder)
        shard_list = read_list(folder)
        self._paths = find_shards(folder)
        if shard_list is None:
            print(
                f"notice: {folder} has no list of its shards, so missing or replaced shards are "
                "not detected; prepare it again to write one.",
                file=sys.stderr,
            )
            self.tokenizer: Mapping[str, str] = {}
            counts = [_count_records(path) for path in self._paths]
        else:
            _compare(self._paths, shard_list.shards, self.folder)
            self.tokenizer = shard_list.tokenizer
            counts = [shard.records for shard in shard_list.shards]
        self._ends = np.cumsum(counts)
        self._token = object()  # key of this object's open files in the cache of `_open`

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Utterance:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        first = self._ends[shard - 1] if shard else 0
        path = self._paths[shard]
        try:
            (record,) = _open(path, self._token).read([int(index - first)])
        except Exception as error:  # the library raises RuntimeError and its own kinds
            raise files.unreadable(path, error, "is damaged.") from error
        try:
            return Utterance.from_bytes(record)
        except InputError as error:
            raise InputError(f"{path}: record {index - first}: {error}") from error

    def __iter__(self) -> Iterator[Utterance]:
        return (self[index] for index in range(len(self)))


def _compare(paths: Sequence[Path], shards: Sequence[Shard], folder: Path) -> None:
    """Raises an `InputError` unless the files are the listed shards, unchanged."""
    present, listed = {path.name for path in paths}, {shard.name for shard in shards}
    for names, reason in (
        (listed - present, "is missing"),
        (present - listed, "is not in the list of its shards"),
    ):
        if names:
            more = f" ({len(names)} such shards)" if len(names) > 1 else ""
            raise InputError(f"{folder}: the shard {min(names)} {reason}{more}.")
    for path, shard in zip(paths, shards, strict=True):
        try:
            size = path.stat().st_size
        except OSError as error:  # such as a link to a file that does not exist
            reason = f"cannot be read ({files.describe(error)})."
            raise files.unreadable(path, error, reason) from error
        if size != shard.bytes:
            raise InputError(f"{path}: has {size} bytes, but prepare wrote {shard.bytes}.")
    for path, shard, checksum in zip(paths, shards, checksums.of_files(paths), strict=True):
        if checksum != shard.checksum:
            raise InputError(
                f"{path}: its checksum is not the listed one (it is damaged, or another shard)."
            )


@functools.lru_cache(maxsize=OPEN_SHARDS)
def _open(path: Path, corpus: object) -> array_record_module.ArrayRecordReader:
    """The open shard of a corpus; if too many are open, the least recently used is closed."""
    return array_record_module.ArrayRecordReader(str(path))


def _count_records(path: Path) -> int:
    try:
        count = array_record_module.ArrayRecordReader(str(path)).num_records()
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


def _list_path(folder: str | Path, part: int, parts: int) -> Path:
    return Path(folder) / f"corpus-{part:05d}-of-{parts:05d}.json"
