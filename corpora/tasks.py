"""Manifests to train and evaluate a language model of the small world on.

    python -m corpora.tasks --corpus runs/world

Writes manifests to CORPUS/tasks. For training, from training sentences:

* text: 20,000 sentences, as text alone;
* questions: all questions with their answers, since each fact occurs only once in text;
* speech: the recordings of the parts train and more;
* intent-train: requests of these parts and of the part requests; the text is the intent, and a
  document holds a few of them.

For `spirit-jax eval` (configs/tiny/eval.yaml), from held-out sentences:

* asr, asr-voice (the held-out voice), asr-real (Asterisk's held-out prompts whose words all occur
  in training) and tts (texts);
* intent, with its examples;
* manner: the first halves of recordings, labelled with their manner;
* pairs: sentences, and the same with one implausible word;
* answers: questions with the right answer and with a wrong one; facts: the same for questions that
  are trained on.

Pairs are spoken by flite. words.txt lists all words of the training data.
"""

import random
import re
from pathlib import Path

from corpora import grammar, speak
from corpora.grammar import Sentence
from corpora.world import Corpus
from spirit_jax import files
from spirit_jax.audio import SAMPLE_RATE, load_audio
from spirit_jax.cli.running import run
from spirit_jax.errors import InputError
from spirit_jax.files import lock

TEXTS = 20_000  # training sentences
SHOTS = 4  # requests in a document
PAIRS, FACTS = 120, 60  # at most: pairs of sentences; questions that are trained on
LEAST_WORDS = 6  # in a recording whose first half is a prompt
SEED = 0


def build(corpus: Path) -> None:
    """Writes the manifests; prints how many items each has.

    Args:
      corpus: folder of `corpora.world`.
    """
    output = corpus / "tasks"
    details = {row["id"]: row for row in _read(corpus / "details.jsonl")}

    def items(part: str) -> list[dict]:
        rows = _read(corpus / f"{part}.jsonl")
        return [row | {"audio": f"../{row['audio']}"} for row in rows]

    def intents(part: str) -> list[dict]:
        labels = {row["id"]: details[row["id"]].get("intent", "") for row in items(part)}
        return [row | {"label": labels[row["id"]]} for row in items(part) if labels[row["id"]]]

    trained = [*items("train"), *items("asterisk-train")]
    known = {word for row in trained for word in row["text"].split()}
    real = [row for row in items("asterisk-test") if known.issuperset(row["text"].split())]
    tests, rng = items("test"), random.Random(SEED)
    texts = sorted({row["text"] for row in tests})
    sentences = [s for s in grammar.sentences("test", len(texts)) if s.text in texts]
    requests = [*intents("train"), *intents("more"), *intents("requests")]
    sets = {
        "text": [
            {"id": f"text-{number}", "text": sentence.text}
            for number, sentence in enumerate(grammar.sentences("train", TEXTS))
        ],
        "questions": [
            {"id": f"question-{number}", "text": sentence.text}
            for number, sentence in enumerate(grammar.questions("train"))
        ],
        "speech": [*items("train"), *items("more")],
        "intent-train": [
            row | {"text": f"A:{row['label']}", "document": f"requests-{number // SHOTS}"}
            for number, row in enumerate(random.Random(SEED).sample(requests, len(requests)))
        ],
        "asr": tests,
        "asr-voice": items("test-voice"),
        "asr-real": real,
        "tts": [{"id": f"text-{n}", "text": text} for n, text in enumerate(texts)],
        "intent": intents("test"),
        "intent-examples": intents("train"),
        "manner": [_first_half(corpus, row) for row in tests
                   if row["speaker"] in speak.FLITE and len(row["words"]) >= LEAST_WORDS],
        "pairs": _speak_pairs(output, "pairs", swaps(sentences, rng)[:PAIRS]),
        "answers": _speak_pairs(output, "answers", wrong_answers("test", rng)),
        "facts": _speak_pairs(output, "facts", rng.sample(wrong_answers("train", rng), FACTS)),
    }  # fmt: skip
    for name, rows in sets.items():
        files.write_json_lines(output / f"{name}.jsonl", rows)
        print(f"{output / name}.jsonl: {len(rows)}")
    read = [*trained, *sets["text"], *sets["questions"], *sets["speech"]]
    words = sorted({word for row in read for word in row["text"].split()})
    files.write_text(output / "words.txt", "".join(f"{word}\n" for word in words))


def swaps(sentences: list[Sentence], rng: random.Random) -> list[tuple[str, str]]:
    """Sentences as they are spoken, each with a copy in which one word is implausible.

    The word is not the first. Its replacement is from another rule, and no rule accepts the copy.
    """
    lists = {
        name: [word for word in rule.split(" | ") if re.fullmatch("[a-z]+", word)]
        for name, rule in grammar.RULES.items()
    }
    lists = {name: words for name, words in lists.items() if len(words) > 2}
    pairs = []
    for sentence in rng.sample(sentences, len(sentences)):
        spoken = sentence.spoken.split()
        places = [
            (place, name, word)
            for place, word in enumerate(sentence.text.split())
            for name, words in lists.items()
            if place and word in words
        ]
        if not places:
            continue
        place, name, word = rng.choice(places)
        others = [word for other in lists for word in lists[other] if word not in lists[name]]
        spoken[place] = spoken[place].replace(word, rng.choice(others))
        wrong = " ".join(spoken)
        if not grammar.accepts(_text(wrong)):
            pairs.append((sentence.spoken, wrong))
    return pairs


def wrong_answers(part: str, rng: random.Random) -> list[tuple[str, str]]:
    """Questions of a part with their right answers and with wrong ones, as they are spoken.

    A wrong answer is the right answer to another question of the same form.
    """
    by_form: dict[str, list[tuple[str, str, str]]] = {}
    for question, frame, value in grammar.QUESTIONS:
        by_form.setdefault(" ".join(question.split()[:3]), []).append((question, frame, value))
    pairs = []
    for form in by_form.values():
        values = sorted({value for _, _, value in form})
        for question, frame, value in form:
            right, *wrong = (
                grammar.from_rule("question", f"{question} . {frame.format(choice)}")
                for choice in (value, *values)
            )
            wrong = [answer for answer in wrong if not grammar.accepts(answer.text)]
            if wrong and grammar.part_of(right.text) == part:
                pairs.append((right.spoken, rng.choice(wrong).spoken))
    return pairs


def _text(spoken: str) -> str:
    """The words of a sentence as it is spoken."""
    return re.sub("[,.?]", "", spoken).lower()


def _speak_pairs(output: Path, name: str, pairs: list[tuple[str, str]]) -> list[dict]:
    """Synthesises pairs; splits them into their common beginning (context) and two endings."""
    rows = []
    voices = list(speak.FLITE)
    for number, sides in enumerate(pairs):
        words = [_text(side).split() for side in sides]
        same = next(i for i, (a, b) in enumerate(zip(*words, strict=False)) if a != b)
        spoken = [speak.speak(side, voices[number % len(voices)], "neutral") for side in sides]
        if any(len(speech.words) != len(w) for speech, w in zip(spoken, words, strict=True)):
            continue  # flite expands a word into several: its word times are unknown
        cuts = [int(speech.words[same][1] * SAMPLE_RATE) for speech in spoken]
        parts = {
            "context": (words[0][:same], spoken[0].samples[: cuts[0]]),
            "right": (words[0][same:], spoken[0].samples[cuts[0] :]),
            "wrong": (words[1][same:], spoken[1].samples[cuts[1] :]),
        }
        row: dict = {"id": f"{name}-{number}"}
        for part, (part_words, samples) in parts.items():
            path = Path("audio") / f"{row['id']}-{part}.flac"
            speak.write_flac(output / path, samples)
            row[part] = {"text": " ".join(part_words), "audio": str(path)}
        rows.append(row)
    return rows


def _first_half(corpus: Path, row: dict) -> dict:
    """The recording up to its middle word, with its manner as the label."""
    half = len(row["words"]) // 2
    samples = load_audio(corpus / row["audio"].removeprefix("../"))
    samples = samples[: int(row["words"][half][1] * SAMPLE_RATE)]
    path = Path("audio") / "manner" / f"{row['id'].replace('/', '-')}.flac"
    speak.write_flac(corpus / "tasks" / path, samples)
    text = " ".join(word for word, _, _ in row["words"][:half])
    item = {"id": row["id"], "audio": str(path), "text": text}
    return item | {"speaker": row["speaker"], "style": row["style"], "label": row["style"]}


def _read(path: Path) -> list[dict]:
    if not path.is_file():
        raise InputError(f"{path}: is not there; build it by corpora.world.")
    return files.read_json_objects(path)


def main(corpus: Corpus) -> None:
    """Runs the command that the module's docstring describes."""
    _read(corpus / "details.jsonl")
    with lock.hold(corpus / "tasks", choice="corpus"):
        build(corpus)


if __name__ == "__main__":
    run(main)
