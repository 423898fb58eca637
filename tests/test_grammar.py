"""Sentences of the small world: drawing them, the grammar that accepts them, and their parts."""

import random
import re
from collections import Counter, defaultdict

import pytest

from corpora import grammar


def _text(spoken: str) -> str:
    return re.sub("[,.?]", "", spoken).lower()


def _drawn(count: int) -> list[grammar.Sentence]:
    rng = random.Random(1)
    return [grammar.draw(rng) for _ in range(count)]


def test_the_grammar_accepts_its_own_sentences_only() -> None:
    for sentence in _drawn(1000):
        assert grammar.accepts(sentence.text) == sentence.kind, sentence
        words = sentence.text.split()
        assert not grammar.accepts(" ".join([*words, "lamp", "lamp"]))
        assert not grammar.accepts(" ".join(words[1:-1]))


def test_sentences_use_a_small_vocabulary() -> None:
    vocabulary = set(grammar.vocabulary())
    assert len(vocabulary) <= 400
    for sentence in _drawn(1000):
        assert vocabulary.issuperset(sentence.text.split()), sentence
        assert _text(sentence.spoken) == sentence.text, sentence


def test_the_grammar_file_has_the_words_of_the_vocabulary() -> None:
    rules = re.findall(r"^(?:public )?<\w+> = (.*);$", grammar.jsgf(), re.MULTILINE)
    words = set(re.sub(r"<\w+>|\|", " ", " ".join(rules)).split())
    assert words == set(grammar.vocabulary())


def test_requests_have_intents() -> None:
    assert grammar.intent_of("turn on the lights in the kitchen") == "activate lights kitchen"
    text = "please bring me the newspaper from the living room"
    assert grammar.intent_of(text) == "bring newspaper living room"
    assert grammar.intent_of("can you close the door") == "close door"
    assert grammar.intent_of("close the kitchen") == ""
    for sentence in _drawn(300):
        assert bool(sentence.intent) == (sentence.kind == "request"), sentence


def test_sentences_split_into_question_and_answer() -> None:
    questions = [sentence for sentence in _drawn(1000) if sentence.kind == "question"]
    assert questions
    for sentence in questions:
        assert f"{sentence.question} {sentence.answer}" == sentence.text
        assert sentence.spoken.count("?") == 1


def test_spelling_sentences_end_with_the_letters_of_a_word() -> None:
    spelled = [s.text.split() for s in _drawn(1000) if s.kind == "spelling"]
    assert spelled
    for _, word, *letters in spelled:
        assert "".join(letters) == word


def test_parts_are_reproducible_and_do_not_overlap() -> None:
    assert grammar.part_of("turn on the lights in the kitchen") == "train"
    parts = {part: grammar.sentences(part, 150) for part in grammar.PARTS}
    assert parts["train"] == grammar.sentences("train", 150)
    texts = [sentence.text for part in parts.values() for sentence in part]
    assert len(set(texts)) == 450
    shares = Counter(grammar.part_of(sentence.text) for sentence in _drawn(3000))
    assert shares["train"] > 2500 and shares["test"] > 130 and shares["valid"] > 45


def test_thousands_of_different_sentences_can_be_generated() -> None:
    sentences = grammar.sentences("train", 5500, seed=3)
    assert len({sentence.text for sentence in sentences}) == 5500
    assert {sentence.kind for sentence in sentences} == set(grammar.KINDS)


def test_pocketsphinx_accepts_the_grammar_and_has_all_words() -> None:
    pocketsphinx = pytest.importorskip("pocketsphinx")
    decoder = pocketsphinx.Decoder(loglevel="FATAL")
    unknown = [word for word in grammar.vocabulary() if decoder.lookup_word(word) is None]
    assert not unknown
    decoder.add_jsgf_string("world", grammar.jsgf())
    decoder.activate_search("world")


def test_parts_and_held_out_voices_do_not_overlap() -> None:
    for package in ("num2words", "pocketsphinx", "pyworld", "sklearn"):
        pytest.importorskip(package)
    from corpora import speak, world

    prompt = grammar.Sentence("press one now", "prompt", "press one now")
    planned = world.plan(400, [prompt, prompt])
    tasks = [task for task in planned if task.part != "reference"]
    assert len({task.id for task in tasks}) == len(tasks)
    reference_texts = [task.sentence.text for task in planned if task.part == "reference"]
    assert len(set(reference_texts)) == len(reference_texts)
    training_texts = {task.sentence.text for task in tasks if task.part in ("train", "valid")}
    assert set(reference_texts) == training_texts | {"press one now"}
    questions = {task.sentence.question for task in tasks if task.part in ("train", "more")}
    for task in tasks:
        parts = {"test-voice": "test", "more": "train", "requests": "train"}
        part = parts.get(task.part, task.part)
        if task.part == "asked":
            assert task.sentence.text in questions and task.sentence.spoken.endswith("?")
        else:
            assert grammar.part_of(task.sentence.text) == part
        assert (task.voice in speak.HELD_OUT) == (task.part == "test-voice")
    readings = defaultdict(set)
    for task in tasks:
        if task.part in ("train", "more"):
            readings[task.sentence].add((task.voice, task.manner))
    assert len(readings) == 400 + 950
    for sentence, voices_and_manners in readings.items():
        assert len(voices_and_manners) in ((2, 3) if sentence.kind in world.FEW else (1,)), sentence
    assert {task.sentence.text for task in tasks if task.part == "asked"} == questions - {""}
    requests = {sentence for sentence in readings if sentence.intent}
    repeated = Counter(task.sentence for task in tasks if task.part == "requests")
    assert set(repeated) <= requests
    assert sum(repeated.values()) > 3 * len(requests)
    assert max(repeated.values()) == world.AGAIN
    shares = Counter(task.voice for task in tasks if task.part == "train")
    assert all(88 <= shares[voice] <= 90 for voice in speak.FLITE)
    assert sum(shares[voice] for voice in speak.ESPEAK) == 133
    manners = Counter((task.voice, task.manner) for task in tasks if task.part == "test")
    for voice in speak.FLITE:
        assert len({manners[voice, manner] for manner in speak.MANNERS}) == 1


def test_pairs_are_the_same_sentence_by_two_voices() -> None:
    for package in ("num2words", "pocketsphinx", "pyworld", "sklearn"):
        pytest.importorskip(package)
    from corpora import world

    rows = [
        {"id": f"{voice}/{manner}", "part": "test", "text": "page two", "manner": manner}
        for voice in ("rms", "slt")
        for manner in ("neutral", "sad")
    ]
    pairs = world.find_pairs([*rows, rows[0] | {"id": "other", "part": "train"}])
    names = [(pair["first"], pair["second"]) for pair in pairs]
    assert names == [("rms/neutral", "slt/neutral"), ("rms/sad", "slt/sad")]


def test_evaluation_pairs_are_one_valid_and_one_invalid_sentence() -> None:
    for package in ("pyworld", "sklearn"):
        pytest.importorskip(package)
    from corpora import tasks

    swapped = tasks.swaps(grammar.sentences("test", 60), random.Random(0))
    assert len(swapped) > 40
    for pair in swapped:
        valid, invalid = map(_text, pair)
        words = valid.split(), invalid.split()
        assert grammar.accepts(valid) and not grammar.accepts(invalid)
        assert sum(a != b for a, b in zip(*words, strict=True)) == 1 and words[0][0] == words[1][0]
    for part, least in (("test", 10), ("train", 200)):
        known = {sentence.text: sentence for sentence in grammar.questions(part)}
        answered = tasks.wrong_answers(part, random.Random(0))
        assert len(answered) > least
        for pair in answered:
            valid, invalid = map(_text, pair)
            assert not grammar.accepts(invalid) and invalid.startswith(known[valid].question)


def test_questions_belong_to_one_part_and_have_no_punctuation() -> None:
    parts = [{question.text for question in grammar.questions(part)} for part in grammar.PARTS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(grammar.QUESTIONS)
    assert all(re.fullmatch("[a-z' ]+", text) for text in set.union(*parts))
    assert "is the sky blue yes the sky is blue" in set.union(*parts)
