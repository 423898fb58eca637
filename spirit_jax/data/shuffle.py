"""The order in which training reads the documents of a corpus."""

import functools

import grain
import numpy as np

from spirit_jax.data.samples import Documents

GROUP_SHARDS = 96  # read at a time; `corpus.OPEN_SHARDS` is enough for five such corpora


def shuffle(documents: Documents, seed: int) -> grain.MapDataset:
    """An infinite dataset of documents, in a new random order without replacement every epoch.

    In a corpus of many shards, opening a shard takes much longer than reading a record. So the
    shards are shuffled and divided into groups of `GROUP_SHARDS`, and the documents are shuffled
    within each group. Smaller corpora are shuffled as a whole.

    Args:
      documents: of a corpus.
      seed: of the order.
    """
    if len(documents.shard_ends) <= GROUP_SHARDS:
        return grain.MapDataset.source(documents).seed(seed).shuffle().repeat()
    return _GroupShuffle(documents, seed).seed(seed).repeat()


class _GroupShuffle(grain.MapDataset):
    """Documents, shuffled within groups of shards; indices beyond the length are later epochs."""

    def __init__(self, documents: Documents, seed: int):
        super().__init__()
        self._documents, self._seed = documents, seed
        # Virtual shards of the stream may be in neighbouring groups, and in neighbouring epochs.
        self._shards = functools.lru_cache(2)(self._order_shards)
        self._group = functools.lru_cache(4)(self._order_group)

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        epoch, place = divmod(index, len(self))
        _, ends = self._shards(epoch)
        group = int(np.searchsorted(ends, place, side="right"))
        first = ends[group - 1] if group else 0
        return self._documents[int(self._group(epoch, group)[place - first])]

    def _order_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(shards in the order of an epoch, number of documents up to the end of each group)."""
        sizes = np.diff(self._documents.shard_ends, prepend=0)
        order = np.random.default_rng([self._seed, epoch]).permutation(len(sizes))
        starts = np.arange(0, len(order), GROUP_SHARDS)
        return order, np.cumsum(np.add.reduceat(sizes[order], starts))

    def _order_group(self, epoch: int, group: int) -> np.ndarray:
        """Indices of the documents of a group, in the order of an epoch."""
        order, _ = self._shards(epoch)
        ends = self._documents.shard_ends
        shards = order[group * GROUP_SHARDS : (group + 1) * GROUP_SHARDS]
        members = [np.arange(ends[n - 1] if n else 0, ends[n]) for n in shards]
        rng = np.random.default_rng([self._seed, epoch, group])
        return rng.permutation(np.concatenate(members))
