"""The small world: texts are written out as words, and requests have intents."""

import pytest

from corpora import grammar
from spirit_jax.small_world import intent_of, read_out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("42", "forty two"),
        ("Turn on 42 lights, please!", "turn on forty two lights please"),
        ("３ cats & 2 dogs", "three cats and two dogs"),
        ("1,205 or 3000", "one thousand two hundred and five or three thousand"),
        ("-5", "minus five"),
        ("007", "zero zero seven"),
        ("3.14", "three point one four"),
        ("20% and 5 °C", "twenty percent and five degrees"),
        ("2 + 2 = 4, 2 - 2 = 0", "two plus two is four two minus two is zero"),
        ("it is 3:30.", "it is half past three"),
        ("at 7:45 pm", "at a quarter to eight in the evening"),
        ("12:00, 11:55, 0:05", "twelve o'clock five to twelve five past twelve"),
        ("wake me up at 3pm", "wake me up at three o'clock in the afternoon"),
        ("the 3rd of March", "the third of march"),
        ("March 21st, 5 May", "march twenty first the fifth of may"),
        ("the 1st game", "the first game"),
        ("twenty-five o’clock", "twenty five o'clock"),
        ("'Hello' (john’s)", "hello john's"),
        ("`Hello´ john＇s ‘little’ fishʼs o`clock", "hello john's little fish's o'clock"),
    ],
)
def test_texts_are_written_out_as_words(text, words):
    assert read_out(text) == (words, [])


@pytest.mark.parametrize(
    "part",
    [
        "café",
        "x2",
        "$5",
        "10-20",
        "2024-03-05",
        "3/4/2024",
        "25:99",
        "½",
        "٤٢",
        "9" * 400,
        "©",
        "1,2",
    ],
)
def test_unreadable_parts_are_left_out_and_reported_once(part):
    words, unread = read_out(f"the cat {part} was {part}, happy")
    assert words == "the cat was happy" and len(unread) == 1
    assert unread[0] == ("1\u20442" if part == "½" else part)


def test_sentences_of_the_grammar_are_unchanged_and_keep_their_intent():
    for sentence in grammar.sentences("train", 300):
        words, unread = read_out(sentence.spoken)
        assert (words, unread) == (sentence.text, [])
        if sentence.intent:
            assert intent_of(sentence.text) == sentence.intent


@pytest.mark.parametrize(
    ("text", "intent"),
    [
        ("turn off the music in the bedroom", "deactivate music bedroom"),
        ("can you bring me the keys from the living room", "bring keys living room"),
        ("please close the curtains", "close curtains"),
        ("turn the music", ""),
        ("it is half past two", ""),
    ],
)
def test_requests_have_the_intent_of_their_words(text, intent):
    assert intent_of(text) == intent
