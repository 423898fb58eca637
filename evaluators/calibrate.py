"""Calibrate the scores from which a transcript of the small world's models counts as understood.

    python -m evaluators.calibrate spirit-tiny-base --output runs/calibration

Synthesises sentences of the small world and out-of-domain sentences (other_sentences.txt) in the
same voices and manners, generates sounds without words, and transcribes all of them. Two thresholds
are chosen, each the lowest that rejects nearly all of one group:

* the mean log probability of a transcript's tokens rejects the out-of-domain sentences;
* the mean log probability of the recording's units after the transcript rejects the sounds.

The shortest recording whose transcript is accepted is half as long as the shortest sentence of the
small world, since people may speak faster and without silence around it.

The thresholds are chosen on half of the out-of-domain sentences and one draw of sounds. The figures
are of the other half, another draw, new sentences of the small world, a voice that no network was
trained on, and segments of a novel read by a person (pocketsphinx-testdata). Writes
transcripts.jsonl and transcription.json to OUTPUT/MODEL; with --store, the latter to the model's
folder too. Needs the same programs and packages as corpora.world.
"""

import dataclasses
import functools
import itertools
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import typer
from rich import print as show
from rich.progress import track
from rich.table import Table

from corpora import grammar, speak, world
from spirit_jax import config, files, model_folder, transcription
from spirit_jax.audio import SAMPLE_RATE, load_audio
from spirit_jax.cli.options import ModelDir
from spirit_jax.cli.running import Output, run
from spirit_jax.evaluation.scoring import error_rates
from spirit_jax.files import lock
from spirit_jax.spiritlm import SpiritLM
from spirit_jax.transcription import Transcript, TranscriptionConfig

PROMPT, READ_ALOUD = "[Speech]{speech}[Text]T:", "[Text]T: {text}[Speech]"  # of configs/tiny
VALID, TEST, NEW_VOICE = 150, 120, 60  # sentences of the small world
OTHER = Path(__file__).with_name("other_sentences.txt")  # out of domain
SOUNDS = 60  # without words, in each draw
PIECE = 4.0  # seconds of a segment of the novel
REJECTED = 0.98  # share of a group that a threshold rejects
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Case:
    """A recording to transcribe.

    Attributes:
      group: valid, other-valid and sounds-valid choose thresholds; the others give the figures.
      text: the reference transcript; "" where it is unknown or there are no words.
      audio: a file, or samples at 16 kHz.
    """

    group: str
    text: str
    audio: Path | np.ndarray


def spoken(folder: Path) -> list[Case]:
    """Synthesised sentences of the small world and of other domains; existing files are reused."""
    tasks = []
    for part, count in (("valid", VALID), ("test", TEST)):
        tasks += world.share_out(part, grammar.sentences(part, count))
    tasks += world.deal("new voice", grammar.sentences("test", NEW_VOICE), list(speak.HELD_OUT))
    others = OTHER.read_text(encoding="utf-8").splitlines()
    turns = itertools.cycle(itertools.product(speak.MANNERS, speak.VOICES))
    for text, _ in itertools.product(others, range(2)):  # each twice
        manner, voice = next(turns)
        part = "other-valid" if others.index(text) % 2 else "other"
        sentence = grammar.Sentence(text, "other", f"{text}.")
        tasks.append(world.Task(part, sentence, voice, manner))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        paths = pool.imap(functools.partial(_speak, folder), tasks, chunksize=4)
        paths = list(track(paths, "speaking", len(tasks), disable=not sys.stderr.isatty()))
    return [Case(t.part, t.sentence.text, path) for t, path in zip(tasks, paths, strict=True)]


def _speak(folder: Path, task: world.Task) -> Path:
    path = folder / f"{task.id}.flac"
    if not path.is_file():
        speech = speak.speak(task.sentence.spoken, task.voice, task.manner)
        speak.write_flac(path, speech.samples)
    return path


def novel() -> Iterator[Case]:
    """Segments of readings of a novel, without reference transcripts."""
    for task in world.recordings():
        if task.voice == "librivox":
            wave, size = load_audio(task.recording), int(PIECE * SAMPLE_RATE)
            for start in range(0, len(wave) - size + 1, size):
                yield Case("novel", "", wave[start : start + size])


def sounds(group: str, seed: int) -> Iterator[Case]:
    """Changing sounds without words: bursts of noise, beeps, clicks, chords and sirens."""
    rng = np.random.default_rng(seed)
    for number in range(SOUNDS):
        t = np.arange(int(rng.uniform(0.5, 4) * SAMPLE_RATE)) / SAMPLE_RATE
        steps = rng.integers(0, 8, int(t[-1] * rng.uniform(1, 8)) + 2)
        step_t = steps[(t / t[-1] * (len(steps) - 1e-6)).clip(0, len(steps) - 1).astype(int)]
        hertz = rng.uniform(150, 800)
        noise = rng.standard_normal(len(t))
        clicks = np.where(rng.uniform(size=len(t)) < rng.uniform(2, 20) / SAMPLE_RATE, 1.0, 0.0)
        chord = sum(np.sin(2 * np.pi * hertz * f * 2 ** (step_t / 12) * t) for f in (1, 1.26, 1.5))
        kinds = (
            noise * (step_t % 2),
            np.sin(2 * np.pi * hertz * t) * (step_t % 2),
            np.convolve(clicks, np.exp(-np.arange(400) / rng.uniform(5, 80)), mode="same"),
            chord * np.exp(-(t * len(steps) / t[-1] % 1) * 3),
            np.sin(2 * np.pi * hertz * (t + 0.3 * np.sin(2 * np.pi * t) / np.pi)) * (0.3 + step_t),
        )
        wave = kinds[number % len(kinds)]
        wave = 0.3 * wave / max(1e-9, np.abs(wave).max()) + 3e-4 * noise
        yield Case(group, "", wave.astype(np.float32))


def steady() -> Iterator[Case]:
    """Stationary sounds: silence, noise of three colours at five levels, and hum."""
    rng = np.random.default_rng(0)
    for slope, level in itertools.product((0.0, 0.5, 1.0), (1e-4, 1e-3, 1e-2, 0.1, 0.3)):
        spectrum = np.fft.rfft(rng.standard_normal(2 * SAMPLE_RATE))
        spectrum /= np.maximum(np.arange(len(spectrum)), 40) ** slope
        wave = np.fft.irfft(spectrum)
        yield Case("steady", "", (level * wave / wave.std()).astype(np.float32).clip(-1, 1))
    t = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    yield Case("steady", "", (0.1 * np.sin(2 * np.pi * 50 * t)).astype(np.float32))
    yield Case("steady", "", np.zeros(SAMPLE_RATE, np.float32))


def choose(cases: list[Case], transcripts: list[Transcript], score: str, rejected: str) -> float:
    """The lowest threshold of a score that rejects `REJECTED` of the group of that name."""
    members = [
        getattr(transcript, score)
        for case, transcript in zip(cases, transcripts, strict=True)
        if case.group == rejected and transcript.has_speech
    ]
    return round(float(np.quantile(members, REJECTED)), 3)


def figures(cases: list[Case], transcripts: list[Transcript]) -> dict[str, float]:
    """Percent of each group that counts as understood, and the word error rates."""
    percent = {}
    for group in dict.fromkeys(case.group for case in cases):
        members = [(c, t) for c, t in zip(cases, transcripts, strict=True) if c.group == group]
        understood = [(c, t) for c, t in members if t.understood]
        percent[f"{group}: understood"] = 100 * len(understood) / len(members)
        if group in ("steady", "sounds"):
            percent[f"{group}: nothing said"] = (
                100 * sum(not t.has_speech for _, t in members) / len(members)
            )
        if members[0][0].text and not group.startswith("other"):
            right = [t.text == c.text for c, t in members]
            wrong = [t.understood for (_, t), good in zip(members, right, strict=True) if not good]
            percent[f"{group}: right"] = 100 * sum(right) / len(members)
            good = [t.understood for (_, t), good in zip(members, right, strict=True) if good]
            percent[f"{group}: right ones understood"] = 100 * sum(good) / max(1, len(good))
            percent[f"{group}: wrong ones understood"] = 100 * sum(wrong) / max(1, len(wrong))
            for name, pairs in (("all", members), ("what is understood", understood)):
                texts = [c.text for c, _ in pairs], [t.text for _, t in pairs]
                percent[f"{group}: word errors of {name}"] = error_rates(*texts)["wer"]
    return {name: round(value, 1) for name, value in percent.items()}


def calibrate(model: str | Path, output: Path) -> TranscriptionConfig:
    """Chooses the thresholds of a model; prints the figures and writes all transcripts."""
    cases = [*spoken(output / "audio"), *novel(), *steady()]
    cases += [*sounds("sounds-valid", 0), *sounds("sounds", 1)]
    lm = SpiritLM.from_pretrained(model)
    shortest = min(soundfile.info(case.audio).duration for case in cases if case.group == "valid")
    settings = TranscriptionConfig(
        PROMPT, read_aloud=READ_ALOUD, min_seconds=round(shortest / 2, 2)
    )
    transcripts: list[Transcript] = []
    for first in track(range(0, len(cases), BATCH), disable=not sys.stderr.isatty()):
        batch = [case.audio for case in cases[first : first + BATCH]]
        transcripts += transcription.transcribe(lm, settings, batch)
    settings = dataclasses.replace(
        settings,
        min_log_prob=choose(cases, transcripts, "log_prob", "other-valid"),
        min_read_aloud=choose(cases, transcripts, "read_aloud", "sounds-valid"),
        command=f"python -m evaluators.calibrate {Path(model).name}",
    )
    transcripts = [
        transcription.apply_thresholds(settings, transcript) for transcript in transcripts
    ]
    settings = dataclasses.replace(settings, figures=figures(cases, transcripts))
    folder = output / Path(model).name
    rows = [
        {"group": c.group, "reference": c.text} | dataclasses.asdict(t)
        for c, t in zip(cases, transcripts, strict=True)
    ]
    files.write_json_lines(folder / "transcripts.jsonl", rows)
    config.write(settings, folder / transcription.CONFIG_NAME)
    table = Table("recordings", "figure", "percent", box=None, pad_edge=False)
    for name, value in settings.figures.items():
        table.add_row(*name.split(": "), f"{value:.1f}")
    show(table)
    print(f"understood from {settings.min_log_prob} and {settings.min_read_aloud} on")
    return settings


def main(
    model: ModelDir,
    output: Output,
    store: Annotated[bool, typer.Option("--store", help="In the model's folder too")] = False,
) -> None:
    """Runs the command that the module's docstring describes."""
    with lock.hold(output, choice="output folder"):
        settings = calibrate(model, output)
    if store:
        path = model_folder.find_model(model) / transcription.CONFIG_NAME
        config.write(settings, path)
        print(f"{path}: written")


if __name__ == "__main__":
    run(main)
