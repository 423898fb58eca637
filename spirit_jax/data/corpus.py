"""A prepared corpus, opened for reading: its utterances in any order, and their index."""

import collections
import resource
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from array_record.python import array_record_module

from spirit_jax import checksums, files
from spirit_jax.data.index import Index
from spirit_jax.data.records import Utterance, count_records
from spirit_jax.data.shard_list import Shard, find_shards, read_list
from spirit_jax.errors import InputError

OPEN_SHARDS = 512  # largest number of open files, over all corpora; 1,024 is the usual limit
CACHED_BYTES = 16 << 30  # of temporary copies of shards that are in a bucket
CHECKED_BYTES = 8 << 30  # of a corpus; the shards of larger ones are checked when they are opened


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
        first opened, and so it is for those of a bucket, which are downloaded then. A corpus of an
        earlier version, without a list, is opened with a notice on standard error.

        Raises:
          InputError: a shard is missing, damaged or of another corpus, or the preparation is not
            finished.
        """
        self.folder = files.as_path(folder)
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
            counts = [count_records(path) for path in self._paths]
        else:
            shards = shard_list.shards
            _compare_sizes(self._paths, shards, self.folder)
            is_large = sum(shard.bytes for shard in shards) > CHECKED_BYTES
            if is_large or files.is_bucket(self.folder):
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
        try:
            (record,) = self._open(shard, self._unchecked).read([int(index - first)])
        except InputError:
            raise
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
    """The open shards of a corpus; if too many are open, the least recently used is closed.

    ArrayRecord cannot read from a bucket, so a shard of one is downloaded to a temporary file. The
    name of that file is removed as soon as it is open, so nothing is left behind by a killed
    process; its space is free again when the shard is closed. Open shards of buckets take at most
    `CACHED_BYTES`, or one shard. Records are read shard by shard or in groups of shards (see
    `shuffle`), so a shard is downloaded about once an epoch.
    """

    _readers: collections.OrderedDict = collections.OrderedDict()  # of all corpora
    _lock = threading.Lock()

    def __init__(self, paths: Sequence[Path]):
        self._paths = paths
        weakref.finalize(self, self._close, id(self))

    def __call__(
        self, shard: int, unchecked: dict[int, str]
    ) -> array_record_module.ArrayRecordReader:
        """The reader of a shard.

        Args:
          shard: its number.
          unchecked: checksums of the shards that are not compared yet; that of this one is.
        """
        key = id(self), shard
        with self._lock:
            if key in self._readers:
                self._readers.move_to_end(key)
                return self._readers[key][0]
        path, checksum = self._paths[shard], unchecked.get(shard)
        size = path.stat().st_size if files.is_bucket(path) else 0
        with self._lock:
            self._make_room(size)
        with files.local_copy(path) as local:
            if checksum is not None:
                _compare_checksum(path, checksums.of_file(local), checksum)
                unchecked.pop(shard, None)
            reader = array_record_module.ArrayRecordReader(str(local))
            if size:
                reader.read([0])  # opens the file, whose name is removed now
        with self._lock:
            self._readers[key] = reader, size
        return reader

    def _make_room(self, size: int) -> None:
        """Closes shards until one more, of `size` bytes of temporary files, may be open."""
        # Other files need some of the allowed number.
        most = min(OPEN_SHARDS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 256)
        total = size + sum(cached for _, cached in self._readers.values())
        while self._readers and (
            len(self._readers) >= max(most, 16) or (size and total > CACHED_BYTES)
        ):
            _, (_, freed) = self._readers.popitem(last=False)
            total -= freed

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
