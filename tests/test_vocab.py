"""The id layout: positions of markers and units, and the ids that may be generated."""

import numpy as np
import pytest

from spirit_jax import config
from spirit_jax.errors import InputError
from spirit_jax.vocab import Modality, Vocab

TEXT_SIZES = (1_000, 32_000, 128_256)


@pytest.fixture(params=TEXT_SIZES)
def text_size(request):
    return request.param


def ids_of(vocab):
    return {string: vocab.text_size + i for i, string in enumerate(vocab.token_strings())}


@pytest.mark.parametrize(
    ("kind", "rows", "ids"),
    [
        ("base", 32_512, {"[Hu500]": 32_502}),
        (
            "expressive",
            32_768,
            {"[Pi0]": 32_503, "[Pi63]": 32_566, "[St0]": 32_567, "[St99]": 32_666},
        ),
    ],
)
def test_the_layout_matches_the_release(kind, rows, ids):
    vocab = Vocab.make(kind, 32_000)
    expected = {"[Text]": 32_000, "[Speech]": 32_001, "[Hu0]": 32_002, "[Hu500]": 32_502} | ids
    assert {string: ids_of(vocab)[string] for string in expected} == expected
    assert vocab.size == max(expected.values()) + 1
    assert vocab.padded_size == rows
    assert (vocab.bos, vocab.eos) == (1, (2,))


@pytest.mark.parametrize(("kind", "units"), [("base", 501), ("expressive", 501 + 64 + 100)])
def test_markers_and_units_follow_the_text_pieces(kind, units, text_size):
    vocab = Vocab.make(kind, text_size)
    assert vocab.size == text_size + 2 + units
    assert len(vocab.token_strings()) == len(set(vocab.token_strings())) == 2 + units
    assert ids_of(vocab)["[Text]"] == vocab.text_marker == text_size
    assert ids_of(vocab)["[Speech]"] == vocab.speech_marker
    assert ids_of(vocab)["[Hu0]"] == vocab.first_unit
    assert vocab.size <= vocab.padded_size < vocab.size + 128
    assert vocab.padded_size % 128 == 0


@pytest.mark.parametrize("kind", ["base", "expressive"])
def test_allowed_ids_of_every_modality(kind, text_size):
    eos = (2, text_size - 1)
    vocab = Vocab.make(kind, text_size, eos=eos)
    text, speech, arbitrary = (np.flatnonzero(vocab.allowed(m)).tolist() for m in Modality)
    markers = [vocab.text_marker, vocab.speech_marker]
    assert text == list(range(text_size))
    assert speech == [*eos, *range(text_size + 2, vocab.size)]
    assert arbitrary == sorted({*text, *speech, *markers})
    for modality in Modality:
        mask = vocab.allowed(modality)
        assert mask.shape == (vocab.padded_size,) and mask.dtype == bool
        assert mask[list(eos)].all()
        assert not mask[vocab.size :].any()


def test_a_modality_may_be_named_in_any_case():
    assert Modality.of("Text") is Modality.of(Modality.TEXT) is Modality.TEXT
    vocab = Vocab.make("base", 1_000)
    np.testing.assert_array_equal(vocab.allowed("SPEECH"), vocab.allowed(Modality.SPEECH))


@pytest.mark.parametrize("name", ["music", "", None, 3])
def test_unknown_modalities_are_rejected(name):
    with pytest.raises(InputError, match=f"'{name}'.*text, speech, arbitrary"):
        Modality.of(name)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"padded_size": 1_502}, ["1502", "1503"]),
        ({"bos": 1_000}, ["1000"]),
        ({"bos": -1}, ["-1"]),
        ({"eos": (2, 1_503)}, ["1503"]),
        ({"kind": "large"}, ["'large'", "base", "expressive"]),
    ],
)
def test_impossible_layouts_are_rejected(change, parts):
    with pytest.raises(InputError) as error:
        Vocab.make(**({"kind": "base", "text_size": 1_000} | change))
    for part in parts:
        assert part in str(error.value)


def test_the_padded_size_may_equal_the_size():
    assert Vocab.make("base", 1_000, padded_size=1_503).allowed("arbitrary").all()


def test_a_layout_reads_back_from_json(tmp_path):
    vocab = Vocab.make("expressive", 128_256, bos=128_000, eos=(128_001, 128_009))
    config.write(vocab, tmp_path / "vocab.json")
    assert config.read(Vocab, tmp_path / "vocab.json") == vocab


SLAMKIT = {
    "text_size": 347,
    "bos": None,
    "eos": [346],
    "padded_size": 849,
    "hubert_units": 500,
    "tokens": [["hubert", "<Un{}>"], ["speech", "<speech>"], ["text", "<text>"]],
}


def test_names_and_order_of_tokens_are_data():
    vocab = config.from_dict(Vocab, SLAMKIT)
    ids = ids_of(vocab)
    assert [ids[name] for name in ("<Un0>", "<Un499>", "<speech>", "<text>")] == [
        347,
        846,
        847,
        848,
    ]
    assert (vocab.first_unit, vocab.speech_marker, vocab.text_marker) == (347, 847, 848)
    assert vocab.prompt_tokens()[-3:] == ["[Hu499]", "[Speech]", "[Text]"]
    allowed = vocab.allowed("speech")
    assert np.flatnonzero(allowed).tolist() == list(range(346, 847))
    counted = [np.flatnonzero(vocab.counted(modality)).tolist() for modality in Modality]
    assert counted == [[*range(347), 847, 848], list(range(346, 847)), list(range(849))]
    assert vocab.is_unit(np.array([346, 347, 846, 847])).tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ([["hubert", "<Un{}>"], ["text", "<text>"]], "each of hubert, speech, text once"),
        ([["hubert", "<Un{}>"], ["hubert", "<U{}>"], ["text", "<t>"]], "each of"),
        ([["hubert", "<Un>"], ["speech", "<speech>"], ["text", "<text>"]], "'<Un>' cannot be"),
        ([["hubert", "<Un{}"], ["speech", "<speech>"], ["text", "<text>"]], "'<Un{}' cannot be"),
        ([["hubert", "<Un{}>"], ["speech", "speech"], ["text", "<text>"]], "'speech' cannot be"),
        ([["hubert", "<Un{}>"], ["speech", "<s>"], ["text", "<s>"]], "the same name"),
        ([["hubert", "<Un{}>"], ["speech", "<\\s>"], ["text", "<s>"]], "backslash"),
        (
            [["hubert", "<Un{}>"], ["speech", "<s>"], ["pitch", "<P{}>"], ["text", "<t>"]],
            "must be adjacent",
        ),
        ([["hubert"]], "pairs"),
    ],
)
def test_impossible_names_are_refused(tokens, says):
    with pytest.raises(InputError, match=says):
        config.from_dict(Vocab, SLAMKIT | {"tokens": tokens})
