"""The list of the shards of a prepared corpus, with their checksums.

Each part of a preparation writes a list, and an index of the records of its shards. A part with a
list is complete.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from spirit_jax import checksums, files
from spirit_jax.data.index import Index
from spirit_jax.data.records import SUFFIX
from spirit_jax.errors import InputError

PREPARED = "prepare.json"  # the inputs of a preparation; written before the first shard


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
        path = files.as_path(path)
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
    folder = files.as_path(folder)
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
    shards = sorted(files.as_path(folder).glob("*" + SUFFIX))
    if not shards:
        raise InputError(f"{folder}: has no prepared corpus (no *{SUFFIX} files).")
    return shards


def _list_path(folder: str | Path, part: int, parts: int) -> Path:
    return files.as_path(folder) / f"corpus-{part:05d}-of-{parts:05d}.json"
