"""Words spelt with the labels of a CTC network, or replaced by star labels."""

import dataclasses
import unicodedata

import pytest

from spirit_jax.data.spelling import Speller
from spirit_jax.errors import InputError
from spirit_jax.models.ctc import CtcConfig

LATIN = "abcdefghijklmnopqrstuvwxyz"


def speller(letters, separator="|"):
    return Speller(CtcConfig(labels=("<pad>", separator, *letters), separator=separator))


def spell(text, letters, separator="|"):
    """The labels' texts; "*" for the star."""
    letters = list(letters)
    names = ["", separator, *letters, "*"]
    return "".join(names[label] for label in speller(letters, separator).spell(text).labels)


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@pytest.mark.parametrize(
    ("text", "letters", "expected"),
    [
        ("thế à", LATIN, "*|*"),
        ("thế à", LATIN + "ếà", "thế|à"),
        ("ﬁne ﬂow", LATIN, "fine|flow"),
        ("한국 말", "한국말", "한국|말"),
        ("각", [*"각"], "각"),
        ("각", [*"ㄱㅏ"], "ㄱㅏㄱ"),
        ("각", [*"ㄱㅗ"], "*"),
        ("IŞIK İstanbul", "abcdefgğhıijklmnoöprsştuüvyz", "ışık|istanbul"),
        ("İstanbul IN", LATIN, "istanbul|in"),
        ("ÉTÉ Été", "té", "été|été"),
        ("Été", ["t", "E\u0301"], "E\u0301tE\u0301"),
        ("don't stop", LATIN, "dont|stop"),
        ("don’t", [*LATIN, "’"], "don’t"),
        ("ABC abc", "ABCabc", "abc|abc"),
        ("ABC abc", "ABC", "ABC|ABC"),
        ("3rd of ab1c", LATIN, "*|of|*"),
        ("a <unk> b [noise] c", LATIN, "a|*|b|c"),
    ],
)
def test_words_are_spelt_completely_or_replaced_by_a_star(text, letters, expected, form):
    if form in ("NFC", "NFD"):
        letters = [unicodedata.normalize(form, letter) for letter in letters]
    written = spell(unicodedata.normalize(form, text), letters)
    assert unicodedata.normalize("NFC", written) == unicodedata.normalize("NFC", expected)


def test_a_network_of_letters_and_marks_spells_both_forms():
    hindi = "हिन्दी"
    assert spell(hindi, sorted(set(hindi))) == hindi
    assert spell("é", ["e", "\u0301"]) == "e\u0301"


@pytest.mark.parametrize("separator", ["|", " ", "▁", "<space>", ""])
def test_the_separator_stands_between_words(separator):
    config = CtcConfig(labels=("[PAD]", separator or "<s>", *LATIN), separator=separator)
    labels = Speller(config).spell("ab c").labels
    assert labels == ((2, 3, 1, 4) if separator else (2, 3, 4))


def test_the_blank_may_have_any_name_and_place():
    config = CtcConfig(labels=(*"ab_", "|"), blank=2)
    assert Speller(config).spell("ab_ a").labels == (0, 1, 3, 0)


def test_unknown_letters_are_counted():
    spelling = speller(LATIN).spell("thế à 42 là it so")
    assert spelling.stars == 4 and spelling.unknown == {"ế": 1, "à": 2, "2": 1, "4": 1}
    assert spelling.words == ("thế", "à", "42", "là", "it", "so")


def test_texts_that_mostly_cannot_be_spelt_have_a_problem():
    known = speller(LATIN)
    assert known.spell("so 1984 42").problem == ""
    assert "2 of 3 words" in known.spell("là à it").problem
    assert "is it for this language" in known.spell("là à it").problem
    assert "Every word has characters" in known.spell("где 42").problem
    assert "no words" in known.spell("[laughter] <unk>").problem


ESPEAK = ["a", "b", "d", "iː", "n", "s", "t", "ɹ", "ʃ", "ɐ", "aɪ", "tʃ"]
ARPABET = [*"bdfgklmnprstvwz", *"aa ae ah ao aw ay ch dh eh er ey hh ih iy jh ng".split()]
PIECES = [*LATIN, *"the ing er tion ▁a ▁of ▁to and re in on at en le ou es it is or".split()]


@pytest.mark.parametrize("labels", [ESPEAK, ARPABET, PIECES])
def test_networks_whose_labels_are_not_letters_are_rejected(labels):
    config = dataclasses.replace(CtcConfig(), labels=("<pad>", "|", *labels))
    with pytest.raises(InputError, match="^x: its labels are phonemes or pieces of words"):
        Speller(config, "x")


def test_letters_of_any_script_are_accepted():
    for letters in (LATIN + "äöüßæøåðþ", "ɖɛƒɣŋɔʋɩʊabc", "абвгдеёжз", "กขคงจฉช", [*LATIN, "ch"]):
        speller(letters)


@pytest.mark.parametrize(
    ("hf", "tokenizer", "labels", "blank", "separator"),
    [
        ({"pad_token_id": 2}, {}, ["|", "a", "<pad>"], 2, "|"),
        ({}, {"pad_token": "[PAD]", "word_delimiter_token": " "}, [" ", "a", "[PAD]"], 2, " "),
        ({}, {"pad_token": {"content": "_"}}, ["a", "_", "▁"], 1, "▁"),
        ({}, {"word_delimiter_token": {"content": "#"}}, ["<pad>", "#", "|"], 0, "#"),
        ({"pad_token_id": None}, {"word_delimiter_token": None}, ["a", "<blank>"], 1, ""),
        ({}, {}, ["a", "b"], 0, ""),
    ],
)
def test_converted_networks_keep_their_blank_and_separator(hf, tokenizer, labels, blank, separator):
    pytest.importorskip("torch")
    from convert.ctc import find_blank, find_separator

    assert find_separator(tokenizer, labels) == separator
    assert find_blank(hf, tokenizer, labels) == blank


@pytest.mark.parametrize("apostrophe", "\u2018\u2019\u02bc\uff07`\u00b4\u2032")
def test_every_apostrophe_is_spelt_alike(apostrophe):
    letters = LATIN + "'"
    assert spell(f"o{apostrophe}clock", letters) == "o'clock"
    assert spell(f"{apostrophe}don{apostrophe}t{apostrophe}", letters) == "don't"
