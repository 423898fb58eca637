"""Utterances on disk: ArrayRecord shards of units, text and word times.

A prepared corpus is a folder of `*.arrayrecord` files, and for every part of its preparation a list
of the shards that were written, with their checksums. A record keeps the undeduplicated time line,
so that every training run chooses anew how to cut it.
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
PREPARED = "prepare.json"  # what a preparation was started with; there before any shard is
OPEN_SHARDS = 128  # files that all corpora together keep open


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
            fields["units"] = {name: self._pack(name, s) for name, s in streams}
        return msgpack.packb(fields)

    def _pack(self, name: str, stream: Sequence[int]) -> bytes:
        units = np.asarray(stream, np.int32)
        if (units != units.astype("<i2")).any():
            raise InputError(f"{self.id}: {name} units must fit 16 bits, and one is {max(units)}.")
        return units.astype("<i2").tobytes()

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


@dataclasses.dataclass(frozen=True)
class Shard:
    """What `prepare` wrote.

    Attributes:
      name: of the file.
      records: how many it has.
      bytes: its size.
      checksum: see `checksums.of_file`.
    """

    name: str
    records: int
    bytes: int
    checksum: str

    @classmethod
    def of(cls, path: str | Path, records: int) -> "Shard":
        """That of a file."""
        path = Path(path)
        return cls(path.name, records, path.stat().st_size, checksums.of_file(path))


@dataclasses.dataclass(frozen=True)
class ShardList:
    """What the parts of a preparation wrote.

    Attributes:
      shards: in the order of their names.
      tokenizer: the hashes of the networks that made the units, by name (see
        `model_folder.unit_hashes`); empty if there are no units, or that is not known.
    """

    shards: tuple[Shard, ...]
    tokenizer: Mapping[str, str]


def write_shard(path: str | Path, utterances: Iterable[Utterance]) -> int:
    """Writes one shard of one or more, whole or not at all; returns how many it has.

    Raises:
      InputError: it cannot be written, such as on a full disk.
    """
    path, count = Path(path), 0
    with files.whole_file(path) as unfinished:
        # One record a group: records are read in a random order.
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
    """Writes what a part of a preparation wrote; without it, a corpus counts as not finished."""
    values = {
        "part": part,
        "parts": parts,
        "tokenizer": dict(tokenizer),
        "shards": [vars(shard) for shard in sorted(shards, key=lambda shard: shard.name)],
    }
    checksums.write_json(_list_path(folder, part, parts), values)


def read_list(folder: str | Path) -> ShardList | None:
    """What the parts of a preparation wrote; None for a corpus from before this was kept.

    Raises:
      InputError: a part is missing or damaged, or the parts are not of one preparation.
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
            shards = tuple(Shard(**one) for one in values["shards"])
            about = (values["parts"], values["tokenizer"])
            if path != _list_path(folder, values["part"], values["parts"]):
                raise ValueError("it has another part's name")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: is no list of shards ({files.describe(error)}).") from error
        lists.append((shards, about))
    parts, tokenizer = lists[0][1]
    if any(about != lists[0][1] for _, about in lists):
        raise InputError(f"{folder}: holds parts of different preparations; prepare it again.")
    for part in range(1, parts + 1):
        if not _list_path(folder, part, parts).is_file():
            raise InputError(f"{folder}: prepare has not finished part {part} of {parts}.")
    shards = sorted((shard for part, _ in lists for shard in part), key=lambda one: one.name)
    return ShardList(tuple(shards), tokenizer)


def fingerprint(folder: str | Path) -> str:
    """16 hex digits that stand for the content of a prepared corpus.

    They come from the list of its shards, so this takes no time; shards of a corpus without such a
    list are read.

    Raises:
      InputError: there is no corpus, or it is not whole.
    """
    known = read_list(folder)
    if known is None:
        paths = find_shards(folder)
        pairs = list(zip([path.name for path in paths], checksums.of_files(paths), strict=True))
    else:
        pairs = [(shard.name, shard.checksum) for shard in known.shards]
    return checksums.of_value(pairs)[:16]


def find_shards(folder: str | Path) -> list[Path]:
    """The shards of a prepared corpus, in order; raises `InputError` if there are none."""
    shards = sorted(Path(folder).glob("*" + SUFFIX))
    if not shards:
        raise InputError(f"{folder}: holds no prepared corpus (no *{SUFFIX} files).")
    return shards


class Corpus(Sequence[Utterance]):
    """The utterances of a prepared corpus, read when they are asked for.

    Attributes:
      tokenizer: the hashes of the networks that made the units; see `ShardList`.
    """

    def __init__(self, folder: str | Path):
        """Compares every shard with the list that `prepare` wrote, by size and checksum.

        A corpus from before there were such lists is opened with a notice.

        Raises:
          InputError: a shard is missing, damaged or of another corpus, or prepare has not
            finished.
        """
        self.folder = Path(folder)
        known = read_list(folder)
        self._paths = find_shards(folder)
        if known is None:
            print(
                f"notice: {folder} has no list of its shards, so missing or exchanged ones are not "
                "noticed; prepare it again to have one.",
                file=sys.stderr,
            )
            self.tokenizer: Mapping[str, str] = {}
            counts = [_count_records(path) for path in self._paths]
        else:
            _compare(self._paths, known.shards, self.folder)
            self.tokenizer = known.tokenizer
            counts = [shard.records for shard in known.shards]
        self._ends = np.cumsum(counts)
        self._token = object()  # tells its readers from those of a corpus that was here before

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
    """Raises an `InputError` unless files are the shards that prepare wrote."""
    found, known = ({one.name for one in many} for many in (paths, shards))
    for names, reason in (
        (known - found, "is missing, which prepare wrote"),
        (found - known, "is there, which prepare did not write"),
    ):
        if names:
            more = f" ({len(names)} of this kind)" if len(names) > 1 else ""
            raise InputError(f"{folder}: the shard {min(names)} {reason}{more}.")
    for path, shard in zip(paths, shards, strict=True):
        size = path.stat().st_size
        if size != shard.bytes:
            raise InputError(f"{path}: has {size} bytes, and prepare wrote {shard.bytes}.")
    for path, shard, checksum in zip(paths, shards, checksums.of_files(paths), strict=True):
        if checksum != shard.checksum:
            raise InputError(
                f"{path}: is not what prepare wrote under this name (damaged, or another shard)."
            )


@functools.lru_cache(maxsize=OPEN_SHARDS)
def _open(path: Path, corpus: object) -> array_record_module.ArrayRecordReader:
    """The open shard of a corpus object; the least used one is closed where there are too many."""
    return array_record_module.ArrayRecordReader(str(path))


def _count_records(path: Path) -> int:
    try:
        count = array_record_module.ArrayRecordReader(str(path)).num_records()
    except Exception as error:  # the library raises RuntimeError and its own kinds
        raise files.unreadable(path, error, "is not a shard of records.") from error
    if not count:  # what the library sees in a file that was cut short
        raise InputError(f"{path}: is not a whole shard (truncated?).")
    return count


def _close(writer: array_record_module.ArrayRecordWriter, path: Path) -> None:
    """Ends a shard; the library says only here that the disk was full."""
    try:
        writer.close()
    except Exception as error:
        raise InputError(f"{path}: cannot be written ({files.describe(error)}).") from error


def _list_path(folder: str | Path, part: int, parts: int) -> Path:
    return Path(folder) / f"corpus-{part:05d}-of-{parts:05d}.json"
