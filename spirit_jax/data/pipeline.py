"""The stream of packed rows for language model training.

Every random choice is a function of the seed and an index, so the rows do not depend on the number
of hosts. The stream consists of a fixed number of virtual shards, each of which mixes and packs
separately, and a row of a step always comes from the same shard. A host computes the shards of its
rows, in its own process or in worker processes.
"""

import functools
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from spirit_jax.data.configs import DataConfig
from spirit_jax.data.corpus import Corpus
from spirit_jax.data.records import Utterance
from spirit_jax.data.samples import Documents, make_sample
from spirit_jax.data.shuffle import shuffle
from spirit_jax.data.workers import StepRows, Worker
from spirit_jax.errors import InputError
from spirit_jax.text import TextTokenizer
from spirit_jax.vocab import Vocab

MEASURED_SAMPLES, MEASURED_TOKENS = 4096, 2_000_000  # at most, to estimate a source's mean length


class Stream(Iterator[dict[str, np.ndarray]]):
    """An infinite iterator over the rows of one host, one training step at a time.

    Each step is a dict of (rows, seq_len) arrays: int32 `tokens`, `segments` (0 is padding),
    `positions` (from 0 in every segment) and `sources` (index of each token's source), and float32
    `weights`, which are 1 for tokens that are predicted and 0 for others.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: TextTokenizer,
        vocab: Vocab,
        rows: Sequence[int] | None = None,
        networks: Mapping[str, str] | None = None,
    ):
        """Opens the corpora.

        Args:
          config: sources, shares and sizes.
          tokenizer: the text tokenizer of the model.
          vocab: the token ids of the model.
          rows: indices of this host's rows among the `batch_rows` of a step; all by default.
          networks: hashes of the model's unit networks, by name (see `model_folder.unit_hashes`),
            which are compared with those of the corpora.

        Raises:
          InputError: there are no sources, a corpus is missing or damaged, a document lacks what
            its format needs, or the units are from another speech tokenizer.
        """
        if not config.sources:
            raise InputError("The data config names no sources.")
        self._config = config
        self._rows = list(range(config.batch_rows) if rows is None else rows)
        self._step, self._states = 0, {}
        sources = _open(config, tokenizer, vocab, networks or {})
        weights = [1.0]  # of a single source, whatever its mean length
        if len(sources) > 1:
            weights = [
                source.share / mean_length(*opened, config.seed)
                for source, opened in zip(config.sources, sources, strict=True)
            ]
        # The shards of a row repeat after this number of steps.
        period = max(config.shards // config.batch_rows, 1)
        steps = itertools.product(range(period), self._rows)
        shards = sorted({_shard_of(config, step, row) for step, row in steps})
        settings = config, self._rows, weights
        workers = min(config.workers, len(shards))
        make = functools.partial(_make_reader, tokenizer, vocab, *settings)
        self._readers: list[RowReader | Worker] = [
            Worker(functools.partial(make, shards[number::workers])) for number in range(workers)
        ] or [RowReader(*settings, shards, sources)]

    def __next__(self) -> dict[str, np.ndarray]:
        rows: dict[int, dict[str, np.ndarray]] = {}
        self.get_state()
        for reader in self._readers:
            part, states = reader.next()
            rows |= part
            self._states |= states
        self._step += 1
        in_order = [rows[row] for row in self._rows]
        return {name: np.stack([row[name] for row in in_order]) for name in in_order[0]}

    def get_state(self) -> dict[str, Any]:
        """The position in the stream, as values that JSON can hold, by virtual shard."""
        if not self._states:
            self._states = {k: v for reader in self._readers for k, v in reader.states().items()}
        return {"step": self._step, "shards": dict(self._states)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state of `get_state`, also with another number of hosts or workers."""
        self._step, self._states = state["step"], {}
        for reader in self._readers:
            reader.set_state(state)


class RowReader:
    """Computes the rows of some virtual shards, step by step."""

    def __init__(
        self,
        config: DataConfig,
        rows: Sequence[int],
        weights: Sequence[float],
        shards: Sequence[int],
        sources: "Sequence[Source]",
    ):
        """Creates the iterators of the shards; reads nothing yet.

        Args:
          config: of the stream.
          rows: indices of this host's rows among those of a step.
          weights: of the sources, in samples.
          shards: the virtual shards to read.
          sources: from `_open`.
        """
        self._config, self._rows, self._step = config, rows, 0
        mixture = _mix(config, sources, weights)
        self._iterators = {
            shard: iter(_pack(mixture[shard :: config.shards], config)) for shard in shards
        }

    def next(self) -> StepRows:
        """The rows of the next step."""
        rows, used = {}, set()
        for row in self._rows:
            shard = _shard_of(self._config, self._step, row)
            if shard in self._iterators:
                rows[row] = next(self._iterators[shard])
                used.add(shard)
        self._step += 1
        return StepRows(rows, self.states(used))

    def states(self, shards: Collection[int] | None = None) -> dict[str, str]:
        """The positions in some shards; in all by default."""
        shards = self._iterators if shards is None else shards
        return {str(shard): _to_text(self._iterators[shard].get_state()) for shard in shards}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """See `Stream.set_state`."""
        self._step = state["step"]
        for shard, iterator in self._iterators.items():
            iterator.set_state(_from_text(state["shards"][str(shard)]))


def _make_reader(tokenizer: TextTokenizer, vocab: Vocab, config: DataConfig, *rest) -> RowReader:
    """A reader in a worker process, which opens the corpora itself."""
    return RowReader(config, *rest, _open(config, tokenizer, vocab, {}))


def _shard_of(config: DataConfig, step: int, row: int) -> int:
    """The virtual shard of a row of a step."""
    if config.batch_rows > config.shards:
        return row // (config.batch_rows // config.shards)
    return (step * config.batch_rows + row) % config.shards


def mean_length(documents: Documents, make: Callable, seed: int) -> float:
    """Mean number of tokens of a sample, estimated from a few thousand samples.

    Args:
      documents: of one source; they are sampled in a random order without replacement.
      make: (document, rng) to token ids.
      seed: of the order and the samples.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(documents))
    read = functools.cache(documents.__getitem__)  # those of a small corpus are sampled repeatedly
    count = total = 0
    while count < MEASURED_SAMPLES and total < MEASURED_TOKENS:
        total += len(make(read(int(order[count % len(order)])), rng))
        count += 1
    return total / count


def check_tokenizer(corpus: Corpus, networks: Mapping[str, str], vocab: Vocab) -> None:
    """Raises an `InputError` if a corpus was encoded with another speech tokenizer than a model's.

    The networks of those unit kinds are compared that the model has tokens for. Missing hashes are
    not compared.

    Args:
      corpus: has the hashes of the networks that computed its units.
      networks: hashes of the model's networks, by name.
      vocab: the token ids of the model.

    Raises:
      InputError: the hashes of a network differ.
    """
    used = ["hubert", "quantizer"] + ["pitch"] * bool(vocab.pitch_units)
    used += ["style"] * bool(vocab.style_units)
    for name in used:
        corpus_hash, model_hash = corpus.tokenizer.get(name), networks.get(name)
        if corpus_hash and model_hash and corpus_hash != model_hash:
            raise InputError(
                f"{corpus.folder}: its units come from another speech tokenizer than the model's "
                f"(the network '{name}' differs); prepare it again with --model and the model that "
                "is trained."
            )


class Source(NamedTuple):
    """A source of the mixture: its documents, and the function (document, rng) to token ids."""

    documents: Documents
    make: Callable[[Sequence[Utterance], np.random.Generator], np.ndarray]


def _open(
    config: DataConfig, tokenizer: TextTokenizer, vocab: Vocab, networks: Mapping[str, str]
) -> list[Source]:
    """Opens and checks the corpora of all sources."""
    sources = []
    for source in config.sources:

        def make(document, rng, source=source):
            return make_sample(document, source, tokenizer, vocab, rng)

        corpus = Corpus(source.path)
        check_tokenizer(corpus, networks, vocab)
        sources.append(Source(Documents(corpus, source, vocab), make))
    return sources


def _mix(
    config: DataConfig, sources: Sequence[Source], weights: Sequence[float]
) -> grain.MapDataset:
    """An infinite dataset of {"tokens", "sources"}, with sources mixed by their weights."""
    datasets = []
    for number, (documents, make) in enumerate(sources):

        def sample(document, rng, make=make, number=number):
            tokens = make(document, rng)
            return {"tokens": tokens, "sources": np.full(len(tokens), number, np.int32)}

        # The samples depend on the index, which counts on over epochs.
        order = shuffle(documents, config.seed * 1000 + number)
        datasets.append(order.random_map(sample))
    return grain.MapDataset.mix(datasets, list(weights))


class _Split(grain.experimental.FlatMapTransform):
    """Splits samples that are longer than a row."""

    max_fan_out = 1 << 20

    def __init__(self, seq_len: int):
        self._seq_len = seq_len

    def flat_map(self, element: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        length = len(element["tokens"])
        return [
            {name: array[start : start + self._seq_len] for name, array in element.items()}
            for start in range(0, length, self._seq_len)
        ]


def _pack(samples: grain.MapDataset, config: DataConfig) -> grain.IterDataset:
    """Rows of one virtual shard."""
    pieces = grain.experimental.FlatMapIterDataset(
        samples.to_iter_dataset(grain.ReadOptions(num_threads=0)), _Split(config.seq_len)
    )
    packed = grain.experimental.FirstFitPackIterDataset(
        pieces,
        length_struct={"tokens": config.seq_len, "sources": config.seq_len},
        num_packing_bins=config.packing_bins,
        shuffle_bins=False,
        meta_features=("sources",),
    )

    def finish(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        segments, positions = row["tokens_segment_ids"], row["tokens_positions"]
        if config.cross_documents:
            segments = (segments > 0).astype(np.int32)
            positions = np.arange(config.seq_len, dtype=np.int32) * segments
        return {
            "tokens": row["tokens"],
            "segments": segments,
            "positions": positions,
            "sources": row["sources"],
            "weights": ((segments > 0) & (positions > 0)).astype(np.float32),
        }

    return packed.map(finish)


def _to_text(state: Any) -> str:
    return state.decode() if isinstance(state, bytes) else json.dumps(state)


def _from_text(text: str) -> Any:
    return json.loads(text)
