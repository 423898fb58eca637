"""Evaluation by tasks: prompts from templates, generated answers, and their scores.

The tasks of the paper (arXiv 2402.05755, sections 4.1 and 5.1) are settings of three fields: the
prompt template (`ask`, after some `shots`), the modality of the answer (`output`), and whether
words or labels are compared (`compare`). docs/eval.md lists them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from spirit_jax import files, markup, transcription
from spirit_jax.audio import SAMPLE_RATE, AudioPiece, write_wav
from spirit_jax.data.manifest import Item, read_source
from spirit_jax.data.speech import draw_items
from spirit_jax.errors import InputError
from spirit_jax.evaluation import scoring
from spirit_jax.evaluation.configs import TaskConfig, check_judge
from spirit_jax.spiritlm import SpiritLM
from spirit_jax.vocab import Modality

BATCH = 32  # prompts
SILENCE = np.zeros(SAMPLE_RATE // 2, np.float32)  # the answer if no speech is generated


def run_task(
    lm: SpiritLM,
    task: TaskConfig,
    folder: Path,
    encode: Callable[[Any], str],
    seed: int,
    console: Console,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Generates and scores the answers of a task.

    Args:
      lm: the model.
      task: prompts and comparison; `check_task` has accepted it.
      folder: for WAV files of answers.
      encode: recording to unit string; a `UnitStrings`.
      seed: random seed of items, examples and sampling.
      console: for progress bars.

    Returns:
      (scores by name, a row for each item with its prompt, reference and answer).

    Raises:
      InputError: a recording or the judge cannot be used.
    """
    items = _draw_items(task, seed)
    rows = [{"id": item.id, "wanted": _reference(task, item)} for item in items]
    paths = [folder / f"{item.id}.wav" for item in items]
    prompts = list(
        track(
            _prompts(lm, task, items, encode, seed),
            f"{task.name}: prompts",
            total=len(items),
            console=console,
        )
    )
    answers = _answer(lm, task, prompts, seed, console)
    if task.output == "speech":
        for row, path, wave in zip(rows, paths, answers, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_wav(path, wave)
            row["spoken"] = str(path.relative_to(folder.parent))
        answers = [str(path) for path in paths]
    if task.judge:
        with console.status(f"{task.name}: judging"):
            answers = scoring.ask_judge(task.judge, answers)
    for row, prompt, answer in zip(rows, prompts, answers, strict=True):
        row |= {"given": answer, "prompt": prompt}
    references = [row["wanted"] for row in rows]
    if task.compare == "words":
        return scoring.error_rates(references, answers, task.language), rows
    commonest = max(map(references.count, references)) / len(references)
    accuracy = scoring.accuracy(references, answers, task.language)
    return {"accuracy": accuracy, "commonest": 100 * commonest}, rows


def check_task(lm: SpiritLM, task: TaskConfig, folder: Path, seed: int) -> None:
    """Checks all items of a task before anything is encoded.

    Args:
      lm: see `run_task`.
      task: see `run_task`.
      folder: see `run_task`.
      seed: see `run_task`.

    Raises:
      InputError: an item lacks what the task needs, or the judge does not exist.
    """
    items = _draw_items(task, seed)
    for item in items:
        _reference(task, item)
        if not (folder / f"{item.id}.wav").resolve().is_relative_to(folder.resolve()):
            raise InputError(f"The id '{item.id}' is a path outside {folder}.")
    for _ in _prompts(lm, task, items, check_audio, seed):
        pass
    if task.judge:
        check_judge(task.judge)
        if files.is_bucket(folder):
            raise InputError(f"{folder}: a judge reads local files; give a local output folder.")


def check_audio(audio: Any) -> str:
    """In place of `UnitStrings`: returns "", and raises `InputError` if the file does not exist."""
    path = audio.path if isinstance(audio, AudioPiece) else audio
    if isinstance(path, str | Path) and not files.is_file(path):
        raise InputError(f"{path}: there is no such file.")
    return ""


class UnitStrings:
    """Encodes recordings to unit strings, with a cache."""

    def __init__(self, lm: SpiritLM):
        self._lm = lm
        # The cache holds the audio object too, so that its `id` is not reused.
        self._cache: dict[str | int, tuple[Any, str]] = {}

    def __call__(self, audio: Any) -> str:
        """The unit string of a recording."""
        key = str(audio) if isinstance(audio, str | Path) else id(audio)
        if key not in self._cache:
            self._cache[key] = audio, self._lm.speech_tokenizer.encode_string(audio)
        return self._cache[key][1]


def fill(template: str, item: Item, encode: Callable[[Any], str], lm: SpiritLM) -> str:
    """Fills in a template with the fields of an item; see `transcription.fill`.

    Args:
      template: a prompt string with the placeholders {speech}, {text} and {label}.
      item: has the content; its text and label are escaped.
      encode: recording to unit string.
      lm: the model.

    Returns:
      The prompt string.

    Raises:
      InputError: the item lacks a field that the template needs.
    """

    def content_of(name: str) -> str:
        content = item.audio if name == "speech" else getattr(item, name)
        if content is None or isinstance(content, str) and not content:
            raise InputError(f"{item.id}: has no {name}, which the template {template!r} needs.")
        return encode(content) if name == "speech" else content

    return transcription.fill(template, content_of, lm.text_tokenizer)


def _draw_items(task: TaskConfig, seed: int) -> list[Item]:
    """The items of a task."""
    return draw_items(_read(task.manifest, task), task.limit, seed)


def _prompts(
    lm: SpiritLM, task: TaskConfig, items: Sequence[Item], encode: Callable[[Any], str], seed: int
) -> Iterator[str]:
    """The prompt of each item: examples from other items, and the template `ask`."""
    all_examples = _read(task.examples, task) if task.shots else []
    rng = np.random.default_rng(seed)
    for item in items:
        candidates = [example for example in all_examples if example.id != item.id]
        if len(candidates) < task.shots:
            raise InputError(f"{task.examples}: has {len(candidates)} items, not {task.shots}.")
        shots = [candidates[i] for i in rng.choice(len(candidates), task.shots, replace=False)]
        examples = [fill(task.shot, shot, encode, lm) for shot in shots]
        yield lm.vocab.markup.join([*examples, fill(task.ask, item, encode, lm)])


def _read(source: str, task: TaskConfig) -> list[Item]:
    items = list(read_source(source))
    for item in items:
        if item.problem:
            raise InputError(f"{item.id}: {item.problem}")
    items = [item for item in items if not task.speakers or item.speaker in task.speakers]
    if not items:
        raise InputError(f"{source}: has no items of {', '.join(task.speakers)}.")
    return items


def _reference(task: TaskConfig, item: Item) -> str:
    reference = item.text if task.compare == "words" else item.label
    if not reference:
        raise InputError(f"{item.id}: has no {task.compare} to compare an answer with.")
    return reference


def _answer(
    lm: SpiritLM, task: TaskConfig, prompts: Sequence[str], seed: int, console: Console
) -> list[Any]:
    """The answers: texts, or float32 (t,) samples. Prompts of similar length form a batch."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, Any] = {}
    batches = [order[first : first + BATCH] for first in range(0, len(order), BATCH)]
    for number, batch in enumerate(track(batches, f"{task.name}: answers", console=console)):
        batch_prompts = [prompts[i] for i in batch]
        batch_seed = (task.generation.seed + seed + number) % 2**32
        generation = dataclasses.replace(task.generation, seed=batch_seed)
        modality = Modality.ARBITRARY if task.end == "[Speech]" else task.output
        ids = lm.generate_ids(batch_prompts, modality, generation)
        strings = [lm.text_tokenizer.decode_prompt(row) for row in ids]
        if task.output == "text":
            texts = [_cut(s, task.end, lm.vocab.markup) for s in strings]
            answers |= zip(batch, texts, strict=True)
            continue
        outputs = lm.decode_outputs(batch_prompts, strings, task.voice or None, least=1)
        for i, pieces in zip(batch, outputs, strict=True):
            waves = [piece.content for piece in pieces if piece.content_type == "speech"]
            answers[i] = np.concatenate(waves) if waves else SILENCE
    return [answers[i] for i in range(len(prompts))]


def _cut(string: str, end: str, notation: markup.Markup) -> str:
    """A generated prompt string up to a string or a marker, for display."""
    if end == markup.NAMES["speech"]:
        end = notation.name_of(end)
    return notation.show(string.split(end)[0] if end else string)
