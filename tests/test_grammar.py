"""The sentences of the small world: what is drawn, what is accepted, and which part it is in."""

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


def test_the_rules_accept_what_they_make_and_nothing_else() -> None:
    for sentence in _drawn(1000):
        assert grammar.accepts(sentence.text) == sentence.kind, sentence
        words = sentence.text.split()
        assert not grammar.accepts(" ".join([*words, "lamp", "lamp"]))
        assert not grammar.accepts(" ".join(words[1:-1]))


def test_texts_are_words_of_a_small_vocabulary() -> None:
    vocabulary = set(grammar.vocabulary())
    assert len(vocabulary) <= 400
    for sentence in _drawn(1000):
        assert vocabulary.issuperset(sentence.text.split()), sentence
        assert _text(sentence.spoken) == sentence.text, sentence


def test_all_words_of_the_grammar_file_are_in_the_vocabulary() -> None:
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


def test_questions_and_answers_are_kept_apart() -> None:
    asked = [sentence for sentence in _drawn(1000) if sentence.kind == "question"]
    assert asked
    for sentence in asked:
        assert f"{sentence.question} {sentence.answer}" == sentence.text
        assert sentence.spoken.count("?") == 1


def test_spelling_is_the_words_letters() -> None:
    spelled = [s.text.split() for s in _drawn(1000) if s.kind == "spelling"]
    assert spelled
    for _, word, *letters in spelled:
        assert "".join(letters) == word


def test_parts_are_fixed_and_do_not_overlap() -> None:
    assert grammar.part_of("turn on the lights in the kitchen") == "train"
    parts = {part: grammar.sentences(part, 150) for part in grammar.PARTS}
    assert parts["train"] == grammar.sentences("train", 150)
    texts = [sentence.text for part in parts.values() for sentence in part]
    assert len(set(texts)) == 450
    shares = Counter(grammar.part_of(sentence.text) for sentence in _drawn(3000))
    assert shares["train"] > 2500 and shares["test"] > 130 and shares["valid"] > 45


def test_there_are_thousands_of_sentences() -> None:
    found = grammar.sentences("train", 5500, seed=3)
    assert len({sentence.text for sentence in found}) == 5500
    assert {sentence.kind for sentence in found} == set(grammar.KINDS)


def test_pocketsphinx_reads_the_grammar_and_knows_all_words() -> None:
    pocketsphinx = pytest.importorskip("pocketsphinx")
    decoder = pocketsphinx.Decoder(loglevel="FATAL")
    unknown = [word for word in grammar.vocabulary() if decoder.lookup_word(word) is None]
    assert not unknown
    decoder.add_jsgf_string("world", grammar.jsgf())
    decoder.activate_search("world")


def test_the_corpus_keeps_parts_and_voices_apart() -> None:
    for package in ("num2words", "pocketsphinx", "pyworld", "sklearn"):
        pytest.importorskip(package)
    from corpora import speak, world

    prompt = grammar.Sentence("press one now", "prompt", "press one now")
    planned = world.plan(400, [prompt, prompt])
    tasks = [task for task in planned if task.part != "reference"]
    assert len({task.id for task in tasks}) == len(tasks)
    said = [task.sentence.text for task in planned if task.part == "reference"]
    assert len(set(said)) == len(said)
    heard = {task.sentence.text for task in tasks if task.part in ("train", "valid")}
    assert set(said) == heard | {"press one now"}
    questions = {one.sentence.question for one in tasks if one.part in ("train", "more")}
    for task in tasks:
        parts = {"test-voice": "test", "more": "train", "requests": "train"}
        part = parts.get(task.part, task.part)
        if task.part == "asked":
            assert task.sentence.text in questions and task.sentence.spoken.endswith("?")
        else:
            assert grammar.part_of(task.sentence.text) == part
        assert (task.voice in speak.HELD_OUT) == (task.part == "test-voice")
    said_by = defaultdict(set)
    for task in tasks:
        if task.part in ("train", "more"):
            said_by[task.sentence].add((task.voice, task.manner))
    assert len(said_by) == 400 + 950
    for sentence, ways in said_by.items():
        assert len(ways) in ((2, 3) if sentence.kind in world.FEW else (1,)), sentence
    assert {one.sentence.text for one in tasks if one.part == "asked"} == questions - {""}
    asked = {sentence for sentence in said_by if sentence.intent}
    again = Counter(task.sentence for task in tasks if task.part == "requests")
    assert set(again) <= asked
    assert sum(again.values()) > 3 * len(asked)
    assert max(again.values()) == world.AGAIN
    shares = Counter(task.voice for task in tasks if task.part == "train")
    assert all(88 <= shares[voice] <= 90 for voice in speak.FLITE)
    assert sum(shares[voice] for voice in speak.ESPEAK) == 133
    manners = Counter((task.voice, task.manner) for task in tasks if task.part == "test")
    for voice in speak.FLITE:
        assert len({manners[voice, manner] for manner in speak.MANNERS}) == 1


def test_the_same_sentence_by_two_voices_is_a_pair() -> None:
    for package in ("num2words", "pocketsphinx", "pyworld", "sklearn"):
        pytest.importorskip(package)
    from corpora import world

    rows = [
        {"id": f"{voice}/{manner}", "part": "test", "text": "page two", "manner": manner}
        for voice in ("rms", "slt")
        for manner in ("neutral", "sad")
    ]
    pairs = world.find_pairs([*rows, rows[0] | {"id": "other", "part": "train"}])
    found = [(pair["first"], pair["second"]) for pair in pairs]
    assert found == [("rms/neutral", "slt/neutral"), ("rms/sad", "slt/sad")]


def test_pairs_for_evaluation_are_right_and_wrong_by_the_rules() -> None:
    for package in ("pyworld", "sklearn"):
        pytest.importorskip(package)
    from corpora import tasks

    swapped = tasks.swaps(grammar.sentences("test", 60), random.Random(0))
    assert len(swapped) > 40
    for sides in swapped:
        right, wrong = map(_text, sides)
        words = right.split(), wrong.split()
        assert grammar.accepts(right) and not grammar.accepts(wrong)
        assert sum(a != b for a, b in zip(*words, strict=True)) == 1 and words[0][0] == words[1][0]
    for part, least in (("test", 10), ("train", 200)):
        known = {sentence.text: sentence for sentence in grammar.questions(part)}
        answered = tasks.wrong_answers(part, random.Random(0))
        assert len(answered) > least
        for sides in answered:
            right, wrong = map(_text, sides)
            assert not grammar.accepts(wrong) and wrong.startswith(known[right].question)


def test_questions_are_of_one_part_and_have_no_signs() -> None:
    parts = [{one.text for one in grammar.questions(part)} for part in grammar.PARTS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(grammar.QUESTIONS)
    assert all(re.fullmatch("[a-z' ]+", text) for text in set.union(*parts))
    assert "is the sky blue yes the sky is blue" in set.union(*parts)
