"""The stream of packed rows: the same on any number of hosts, resumed anywhere, nothing lost."""

import dataclasses
import gc
import itertools
import json
import multiprocessing
import shutil

import numpy as np
import pytest
from test_interleave import VOCAB, make_utterance
from toy_tokenizers import train_sentencepiece

from spirit_jax.data import pipeline
from spirit_jax.data import shuffle as shuffle_lib
from spirit_jax.data.corpus import Corpus
from spirit_jax.data.index import Index
from spirit_jax.data.interleave import InterleaveConfig, TokenLine
from spirit_jax.data.pipeline import DataConfig, Stream
from spirit_jax.data.records import Utterance, write_shard
from spirit_jax.data.samples import Documents, SourceConfig, make_sample
from spirit_jax.data.shard_list import Shard, find_shards, write_list
from spirit_jax.errors import InputError
from spirit_jax.text import load_text_tokenizer
from spirit_jax.units import Units
from spirit_jax.vocab import Vocab

WORDS = "the object is called with a value and returns another list of names".split()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    train_sentencepiece(folder / "tokenizer.model")
    return load_text_tokenizer(folder, VOCAB)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """60 utterances of 3 to 20 words; of every three, the first two are a document."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    utterances = []
    for k in range(60):
        words = [WORDS[i] for i in rng.integers(0, len(WORDS), rng.integers(3, 20))]
        fields = vars(make_utterance(words, k, name=f"u{k}"))
        utterances.append(Utterance(**fields | {"document": f"d{k // 3}" if k % 3 < 2 else ""}))
    write_shard(folder / "a.arrayrecord", utterances[:40])
    write_shard(folder / "b.arrayrecord", utterances[40:])
    return folder


def data_config(corpus, **changes):
    sources = tuple(
        SourceConfig(str(corpus), format=name, share=share)
        for name, share in (("interleaved", 1.0), ("text", 0.5), ("speech", 1.0))
    )
    return DataConfig(
        **{"sources": sources, "seq_len": 128, "batch_rows": 4, "shards": 8} | changes
    )


@pytest.fixture
def quick(monkeypatch):
    """Mixes by a rough measure of lengths, where shares do not matter."""
    monkeypatch.setattr(pipeline, "MEASURED_SAMPLES", 32)


def test_lengths_are_measured_without_reading_a_document_twice(corpus, tokenizer, monkeypatch):
    documents, source = Documents(Corpus(corpus)), SourceConfig(str(corpus))
    read = []

    class Counted:
        def __len__(self):
            return len(documents)

        def __getitem__(self, index):
            read.append(index)
            return documents[index]

    def make(document, rng):
        return make_sample(document, source, tokenizer, VOCAB, rng)

    monkeypatch.setattr(pipeline, "MEASURED_SAMPLES", 100)  # of 40 documents
    assert pipeline.mean_length(Counted(), make, 0) == pipeline.mean_length(documents, make, 0)
    assert sorted(read) == list(range(40))


def test_a_single_source_is_not_measured(corpus, tokenizer, monkeypatch):
    monkeypatch.setattr(pipeline, "mean_length", None)
    config = data_config(corpus, sources=(SourceConfig(str(corpus), share=0.3),))
    step = next(Stream(config, tokenizer, VOCAB))
    assert step["weights"].sum() > 0


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_documents_are_consecutive_utterances_of_one_name(corpus):
    documents = Documents(Corpus(corpus))
    assert len(documents) == 40
    assert [u.id for u in documents[0]] == ["u0", "u1"] and [u.id for u in documents[1]] == ["u2"]
    assert [u.id for i in range(40) for u in documents[i]] == [f"u{k}" for k in range(60)]


@pytest.mark.compat
@pytest.mark.parametrize("name", ["interleaved", "text", "speech", "asr", "tts"])
def test_formats(corpus, tokenizer, name):
    document = Documents(Corpus(corpus))[0]
    source = SourceConfig(str(corpus), format=name)
    ids = make_sample(document, source, tokenizer, VOCAB, np.random.default_rng(0))
    assert ids[0] == VOCAB.bos and ids[-1] == VOCAB.eos[0] and ids.dtype == np.int32
    lines = [TokenLine.of(utterance, VOCAB).ids_n.tolist() for utterance in document]
    markers = [int(i) for i in ids if i in (VOCAB.text_marker, VOCAB.speech_marker)]
    if name == "speech":
        assert ids[1:-1].tolist() == [VOCAB.speech_marker, *lines[0], *lines[1]]
    elif name == "text":
        words = " ".join(utterance.text for utterance in document)
        assert tokenizer.decode(ids[2:-1].tolist()) == words and markers == [VOCAB.text_marker]
    elif name != "interleaved":
        pair = [VOCAB.speech_marker, VOCAB.text_marker]
        assert markers == (pair if name == "asr" else pair[::-1]) * 2


def test_a_flag_stands_before_the_text_of_a_pair(corpus, tokenizer):
    document = Documents(Corpus(corpus))[1]
    plain, flagged = (
        make_sample(document, source, tokenizer, VOCAB, np.random.default_rng(0)).tolist()
        for source in (
            SourceConfig(str(corpus), format="asr"),
            SourceConfig(str(corpus), format="asr", flag="T:"),
        )
    )
    start = plain.index(VOCAB.text_marker)
    assert plain[: start + 1] == flagged[: start + 1]
    words = tokenizer.decode(plain[start + 1 : -1])
    assert tokenizer.decode(flagged[start + 1 : -1]) == f"T: {words}"


def test_a_cropped_pair_has_a_run_of_words_and_their_units(corpus, tokenizer):
    (utterance,) = Documents(Corpus(corpus))[1]
    source = SourceConfig(str(corpus), format="tts", crop=1.0)
    line, words = TokenLine.of(utterance, VOCAB), utterance.text.split()
    runs = set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        ids = make_sample([utterance], source, tokenizer, VOCAB, rng).tolist()
        start = ids.index(VOCAB.speech_marker)
        text, units = tokenizer.decode(ids[2:start]), ids[start + 1 : -1]
        # Find the run of words by its units; a run at an end of the recording includes its silence.
        fits = [
            (i, j)
            for i in range(len(words))
            for j in range(i + 1, len(words) + 1)
            if line.cut(
                utterance.words[i][1] if i else 0.0,
                utterance.words[j - 1][2] if j < len(words) else utterance.seconds,
            ).tolist()
            == units
        ]
        assert " ".join(words[slice(*fits[0])]) == text and len(fits) == 1
        runs.add(fits[0])
    assert len(runs) == len(words) * (len(words) + 1) / 2  # all that there are


def test_a_shuffled_pair_has_runs_of_words_and_their_units_in_another_order(tokenizer):
    utterance = make_utterance("the object is called with a value".split())
    source = SourceConfig("", format="asr", shuffle=0.75)
    line, words = TokenLine.of(utterance, VOCAB), utterance.text.split()

    def cut(start, stop):
        begin = utterance.words[start][1] if start else 0.0
        end = utterance.words[stop - 1][2] if stop < len(words) else utterance.seconds
        return line.cut(begin, end).tolist()

    def ways(order):
        """Units of words in this order, for all the runs of at most three that they may be."""
        if not order:
            yield []
            return
        first = order[0]
        for size in (1, 2, 3):
            if order[:size] == list(range(first, first + size)):
                yield from (cut(first, first + size) + rest for rest in ways(order[size:]))

    orders = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        ids = make_sample([utterance], source, tokenizer, VOCAB, rng).tolist()
        start = ids.index(VOCAB.text_marker)
        order = [words.index(word) for word in tokenizer.decode(ids[start + 1 : -1]).split()]
        assert sorted(order) == list(range(len(words)))
        kept = order == sorted(order) and ids[2:start] == line.ids_n.tolist()
        assert kept or ids[2:start] in list(ways(order))
        orders.append(tuple(order))
    assert 15 < orders.count(tuple(range(len(words)))) < 40 and len(set(orders)) > 40


def test_flags_and_changes_are_of_pairs(corpus):
    with pytest.raises(InputError, match="are for pairs, not for 'speech'"):
        SourceConfig("a", format="speech", flag="T:")
    for changes in ({"crop": 2.0}, {"crop": 0.6, "shuffle": 0.5}, {"shuffle": -0.1}):
        with pytest.raises(InputError, match="at most 1 together"):
            SourceConfig("a", format="asr", **changes)


@pytest.mark.compat
def test_rows_are_whole_samples_side_by_side(quick, corpus, tokenizer):
    config = data_config(corpus, seq_len=256)
    rows = list(itertools.islice(Stream(config, tokenizer, VOCAB), 5))
    starts = 0
    for row in rows:
        assert {name: array.shape for name, array in row.items()} == dict.fromkeys(row, (4, 256))
        for tokens, segments, positions, weights in zip(
            row["tokens"], row["segments"], row["positions"], row["weights"], strict=True
        ):
            for segment in range(1, segments.max() + 1):
                is_segment = segments == segment
                assert positions[is_segment].tolist() == list(range(is_segment.sum()))
                starts += tokens[is_segment][0] == VOCAB.bos
            assert not tokens[segments == 0].any() and not weights[segments == 0].any()
            np.testing.assert_array_equal(weights, (segments > 0) & (positions > 0))
        assert (row["segments"] > 0).mean() > 0.5
    assert starts > 10


def test_nothing_is_lost_of_a_document_longer_than_a_row(tmp_path, tokenizer):
    utterance = make_utterance(WORDS * 20)
    write_shard(tmp_path / "a.arrayrecord", [utterance])
    source = SourceConfig(str(tmp_path), format="speech")
    config = DataConfig((source,), seq_len=64, batch_rows=1, shards=1, packing_bins=1)
    stream = Stream(config, tokenizer, VOCAB)
    whole = make_sample([utterance], source, tokenizer, VOCAB, None).tolist()
    rows = itertools.islice(stream, 3 * len(whole) // 64 + 3)
    tokens = [t for row in rows for t in row["tokens"][row["segments"] > 0].tolist()]
    assert tokens[: 2 * len(whole)] == whole * 2


def halves_of(config):
    rows, half = config.batch_rows, config.batch_rows // 2
    return range(half), range(half, rows)


@pytest.mark.parametrize("rows", [4, 16])
def test_hosts_together_read_the_rows_of_a_single_host(quick, corpus, tokenizer, rows):
    config = data_config(corpus, batch_rows=rows)
    whole = list(itertools.islice(Stream(config, tokenizer, VOCAB), 5))
    hosts = [Stream(config, tokenizer, VOCAB, host_rows) for host_rows in halves_of(config)]
    for expected in whole:
        parts = [next(stream) for stream in hosts]
        joined = {name: np.concatenate([p[name] for p in parts]) for name in expected}
        assert_same(joined, expected)


@pytest.mark.compat
def test_a_stream_resumes_where_it_was_also_on_other_hosts(quick, corpus, tokenizer):
    config = data_config(corpus)
    stream = Stream(config, tokenizer, VOCAB)
    for _ in range(7):
        next(stream)
    state = json.loads(json.dumps(stream.get_state()))
    expected = list(itertools.islice(stream, 6))
    again = Stream(config, tokenizer, VOCAB)
    again.set_state(state)
    halves = [Stream(config, tokenizer, VOCAB, host_rows) for host_rows in halves_of(config)]
    for half in halves:
        half.set_state(state)
    for row in expected:
        assert_same(next(again), row)
        parts = [next(half) for half in halves]
        assert_same({n: np.concatenate([p[n] for p in parts]) for n in row}, row)


def test_seeds_and_epochs_change_the_draws(quick, corpus, tokenizer):
    config = data_config(corpus)
    first = next(Stream(config, tokenizer, VOCAB))
    assert_same(first, next(Stream(config, tokenizer, VOCAB)))
    other = next(Stream(data_config(corpus, seed=1), tokenizer, VOCAB))
    assert not np.array_equal(first["tokens"], other["tokens"])


@pytest.mark.parametrize(
    ("rows", "rtol"), [(150, 0.07), pytest.param(1200, 0.02, marks=pytest.mark.slow)]
)
def test_shares_are_shares_of_tokens(corpus, tokenizer, rows, rtol):
    stream = Stream(data_config(corpus), tokenizer, VOCAB)
    counts = np.zeros(3)
    for row in itertools.islice(stream, rows):
        counts += np.bincount(row["sources"][row["segments"] > 0], minlength=3)
    np.testing.assert_allclose(counts / counts.sum(), [0.4, 0.2, 0.4], rtol=rtol)


def test_the_papers_way_lets_attention_cross_documents(quick, corpus, tokenizer):
    row = next(Stream(data_config(corpus, cross_documents=True), tokenizer, VOCAB))
    assert row["segments"].max() == 1
    filled = (row["segments"] > 0).sum(axis=1)
    for positions, weights, n in zip(row["positions"], row["weights"], filled, strict=True):
        assert positions[:n].tolist() == list(range(n))
        assert weights.sum() == n - 1


def test_bad_data_is_named(quick, corpus, tokenizer, tmp_path):
    with pytest.raises(InputError, match="names no sources"):
        Stream(DataConfig(), tokenizer, VOCAB)
    with pytest.raises(InputError, match="shards is 6"):
        data_config(corpus, shards=6)
    with pytest.raises(InputError, match="format is 'both'"):
        SourceConfig("x", format="both")
    write_shard(tmp_path / "a.arrayrecord", [Utterance("lone", text="only text")])
    for name, lacks in (("interleaved", "units"), ("speech", "units"), ("asr", "units")):
        config = DataConfig((SourceConfig(str(tmp_path), format=name),), 64, 1, 1)
        with pytest.raises(InputError, match=f"'lone' has no {lacks}"):
            Stream(config, tokenizer, VOCAB)
    many = [Utterance(f"u{n}", text="text") for n in range(40)]  # and 32 are measured
    for place in (0, 20, 40):
        folder = tmp_path / f"at-{place}"
        wordless = Utterance("wordless", make_utterance(["a"]).units, 1.0)
        write_shard(folder / "a.arrayrecord", [*many[:place], wordless, *many[place:]])
        config = DataConfig((SourceConfig(str(folder), format="text"),), 64, 1, 1)
        with pytest.raises(InputError, match="'wordless' has no text"):
            Stream(config, tokenizer, VOCAB)
    untimed = Utterance("u", make_utterance(["a"]).units, 1.0, "a")
    write_shard(tmp_path / "b" / "a.arrayrecord", [untimed])
    with pytest.raises(InputError, match="no word times"):
        config = DataConfig((SourceConfig(str(tmp_path / "b")),), 64, 1, 1)
        Stream(config, tokenizer, VOCAB)


def test_a_base_vocabulary_and_other_rules_work(quick, corpus, tokenizer):
    vocab = Vocab.make("base", 1000)
    source = SourceConfig(str(corpus), interleave=InterleaveConfig(rule="coin"))
    row = next(Stream(DataConfig((source,), 64, 2, 2), tokenizer, vocab))
    assert row["tokens"].max() < vocab.size


def test_units_of_another_tokenizer_are_refused(corpus, tokenizer, tmp_path, quick):
    shutil.copytree(corpus, tmp_path, dirs_exist_ok=True)
    made_by = {"hubert": "a", "quantizer": "b", "pitch": "c", "style": "d"}
    shards = [
        Shard.of(path, count) for path, count in zip(find_shards(tmp_path), (40, 20), strict=True)
    ]
    write_list(tmp_path, shards, made_by)
    config = data_config(tmp_path)
    Stream(config, tokenizer, VOCAB, networks=made_by)
    Stream(config, tokenizer, VOCAB, networks={})
    for name in made_by:
        with pytest.raises(InputError, match=f"the network '{name}' differs"):
            Stream(config, tokenizer, VOCAB, networks=made_by | {name: "other"})
    base = dataclasses.replace(VOCAB, pitch_units=0, style_units=0)
    Stream(config, tokenizer, base, networks=made_by | {"pitch": "other", "style": "other"})
    with pytest.raises(InputError, match="'quantizer' differs"):
        Stream(config, tokenizer, base, networks=made_by | {"quantizer": "other"})


@pytest.mark.parametrize(
    ("units", "message"),
    [
        (Units([3, 501]), "the hubert unit 501, but the model has 0 to 500"),
        (Units([-1]), "the hubert unit -1"),
        (Units([3], [64], [1]), "the pitch unit 64"),
        (Units([3], [1], [100]), "the style unit 100"),
    ],
)
def test_units_without_a_token_are_refused(units, message, tokenizer, tmp_path):
    utterance = Utterance("u", units, 0.04, "a", (("a", 0.0, 0.04),))
    write_shard(tmp_path / "a.arrayrecord", [utterance])
    with pytest.raises(InputError, match=message):
        Stream(data_config(tmp_path), tokenizer, VOCAB)
    with pytest.raises(InputError, match=message):
        TokenLine.of(utterance, VOCAB)


def test_workers_give_the_same_rows_and_states(quick, corpus, tokenizer):
    """Also when resumed by another number of workers."""
    config = data_config(corpus)
    alone = Stream(config, tokenizer, VOCAB)
    before = [next(alone) for _ in range(3)]
    state, after = alone.get_state(), [next(alone) for _ in range(3)]
    stream = Stream(dataclasses.replace(config, workers=2), tokenizer, VOCAB)
    for expected in before:
        assert_same(next(stream), expected)
    assert stream.get_state() == state
    resumed = Stream(dataclasses.replace(config, workers=1), tokenizer, VOCAB)
    resumed.set_state(json.loads(json.dumps(state)))
    for expected in after:
        assert_same(next(resumed), expected)
    assert resumed.get_state() == alone.get_state()


@pytest.mark.slow
def test_a_worker_that_is_killed_or_fails_ends_the_stream(quick, corpus, tokenizer, tmp_path):
    folder = shutil.copytree(corpus, tmp_path / "corpus")
    config = dataclasses.replace(data_config(folder), workers=1)
    stream = Stream(config, tokenizer, VOCAB)
    next(stream)
    (process,) = multiprocessing.active_children()
    process.kill()
    with pytest.raises(InputError, match=r"has ended \(exit code -9\)"):
        for _ in range(100):
            next(stream)
    stream = Stream(config, tokenizer, VOCAB)
    (folder / "a.arrayrecord").unlink()  # before the process opens it
    (folder / "b.arrayrecord").unlink()
    with pytest.raises(InputError, match="has no prepared corpus"):
        next(stream)


@pytest.mark.slow
def test_processes_end_with_their_stream(quick, corpus, tokenizer):
    stream = Stream(dataclasses.replace(data_config(corpus), workers=2), tokenizer, VOCAB)
    next(stream)
    assert len(multiprocessing.active_children()) == 2
    del stream
    gc.collect()
    assert not multiprocessing.active_children()


def test_a_corpus_of_many_shards_is_shuffled_in_groups(monkeypatch, tmp_path):
    """Every document once an epoch, few shards open at a time, and another order each epoch."""
    monkeypatch.setattr(shuffle_lib, "GROUP_SHARDS", 4)
    for shard in range(10):
        names = [f"{shard}-{n}" for n in range(3 + shard)]
        path = tmp_path / f"s-{shard}.arrayrecord"
        write_shard(path, [Utterance(name, text="a") for name in names])
    documents = Documents(Corpus(tmp_path))
    count = len(documents)
    order = shuffle_lib.shuffle(documents, seed=3)
    epochs = [[order[n][0].id for n in range(count * e, count * (e + 1))] for e in range(2)]
    names = {documents[n][0].id for n in range(count)}
    assert all(len(epoch) == count and set(epoch) == names for epoch in epochs)
    assert epochs[0] != epochs[1]
    shards = [name.split("-")[0] for name in epochs[0]]
    last = {shard: place for place, shard in enumerate(shards)}
    started, most = set(), 0  # shards of which some documents are read and some are not
    for place, shard in enumerate(shards):
        started.add(shard)
        most = max(most, len(started))
        started -= {other for other in started if last[other] == place}
    assert 1 < most <= 4
    again = shuffle_lib.shuffle(documents, seed=3)
    assert [again[n][0].id for n in range(count)] == epochs[0]


def test_the_index_is_that_of_the_records(corpus, tmp_path):
    utterances = list(Corpus(corpus))
    parts = [Index.of(utterances[:40]), Index.of(utterances[40:])]
    joined, whole = Index.join(parts), Index.of(utterances)
    joined.write(tmp_path / "a.index")
    copies = [joined, Index.read(tmp_path / "a.index"), Index.from_dict(whole.to_dict())]
    for index in copies:
        assert index.starts_n.tolist() == whole.starts_n.tolist()
        assert index.content_n.tolist() == whole.content_n.tolist()
        assert index.units_n.tolist() == whole.units_n.tolist()
        assert (index.ranges, index.documents) == (whole.ranges, whole.documents)
    assert not joined.starts_n[40] and whole.starts_n.sum() == 40


def test_an_indexed_corpus_opens_without_reading_its_records(
    corpus, tokenizer, tmp_path, monkeypatch
):
    folder = shutil.copytree(corpus, tmp_path / "corpus")
    paths = find_shards(folder)
    shards = [Shard.of(path, count) for path, count in zip(paths, (40, 20), strict=True)]
    index = Index.of(Corpus(corpus))
    write_list(folder, shards, {}, index=index)
    expected = Documents(Corpus(corpus))
    with monkeypatch.context() as patch:
        patch.setattr(Corpus, "__getitem__", None)
        documents = Documents(Corpus(folder), SourceConfig(str(folder)), VOCAB)
    assert len(documents) == len(expected) and documents[3] == expected[3]
    damaged = folder / "corpus-00001-of-00001.index"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match="checksum is not the listed one"):
        Documents(Corpus(folder))
    write_list(folder, shards, {}, index=Index.of(list(Corpus(corpus))[1:]))
    with pytest.raises(InputError, match="its index is not that of its shards"):
        Documents(Corpus(folder))
