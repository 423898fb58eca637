"""The corpus of the small world: reproducible speech with word and phone times.

Sentences of `corpora.grammar`, synthesised by flite's and espeak-ng's American voices in three
manners, and real recordings: Asterisk's prompts and clips of LibriVox. Needs only Debian and PyPI.

    sudo apt-get install flite espeak-ng ffmpeg pocketsphinx-testdata \\
        asterisk-core-sounds-en asterisk-core-sounds-en-g722
    pip install -e '.[corpora]'
    python -m corpora.world --output runs/world

Writes manifests for `spirit-jax prepare`, with audio/ beside them:

* train; more: three times as many, for language models (kinds of sentences with few members are
  spoken by two more voices);
* requests: the requests of train and more, by four more voices; asked: their questions without the
  answers, by four;
* valid; test: training voices, new sentences; test-voice: a voice that is in no other part;
* asterisk-train, asterisk-valid, asterisk-test, librivox-test: real recordings;
* reference: all sentences of the parts for training and validation by one speaker in the neutral
  manner, as reference-speaker targets for HuBERT.

details.jsonl holds, by id, what a manifest has no fields for: kind, manner, intent, question,
answer, phones [[phone, start, end]]. pairs.jsonl lists test sentences that two voices say in one
manner; world.gram is the grammar of all sentences, in JSGF. A build that was stopped resumes.
"""

import dataclasses
import functools
import hashlib
import itertools
import multiprocessing
import random
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from pocketsphinx import Decoder
from rich import print as show
from rich.progress import track
from rich.table import Table

from corpora import asterisk, grammar, speak
from corpora.grammar import Sentence
from spirit_jax import files
from spirit_jax.audio import SAMPLE_RATE, load_audio
from spirit_jax.cli.running import Output, run
from spirit_jax.errors import InputError
from spirit_jax.files import lock

Corpus = Annotated[Path, typer.Option(help="Folder of corpora.world")]
LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")
UTTERANCES = 4000  # of the part train by default; the other parts scale with it
MORE = 9500  # of the part more, since language models need more data than speech networks
FEW = ("request", "question", "spelling")  # kinds with few sentences: spoken by two more voices
AGAIN = 4  # voices in the parts requests and asked
VALID, SHARED, OTHERS, HELD_OUT = 150, 75, 90, 60
TESTS = "test", "test-voice", "asterisk-test", "librivox-test"
REFERENCE = "rms"  # the reference speaker
DETAILS = ("kind", "manner", "intent", "question", "answer", "phones")


@dataclasses.dataclass(frozen=True)
class Task:
    """An utterance to synthesise (a sentence, a voice and a manner), or a recording to read."""

    part: str
    sentence: Sentence
    voice: str
    manner: str = ""
    recording: Path | None = None

    @property
    def id(self) -> str:
        """Depends on the utterance alone, so that a build can resume."""
        if self.recording:
            folder = asterisk.SOUNDS if asterisk.SOUNDS in self.recording.parents else LIBRIVOX
            return f"{self.voice}/{self.recording.relative_to(folder).with_suffix('')}"
        digest = hashlib.sha256(self.sentence.spoken.encode()).hexdigest()[:10]
        return f"{self.voice}/{self.manner}/{digest}"


def plan(utterances: int, prompts: Sequence[Sentence] = ()) -> list[Task]:
    """All utterances to synthesise.

    Args:
      utterances: how many the part train has.
      prompts: sentences that the reference speaker says too.
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
    distinct = {sentence.text: sentence for sentence in [*train, *valid, *prompts]}
    tasks += [Task("reference", sentence, REFERENCE, "neutral") for sentence in distinct.values()]
    few = [sentence for sentence in [*train, *more] if sentence.kind in FEW]
    for seed in range(2):
        more += random.Random(seed).sample(few, len(few))
    tasks += share_out("train", train)
    taken = {task.id for task in tasks if task.part == "train"}
    known = {sentence.text: sentence for sentence in [*train, *more]}.values()
    requests = [sentence for sentence in known if sentence.intent]
    asked = [Sentence(s.question, s.kind, f"{s.question}?") for s in known if s.question]
    again = share_out("more", more)
    for part, group in (("requests", requests), ("asked", asked)):
        rounds = [random.Random(seed).sample(group, len(group)) for seed in range(AGAIN)]
        again += share_out(part, [*itertools.chain(*rounds)])
    for task in again:
        if task.id not in taken:
            tasks.append(task)
            taken.add(task.id)
    return tasks


def share_out(part: str, sentences: list[Sentence]) -> list[Task]:
    """Assigns two thirds of the sentences to flite's voices, the rest to espeak-ng's."""
    espeak = sentences[2::3]
    flite = [sentence for number, sentence in enumerate(sentences) if number % 3 < 2]
    return deal(part, flite, list(speak.FLITE)) + deal(part, espeak, list(speak.ESPEAK))


def deal(part: str, sentences: list[Sentence], voices: list[str]) -> list[Task]:
    """Assigns sentences to voices and manners in turn."""
    turns = itertools.cycle(itertools.product(speak.MANNERS, voices))
    return [Task(part, s, voice, manner) for s, (manner, voice) in zip(sentences, turns)]  # noqa: B905


def recordings() -> list[Task]:
    """Asterisk's prompts, not yet assigned to parts, and LibriVox's."""
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
    """Writes an utterance's audio and times, unless they exist; None if it cannot be aligned."""
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
        speak.write_flac(path, speech.samples)
        times = {"seconds": len(speech.samples) / SAMPLE_RATE, "words": words, "phones": phones}
        files.write_json_lines(notes, [times])
    times = files.read_json(notes)
    if not times["words"]:
        return None
    fields = {"id": task.id, "audio": f"audio/{task.id}.flac", "speaker": task.voice}
    fields |= {"style": task.manner, "manner": task.manner, "part": task.part}
    return dataclasses.asdict(task.sentence) | fields | times


def align(samples: np.ndarray, text: str) -> tuple[tuple, tuple]:
    """Phones and words with their times by pocketsphinx; empty if it cannot align them."""
    decoder = _decoder()
    words = asterisk.align(decoder, samples, text)
    if not words:
        return (), ()
    decoder.set_alignment()
    decoder.start_utt()
    decoder.process_raw((samples * 32767).astype("<i2").tobytes(), full_utt=True)
    try:
        decoder.end_utt()
    except RuntimeError:  # the phones do not fit the words; the decoder stays usable
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
    # The best path may have words of one frame, too short for the states of their phones.
    return Decoder(loglevel="FATAL", bestpath=False)


def _split_prompts(rows: list[dict]) -> None:
    """Assigns Asterisk's prompts to parts: a tenth for test, a twentieth for valid."""
    prompts = sorted((row for row in rows if row["part"] == "asterisk"), key=lambda row: row["id"])
    for number, row in enumerate(prompts):
        part = {0: "test", 5: "valid", 10: "test"}.get(number % (2 * asterisk.TEST_EVERY), "train")
        row["part"] = f"asterisk-{part}"


def find_pairs(rows: list[dict]) -> list[dict]:
    """Pairs of test utterances of one sentence in one manner by two voices, by their ids."""
    same = defaultdict(list)
    for row in rows:
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
        results = pool.imap(functools.partial(make, output), tasks, chunksize=4)
        results = list(track(results, "speaking", len(tasks), disable=not sys.stderr.isatty()))
    rows = [row for row in results if row]
    _split_prompts(rows)
    others = "reference", "more", "requests", "asked", *TESTS
    known = {row["text"] for row in rows if row["part"] not in others}
    rows = [row for row in rows if row["part"] != "reference" or row["text"] in known]
    parts = defaultdict(list)
    for row in rows:
        parts[row["part"]].append(row)
    fields = ("id", "audio", "text", "words", "speaker", "style")
    for part, members in parts.items():
        files.write_json_lines(
            output / f"{part}.jsonl", [{f: row[f] for f in fields if row[f]} for row in members]
        )
    details = {row["id"]: {f: row[f] for f in DETAILS if row[f]} for row in rows}
    files.write_json_lines(
        output / "details.jsonl", [{"id": id} | fields for id, fields in details.items()]
    )
    files.write_json_lines(output / "pairs.jsonl", find_pairs(rows))
    show(_table(parts))
    print(f"left out, since pocketsphinx could not align them: {results.count(None)} utterances")


def _table(parts: dict[str, list[dict]]) -> Table:
    """Minutes by part and voice; the training voices of espeak-ng are one column."""
    spoken: dict[str, dict[str, float]] = {part: defaultdict(float) for part in parts}
    for part, members in parts.items():
        for row in members:
            speaker = row["speaker"]
            voice = "espeak" if speaker in speak.ESPEAK else speaker.removeprefix("espeak-")
            spoken[part][voice] += row["seconds"] / 60
    voices = list(dict.fromkeys(voice for minutes in spoken.values() for voice in minutes))
    table = Table("minutes", *voices, "all", "count", box=None, pad_edge=False)
    for part, minutes in spoken.items():
        cells = [f"{minutes[voice]:.1f}" if voice in minutes else "" for voice in voices]
        table.add_row(part, *cells, f"{sum(minutes.values()):.1f}", str(len(parts[part])))
    return table


def main(
    output: Output,
    utterances: Annotated[int, typer.Option(help="Of training")] = UTTERANCES,
    jobs: Annotated[int, typer.Option(help="Processes")] = 2,
) -> None:
    """Runs the command that the module's docstring describes."""
    if utterances < 1 or jobs < 1:
        raise InputError("--utterances and --jobs must be at least 1.")
    with lock.hold(output, choice="output folder"):
        build(output, utterances, jobs)


if __name__ == "__main__":
    run(main)
