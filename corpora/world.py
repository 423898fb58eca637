"""A small world in recorded words: a corpus that anyone can rebuild, with word and phone times.

Sentences of `corpora.grammar`, spoken by flite's and espeak-ng's American voices in three manners,
and real recordings: Asterisk's prompts and clips of LibriVox. All of it comes from Debian and PyPI.

    sudo apt-get install flite espeak-ng ffmpeg pocketsphinx-testdata \\
        asterisk-core-sounds-en asterisk-core-sounds-en-g722
    pip install -e '.[corpora]'
    python -m corpora.world --output runs/world

Writes manifests for `spirit-jax prepare`, with audio/ beside them: train, more (three times as
many, for language models; two more voices say each sentence of kinds that have few), requests
(those of train and more, by four more voices), asked (their questions without the answers, by
four), valid, test (seen voices, new sentences), test-voice (a voice that is in no other part),
asterisk-train, asterisk-valid, asterisk-test, librivox-test, and reference (all that the parts for
train and valid say, by one voice in the neutral manner, whose sounds can be the aim of units).
details.jsonl holds what a manifest has no fields for, by id: kind, manner, intent, question,
answer, phones [[phone, start, end]]. pairs.jsonl lists test sentences that two voices say in one
manner; world.gram is the grammar of all sentences, in JSGF.
A build that was cut off goes on where it was.
"""

import argparse
import dataclasses
import functools
import hashlib
import itertools
import multiprocessing
import os
import random
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from pocketsphinx import Decoder
from rich import print as show
from rich.progress import track
from rich.table import Table

from corpora import asterisk, grammar, speak
from corpora.grammar import Sentence
from spirit_jax import files
from spirit_jax.audio import SAMPLE_RATE, load_audio
from spirit_jax.errors import InputError

LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")
UTTERANCES = 4000  # for training, by default; the other parts are sized for these
MORE = 9500  # besides, for language models, which need more of them than speech networks
FEW = ("request", "question", "spelling")  # kinds with few sentences, so two more voices say them
AGAIN = 4  # voices that say each request once more, and each question without its answer
VALID, SHARED, OTHERS, HELD_OUT = 150, 75, 90, 60
TESTS = "test", "test-voice", "asterisk-test", "librivox-test"
REFERENCE = "rms"  # the voice that says all sentences
DETAILS = ("kind", "manner", "intent", "question", "answer", "phones")


@dataclasses.dataclass(frozen=True)
class Task:
    """One utterance to make: a sentence in a voice and a manner, or a recording that is there."""

    part: str
    sentence: Sentence
    voice: str
    manner: str = ""
    recording: Path | None = None

    @property
    def id(self) -> str:
        """The same for the same utterance, so that a build can go on."""
        if self.recording:
            folder = asterisk.SOUNDS if asterisk.SOUNDS in self.recording.parents else LIBRIVOX
            return f"{self.voice}/{self.recording.relative_to(folder).with_suffix('')}"
        mark = hashlib.sha256(self.sentence.spoken.encode()).hexdigest()[:10]
        return f"{self.voice}/{self.manner}/{mark}"


def plan(utterances: int, prompts: Sequence[Sentence] = ()) -> list[Task]:
    """All that is to be spoken, for a number of training utterances.

    The reference says what they say, and the prompts.
    """

    def size(count: int) -> int:
        return max(1, round(count * utterances / UTTERANCES))

    tests = grammar.sentences("test", size(SHARED) + size(OTHERS))
    shared, others = tests[: size(SHARED)], tests[size(SHARED) :]
    train = grammar.sentences("train", utterances + size(MORE))
    train, more = train[:utterances], train[utterances:]
    valid = grammar.sentences("valid", size(VALID))
    tasks = share_out("valid", valid)
    for number, sentence in enumerate(shared):
        for place, voice in enumerate(speak.FLITE):
            if (number + place) % len(speak.FLITE):  # each by two voices
                tasks += [Task("test", sentence, voice, manner) for manner in speak.MANNERS]
    tasks += deal("test", others, list(speak.ESPEAK))
    tasks += deal("test-voice", shared[: size(HELD_OUT)], list(speak.HELD_OUT))
    said = {sentence.text: sentence for sentence in [*train, *valid, *prompts]}
    tasks += [Task("reference", sentence, REFERENCE, "neutral") for sentence in said.values()]
    few = [sentence for sentence in [*train, *more] if sentence.kind in FEW]
    for seed in range(2):
        more += random.Random(seed).sample(few, len(few))
    tasks += share_out("train", train)
    taken = {task.id for task in tasks if task.part == "train"}
    known = {sentence.text: sentence for sentence in [*train, *more]}.values()
    requests = [sentence for sentence in known if sentence.intent]
    asked = [Sentence(s.question, s.kind, f"{s.question}?") for s in known if s.question]
    again = share_out("more", more)
    for part, own in (("requests", requests), ("asked", asked)):
        rounds = [random.Random(seed).sample(own, len(own)) for seed in range(AGAIN)]
        again += share_out(part, [*itertools.chain(*rounds)])
    for task in again:
        if task.id not in taken:
            tasks.append(task)
            taken.add(task.id)
    return tasks


def share_out(part: str, sentences: list[Sentence]) -> list[Task]:
    """Two thirds to flite's voices, the rest to espeak-ng's."""
    rest = sentences[2::3]
    own = [sentence for number, sentence in enumerate(sentences) if number % 3 < 2]
    return deal(part, own, list(speak.FLITE)) + deal(part, rest, list(speak.ESPEAK))


def deal(part: str, sentences: list[Sentence], voices: list[str]) -> list[Task]:
    """To voices and manners in turn."""
    turns = itertools.cycle(itertools.product(speak.MANNERS, voices))
    return [Task(part, s, voice, manner) for s, (manner, voice) in zip(sentences, turns)]  # noqa: B905


def recordings() -> list[Task]:
    """Asterisk's prompts, not yet dealt to parts, and LibriVox's."""
    tasks = []
    for name, text in sorted(asterisk.read_texts().items()):
        path = asterisk.SOUNDS / f"{name}.g722"
        if path.is_file():
            tasks.append(Task("asterisk", Sentence(text, "prompt", text), "allison", "", path))
    if not LIBRIVOX.is_dir():
        raise InputError(f"{LIBRIVOX}: is not there; apt-get install pocketsphinx-testdata.")
    for line in files.read_text(LIBRIVOX / "transcription").splitlines():
        text, name = re.fullmatch(r"<s> (.*) </s> \((.*)\)", line).groups()
        path = LIBRIVOX / f"{name}.wav"
        sentence = Sentence(text, "book", text)
        tasks.append(Task("librivox-test", sentence, "librivox", "", path))
    return tasks


def make(folder: Path, task: Task) -> dict | None:
    """Writes an utterance's audio and times, unless they are there; None if it is not aligned."""
    path = folder / "audio" / f"{task.id}.flac"
    notes = path.with_suffix(".json")
    if not notes.is_file():
        if task.recording:
            read = asterisk.decode if task.recording.suffix == ".g722" else load_audio
            speech = speak.Speech(read(task.recording))
        else:
            speech = speak.speak(task.sentence.spoken, task.voice, task.manner)
        phones, words = speech.phones, speech.words
        if not words:
            phones, words = align(speech.samples, task.sentence.text)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        soundfile.write(part, speech.samples, SAMPLE_RATE, "PCM_16", format="FLAC")
        os.replace(part, path)
        found = {"seconds": len(speech.samples) / SAMPLE_RATE, "words": words, "phones": phones}
        files.write_json_lines(notes, [found])
    found = files.read_json(notes)
    if not found["words"]:
        return None
    known = {"id": task.id, "audio": f"audio/{task.id}.flac", "speaker": task.voice}
    known |= {"style": task.manner, "manner": task.manner, "part": task.part}
    return dataclasses.asdict(task.sentence) | known | found


def align(samples: np.ndarray, text: str) -> tuple[tuple, tuple]:
    """Phones and words with their times by pocketsphinx; empty where it does not find them."""
    decoder = _decoder()
    words = asterisk.align(decoder, samples, text)
    if not words:
        return (), ()
    decoder.set_alignment()
    decoder.start_utt()
    decoder.process_raw((samples * 32767).astype("<i2").tobytes(), full_utt=True)
    try:
        decoder.end_utt()
    except RuntimeError:  # the words' phones do not fit, and it goes on with the next utterance
        return (), words
    seconds, phones = len(samples) / SAMPLE_RATE, []
    for word in decoder.get_alignment() or ():
        for phone in word:
            start, end = phone.start / 100, min((phone.start + phone.duration) / 100, seconds)
            name = phone.name.lower() if phone.name.isalpha() and phone.name != "SIL" else "sil"
            phones.append((name, start, end))
    return tuple(phones), words


@functools.cache
def _decoder() -> Decoder:
    # Its best path may have words of one frame, which have no room for their phones' states.
    return Decoder(loglevel="FATAL", bestpath=False)


def _split_prompts(made: list[dict]) -> None:
    """Gives Asterisk's prompts their parts: a tenth for test, a twentieth for valid."""
    prompts = sorted((row for row in made if row["part"] == "asterisk"), key=lambda row: row["id"])
    for number, row in enumerate(prompts):
        part = {0: "test", 5: "valid", 10: "test"}.get(number % (2 * asterisk.TEST_EVERY), "train")
        row["part"] = f"asterisk-{part}"


def find_pairs(made: list[dict]) -> list[dict]:
    """Ids of test utterances of one sentence in one manner by two voices."""
    same = defaultdict(list)
    for row in made:
        if row["part"] in ("test", "test-voice"):
            same[row["text"], row["manner"]].append(row["id"])
    return [
        {"text": text, "manner": manner, "first": first, "second": second}
        for (text, manner), ids in same.items()
        for first, second in itertools.combinations(ids, 2)
    ]


def build(output: Path, utterances: int, jobs: int) -> None:
    """Builds the corpus; prints its minutes by part and voice."""
    real = recordings()
    tasks = real + plan(utterances, [task.sentence for task in real if task.part == "asterisk"])
    output.mkdir(parents=True, exist_ok=True)
    files.write_text(output / "world.gram", grammar.jsgf())
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        rows = pool.imap(functools.partial(make, output), tasks, chunksize=4)
        done = list(track(rows, "speaking", len(tasks), disable=not sys.stderr.isatty()))
    made = [row for row in done if row]
    _split_prompts(made)
    others = "reference", "more", "requests", "asked", *TESTS
    known = {row["text"] for row in made if row["part"] not in others}
    made = [row for row in made if row["part"] != "reference" or row["text"] in known]
    parts = defaultdict(list)
    for row in made:
        parts[row["part"]].append(row)
    fields = ("id", "audio", "text", "words", "speaker", "style")
    for part, own in parts.items():
        files.write_json_lines(
            output / f"{part}.jsonl", [{f: row[f] for f in fields if row[f]} for row in own]
        )
    details = {row["id"]: {f: row[f] for f in DETAILS if row[f]} for row in made}
    files.write_json_lines(
        output / "details.jsonl", [{"id": id} | fields for id, fields in details.items()]
    )
    files.write_json_lines(output / "pairs.jsonl", find_pairs(made))
    show(_table(parts))
    print(f"left out, since not every word is found in them: {done.count(None)} utterances")


def _table(parts: dict[str, list[dict]]) -> Table:
    """Minutes by part and voice; the seen voices of espeak-ng are one column."""
    spoken: dict[str, dict[str, float]] = {part: defaultdict(float) for part in parts}
    for part, own in parts.items():
        for row in own:
            seen = row["speaker"] in speak.ESPEAK
            voice = "espeak" if seen else row["speaker"].removeprefix("espeak-")
            spoken[part][voice] += row["seconds"] / 60
    voices = list(dict.fromkeys(voice for minutes in spoken.values() for voice in minutes))
    table = Table("minutes", *voices, "all", "count", box=None, pad_edge=False)
    for part, minutes in spoken.items():
        cells = [f"{minutes[voice]:.1f}" if voice in minutes else "" for voice in voices]
        table.add_row(part, *cells, f"{sum(minutes.values()):.1f}", str(len(parts[part])))
    return table


def main() -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__spec__.name}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--utterances", type=int, default=UTTERANCES, help="of training")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    given = parser.parse_args()
    try:
        if given.utterances < 1 or given.jobs < 1:
            raise InputError("--utterances and --jobs must be at least 1.")
        build(given.output, given.utterances, given.jobs)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
