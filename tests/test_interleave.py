"""Interleaved documents: all words kept, markers at every switch, units of the words' times."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_tokenizers import train_sentencepiece

from spirit_jax import units as units_lib
from spirit_jax.data.interleave import (
    InterleaveConfig,
    Span,
    TokenLine,
    draw_spans,
    encode_text_span,
    interleave,
)
from spirit_jax.data.records import Utterance
from spirit_jax.errors import InputError
from spirit_jax.text import SplitTokenizer, load_text_tokenizer
from spirit_jax.units import Units
from spirit_jax.vocab import Modality, Vocab

VOCAB = Vocab.make("expressive", 1000)
RATE = 24.99
CONFIGS = [
    InterleaveConfig(text_words=(2, 4), speech_words=(1, 3)),
    InterleaveConfig(rule="poisson", mean_words=3),
    InterleaveConfig(rule="half", text_words=(2, 4)),
    InterleaveConfig(rule="coin"),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    train_sentencepiece(folder / "tokenizer.model")
    return load_text_tokenizer(folder, VOCAB)


def make_utterance(words, seed=0, gap=0.1, name="u"):
    """Words of 0.3 s with gaps, and units that change often."""
    rng = np.random.default_rng(seed)
    timed = tuple(
        (word, 0.2 + i * (0.3 + gap), 0.5 + i * (0.3 + gap)) for i, word in enumerate(words)
    )
    seconds = timed[-1][2] + 0.3 if timed else 0.5
    n = int(seconds * 25)
    units = Units(
        rng.integers(0, 500, n), rng.integers(0, 64, n // 2), rng.integers(0, 100, n // 25 + 1)
    )
    return Utterance(name, units, n / RATE, " ".join(words), timed)


def split_spans(ids):
    """(marker, ids) of each span of a token sequence."""
    bounds = [i for i, t in enumerate(ids) if t in (VOCAB.text_marker, VOCAB.speech_marker)]
    assert not len(ids) or bounds[0] == 0
    return [
        (int(ids[a]), ids[a + 1 : b]) for a, b in zip(bounds, [*bounds[1:], len(ids)], strict=True)
    ]


@given(st.integers(0, 200), st.sampled_from(CONFIGS), st.integers(0, 2**32))
def test_spans_cover_every_word_once_and_alternate(words, config, seed):
    spans = draw_spans(words, config, np.random.default_rng(seed))
    assert [i for span in spans for i in range(span.start, span.stop)] == list(range(words))
    assert all(span.start < span.stop for span in spans)
    assert all(a.modality is not b.modality for a, b in zip(spans, spans[1:], strict=False))
    assert spans == draw_spans(words, config, np.random.default_rng(seed))
    for span in spans[:-1]:
        if config.rule == "spans":
            low, high = (2, 4) if span.modality is Modality.TEXT else (1, 3)
            assert low <= span.stop - span.start <= high


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (InterleaveConfig(), 10 / 30),
        (InterleaveConfig(rule="poisson"), 0.3),
        (InterleaveConfig(rule="half"), 1 / 3),
        (InterleaveConfig(rule="coin", speech_share=0.4), 0.4),
    ],
)
def test_the_share_of_speech_is_that_of_the_rule(config, expected):
    spans = draw_spans(200_000, config, np.random.default_rng(0))
    speech = sum(span.stop - span.start for span in spans if span.modality is Modality.SPEECH)
    assert abs(speech / 200_000 - expected) < 0.02 * expected


def test_the_token_line_spells_the_unit_string():
    utterance = make_utterance(["a"] * 30)
    line = TokenLine.of(utterance, VOCAB)
    strings = VOCAB.token_strings()
    string = "".join(strings[token - VOCAB.text_size] for token in line.ids_n)
    assert string == units_lib.to_string(utterance.units)
    assert (np.diff(line.frames_n) >= 0).all()


def test_a_base_token_line_has_phonetic_units_only():
    vocab = Vocab.make("base", 1000)
    line = TokenLine.of(make_utterance(["a"] * 3), vocab)
    assert (line.ids_n < vocab.size).all() and (line.ids_n >= vocab.first_unit).all()


def test_a_cut_has_the_tokens_of_its_time_range():
    hubert = np.arange(100)
    utterance = Utterance("u", Units(hubert), 100 / 25.0)
    line = TokenLine.of(utterance, Vocab.make("base", 1000))
    cut = line.cut(1.01, 1.5) - 1002  # frames 25.25 to 37.5 at 25 frames a second
    assert cut.tolist() == list(range(25, 38))
    cuts = [line.cut(k * 0.4, (k + 1) * 0.4) for k in range(10)]
    assert np.concatenate(cuts).tolist() == line.ids_n.tolist()


@given(st.integers(1, 40), st.sampled_from(CONFIGS), st.integers(0, 2**32))
def test_a_document_keeps_its_words_and_their_units(tokenizer, count, config, seed):
    words = [["the", "object", "is", "called"][i % 4] for i in range(count)]
    half = count // 2
    document = [make_utterance(words[:half], 1), make_utterance(words[half:], 2)]
    lines = [TokenLine.of(utterance, VOCAB) for utterance in document]
    timed = [(i, word) for i, u in enumerate(document) for word in u.words]
    ids = interleave(document, config, tokenizer, VOCAB, np.random.default_rng(seed))
    spans = draw_spans(count, config, np.random.default_rng(seed))
    actual_spans = split_spans(ids)
    assert len(actual_spans) == len(spans)
    for (marker, span_ids), span in zip(actual_spans, spans, strict=True):
        if span.modality is Modality.TEXT:
            assert marker == VOCAB.text_marker
            text = tokenizer.decode(span_ids.tolist())
            assert text.split() == words[span.start : span.stop]
        else:
            assert marker == VOCAB.speech_marker
            expected = []
            for i in (0, 1):
                in_span = [word for j, word in timed[span.start : span.stop] if j == i]
                if in_span:
                    expected += lines[i].cut(in_span[0][1], in_span[-1][2]).tolist()
            assert span_ids.tolist() == expected


def test_text_spans_are_encoded_as_in_prompts(tokenizer):
    class Recorder:
        word_prefix, markup = tokenizer.word_prefix, tokenizer.markup
        encode = staticmethod(tokenizer.encode)

    utterance = make_utterance(["hello", "there"])
    config, seeds = InterleaveConfig(), range(20)
    spans = [draw_spans(2, config, np.random.default_rng(seed)) for seed in seeds]
    seed = spans.index([Span(Modality.TEXT, 0, 2)])
    ids = interleave([utterance], config, Recorder, VOCAB, np.random.default_rng(seed))
    assert [1, *ids] == tokenizer.encode("[Text]hello there")


def test_words_that_look_like_markup_are_text(tokenizer):
    words = ["[Hu5]", "[Speech]", "[Text]", "a"]
    ids = encode_text_span(words, tokenizer, VOCAB).tolist()
    assert [i for i in ids if i >= VOCAB.text_size] == [VOCAB.text_marker]
    assert tokenizer.decode(ids[1:]) == " ".join(words)


def test_the_word_prefix_gives_a_word_its_usual_piece(tokenizer):
    pieces = {" x": [5], "x": [6], "x x": [6, 5]}
    assert tokenizer.word_prefix == ""  # SentencePiece puts a space before every piece of text
    assert SplitTokenizer(lambda text, _: pieces[text], str, VOCAB).word_prefix == " "


@pytest.mark.parametrize(
    "change", [{"rule": "x"}, {"text_words": (0, 3)}, {"speech_words": (5, 3)}, {"speech_share": 1}]
)
def test_invalid_settings_are_rejected(change):
    with pytest.raises(InputError, match=next(iter(change))):
        InterleaveConfig(**change)
