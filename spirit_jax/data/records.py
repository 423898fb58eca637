"""Prepared corpora on disk: ArrayRecord shards of units, text and word times.

A prepared corpus is a folder of `*.arrayrecord` files, and a list of the shards with their
checksums and an index of the records for every part of the preparation. A record has the units with
repeats, so each training run can draw its own spans.
"""

import collections
import dataclasses
import resource
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgpack
import numpy as np
from array_record.python import array_record_module

from spirit_jax import checksums, files
from spirit_jax.data.index import Index
from spirit_jax.errors import InputError
from spirit_jax.units import Units

SUFFIX = ".arrayrecord"
PREPARED = "prepare.json"  # the inputs of a preparation; written before the first shard
OPEN_SHARDS = 512  # largest number of open files, over all corpora; 1,024 is the usual limit
CHECKED_BYTES = 8 << 30  # of a corpus; the shards of larger ones are checked when they are opened


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
      indexes: (path, checksum) of the index of each part; empty for a corpus of an earlier version.
    """

    shards: tuple[Shard, ...]
    tokenizer: Mapping[str, str]
    indexes: tuple[tuple[Path, str], ...] = ()


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


def read_shard(path: str | Path) -> Iterator[Utterance]:
    """The utterances of a shard; raises `InputError` if it is damaged."""
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        records = (reader.read([number])[0] for number in range(reader.num_records()))
        yield from map(Utterance.from_bytes, records)
    except RuntimeError as error:
        raise files.unreadable(path, error, "is damaged.") from error


def write_list(
    folder: str | Path,
    shards: Iterable[Shard],
    tokenizer: Mapping[str, str],
    part: int = 1,
    parts: int = 1,
    index: Index | None = None,
) -> None:
    """Writes the list of shards of a part, and their index, which completes the part.

    Args:
      folder: of the corpus.
      shards: of the part, sorted by name.
      tokenizer: see `ShardList`.
      part: number of the part, from 1.
      parts: number of parts.
      index: of the records of the shards; without it, a training reads all records at its start.

    Raises:
      InputError: a file cannot be written.
    """
    values = {
        "part": part,
        "parts": parts,
        "tokenizer": dict(tokenizer),
        "shards": [vars(shard) for shard in shards],
    }
    if index is not None:
        path = _list_path(folder, part, parts).with_suffix(".index")
        index.write(path)
        values["index"] = checksums.of_file(path)
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
    lists, indexes = [], []
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
        if "index" in values:
            indexes.append((path.with_suffix(".index"), values["index"]))
    parts, tokenizer = lists[0][1]
    if any(preparation != lists[0][1] for _, preparation in lists):
        raise InputError(f"{folder}: holds parts of different preparations; prepare it again.")
    for part in range(1, parts + 1):
        if not _list_path(folder, part, parts).is_file():
            raise InputError(f"{folder}: prepare has not finished part {part} of {parts}.")
    in_parts = [shard for part, _ in lists for shard in part]
    shards = sorted(in_parts, key=lambda shard: shard.name)
    is_complete = len(indexes) == len(lists) and shards == in_parts
    return ShardList(tuple(shards), tokenizer, tuple(indexes) if is_complete else ())


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
      ends: int64, number of records up to the end of each shard.
    """

    def __init__(self, folder: str | Path):
        """Opens a corpus, and compares the size and checksum of every shard with the list.

        In a corpus of more than `CHECKED_BYTES` the checksum of a shard is compared when it is
        first opened. A corpus of an earlier version, without a list, is opened with a notice on
        standard error.

        Raises:
          InputError: a shard is missing, damaged or of another corpus, or the preparation is not
            finished.
        """
        self.folder = Path(folder)
        shard_list = read_list(folder)
        self._paths = find_shards(folder)
        self._unchecked: dict[int, str] = {}  # checksums of shards that are not compared yet
        self._indexes: tuple[tuple[Path, str], ...] = ()
        if shard_list is None:
            print(
                f"notice: {folder} has no list of its shards, so missing or replaced shards are "
                "not detected; prepare it again to write one.",
                file=sys.stderr,
            )
            self.tokenizer: Mapping[str, str] = {}
            counts = [_count_records(path) for path in self._paths]
        else:
            shards = shard_list.shards
            _compare_sizes(self._paths, shards, self.folder)
            if sum(shard.bytes for shard in shards) > CHECKED_BYTES:
                self._unchecked = {n: shard.checksum for n, shard in enumerate(shards)}
            else:
                sums = checksums.of_files(self._paths)
                for path, shard, checksum in zip(self._paths, shards, sums, strict=True):
                    _compare_checksum(path, checksum, shard.checksum)
            self.tokenizer, self._indexes = shard_list.tokenizer, shard_list.indexes
            counts = [shard.records for shard in shards]
        self.ends = np.cumsum(counts)
        self._open = _OpenShards(self._paths)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Utterance:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self.ends, index, side="right"))
        first = self.ends[shard - 1] if shard else 0
        path = self._paths[shard]
        if shard in self._unchecked:
            _compare_checksum(path, checksums.of_file(path), self._unchecked[shard])
            self._unchecked.pop(shard, None)
        try:
            (record,) = self._open(shard).read([int(index - first)])
        except Exception as error:  # the library raises RuntimeError and its own kinds
            raise files.unreadable(path, error, "is damaged.") from error
        try:
            return Utterance.from_bytes(record)
        except InputError as error:
            raise InputError(f"{path}: record {index - first}: {error}") from error

    def __iter__(self) -> Iterator[Utterance]:
        return (self[index] for index in range(len(self)))

    def index(self) -> Index:
        """The index of all records. If the corpus has none, all its records are read.

        Raises:
          InputError: the index or a shard is damaged.
        """
        if not self._indexes:
            return Index.of(self)
        for path, checksum in self._indexes:
            _compare_checksum(path, checksums.of_file(path), checksum)
        index = Index.join([Index.read(path) for path, _ in self._indexes])
        if len(index) != len(self):
            raise InputError(f"{self.folder}: its index is not that of its shards; prepare again.")
        return index


class _OpenShards:
    """The open shards of a corpus; if too many are open, the least recently used is closed."""

    _readers: collections.OrderedDict = collections.OrderedDict()  # of all corpora
    _lock = threading.Lock()

    def __init__(self, paths: Sequence[Path]):
        self._paths = paths
        weakref.finalize(self, self._close, id(self))

    def __call__(self, shard: int) -> array_record_module.ArrayRecordReader:
        key = id(self), shard
        with self._lock:
            reader = self._readers.pop(key, None)
            if reader is None:
                # Other files need some of the allowed number.
                most = min(OPEN_SHARDS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 256)
                while len(self._readers) >= max(most, 16):
                    self._readers.popitem(last=False)
                reader = array_record_module.ArrayRecordReader(str(self._paths[shard]))
            self._readers[key] = reader
            return reader

    @classmethod
    def _close(cls, owner: int) -> None:
        with cls._lock:
            for key in [key for key in cls._readers if key[0] == owner]:
                del cls._readers[key]


def _compare_sizes(paths: Sequence[Path], shards: Sequence[Shard], folder: Path) -> None:
    """Raises an `InputError` unless the files have the names and sizes of the listed shards."""
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


def _compare_checksum(path: Path, checksum: str, listed: str) -> None:
    if checksum != listed:
        raise InputError(
            f"{path}: its checksum is not the listed one (it is damaged, or of another corpus)."
        )


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
