"""Evaluation by tasks: prompts from templates, what a model answers, and how right that is.

The paper's tasks (arXiv 2402.05755, sections 4.1 and 5.1) are settings of three fields: what a
prompt is made of (`ask`, after some `shots`), whether the answer is text or speech (`output`), and
whether its words or a label are compared. docs/evaluation.md has them.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from spirit_jax import markup, transcription
from spirit_jax.audio import SAMPLE_RATE, AudioPiece, write_wav
from spirit_jax.data.manifest import Item, read_source
from spirit_jax.data.speech import draw_items
from spirit_jax.errors import InputError
from spirit_jax.evaluation import scoring
from spirit_jax.evaluation.configs import TaskConfig
from spirit_jax.spiritlm import SpiritLM
from spirit_jax.vocab import Modality

BATCH = 32  # prompts that are answered at a time
SILENCE = np.zeros(SAMPLE_RATE // 2, np.float32)  # of a model that does not speak when asked to


def run_task(
    lm: SpiritLM,
    task: TaskConfig,
    folder: Path,
    hear: Callable[[Any], str],
    seed: int,
    console: Console,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Asks a model all of a task.

    Args:
      lm: the model.
      task: what to ask.
      folder: for the speech of answers.
      hear: the unit string of a recording; a `Hearing`.
      seed: of what is drawn.
      console: for progress bars.

    Returns:
      Figures by name, and a row for each item: what was wanted and what was given.

    Raises:
      InputError: a recording or judge that cannot be used. What `check_task` looks at is right.
    """
    items = _choose(task, seed)
    rows = [{"id": item.id, "wanted": _wanted(task, item)} for item in items]
    paths = [folder / f"{item.id}.wav" for item in items]
    prompts = list(
        track(
            _prompts(lm, task, items, hear, seed),
            f"{task.name}: prompts",
            total=len(items),
            console=console,
        )
    )
    given = _answer(lm, task, prompts, seed, console)
    if task.output == "speech":
        for row, path, wave in zip(rows, paths, given, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_wav(path, wave)
            row["spoken"] = str(path.relative_to(folder.parent))
        given = [str(path) for path in paths]
    if task.judge:
        with console.status(f"{task.name}: judging"):
            given = scoring.ask_judge(task.judge, given)
    for row, prompt, answer in zip(rows, prompts, given, strict=True):
        row |= {"given": answer, "prompt": prompt}
    wanted = [row["wanted"] for row in rows]
    if task.compare == "words":
        return scoring.error_rates(wanted, given, task.language), rows
    commonest = max(map(wanted.count, wanted)) / len(wanted)
    accuracy = scoring.accuracy(wanted, given, task.language)
    return {"accuracy": accuracy, "commonest": 100 * commonest}, rows


def check_task(lm: SpiritLM, task: TaskConfig, folder: Path, seed: int) -> None:
    """Raises an `InputError` for an item that lacks what a task needs, before anything is encoded.

    Args:
      lm, task, folder, seed: as of `run_task`.
    """
    items = _choose(task, seed)
    for item in items:
        _wanted(task, item)
        if not (folder / f"{item.id}.wav").resolve().is_relative_to(folder.resolve()):
            raise InputError(f"The id '{item.id}' leaves {folder}.")
    for _ in _prompts(lm, task, items, check_audio, seed):
        pass
    if task.judge:
        scoring.check_judge(task.judge)


def check_audio(audio: Any) -> str:
    """In place of a `Hearing`: raises `InputError` if there is no such file, and gives no units."""
    path = audio.path if isinstance(audio, AudioPiece) else audio
    if isinstance(path, str | Path) and not os.path.isfile(path):
        raise InputError(f"{path}: there is no such file.")
    return ""


class Hearing:
    """The unit strings of recordings, each encoded once."""

    def __init__(self, lm: SpiritLM):
        self._lm = lm
        self._known: dict[str | int, tuple[Any, str]] = {}  # what is held keeps its id

    def __call__(self, audio: Any) -> str:
        """The unit string of a recording."""
        key = str(audio) if isinstance(audio, str | Path) else id(audio)
        if key not in self._known:
            self._known[key] = audio, self._lm.speech_tokenizer.encode_string(audio)
        return self._known[key][1]


def fill(template: str, item: Item, hear: Callable[[Any], str], lm: SpiritLM) -> str:
    """A template with what an item has; text after a marker gets the tokenizer's usual space.

    Markers and units of the template are markup; what looks like them in an item's text or label
    is text.
    """

    def content_of(name: str) -> str:
        content = item.audio if name == "speech" else getattr(item, name)
        if content is None or isinstance(content, str) and not content:
            raise InputError(f"{item.id}: has no {name}, which the template {template!r} needs.")
        return hear(content) if name == "speech" else content

    return transcription.fill(template, content_of, lm.text_tokenizer)


def _choose(task: TaskConfig, seed: int) -> list[Item]:
    """The items that a task asks about."""
    return draw_items(_read(task.manifest, task), task.limit, seed)


def _prompts(
    lm: SpiritLM, task: TaskConfig, items: Sequence[Item], hear: Callable[[Any], str], seed: int
) -> Iterator[str]:
    """The prompt of each item: some examples of others, and what is asked."""
    known = _read(task.examples, task) if task.shots else []
    rng = np.random.default_rng(seed)
    for item in items:
        others = [other for other in known if other.id != item.id]
        if len(others) < task.shots:
            raise InputError(f"{task.examples}: has {len(others)} items, not {task.shots}.")
        shots = [others[i] for i in rng.choice(len(others), task.shots, replace=False)]
        examples = "".join(fill(task.shot, shot, hear, lm) for shot in shots)
        yield examples + fill(task.ask, item, hear, lm)


def _read(source: str, task: TaskConfig) -> list[Item]:
    items = list(read_source(source))
    for item in items:
        if item.problem:
            raise InputError(f"{item.id}: {item.problem}")
    chosen = [item for item in items if not task.speakers or item.speaker in task.speakers]
    if not chosen:
        raise InputError(f"{source}: has nothing by {', '.join(task.speakers)}.")
    return chosen


def _wanted(task: TaskConfig, item: Item) -> str:
    wanted = item.text if task.compare == "words" else item.label
    if not wanted:
        raise InputError(f"{item.id}: has no {task.compare} to compare an answer with.")
    return wanted


def _answer(
    lm: SpiritLM, task: TaskConfig, prompts: Sequence[str], seed: int, console: Console
) -> list[Any]:
    """Texts, or waves; of prompts of about the same length together."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, Any] = {}
    batches = [order[first : first + BATCH] for first in range(0, len(order), BATCH)]
    for number, batch in enumerate(track(batches, f"{task.name}: answers", console=console)):
        own = [prompts[i] for i in batch]
        drawn = (task.generation.seed + seed + number) % 2**32
        how = dataclasses.replace(task.generation, seed=drawn)
        modality = Modality.ARBITRARY if task.end == "[Speech]" else task.output
        ids = lm.generate_ids(own, modality, how)
        strings = [lm.text_tokenizer.decode_prompt(row) for row in ids]
        if task.output == "text":
            texts = [markup.show(s.split(task.end)[0] if task.end else s) for s in strings]
            found |= zip(batch, texts, strict=True)
            continue
        outputs = lm.decode_outputs(own, strings, task.voice or None, least=1)
        for i, pieces in zip(batch, outputs, strict=True):
            waves = [piece.content for piece in pieces if piece.content_type == "speech"]
            found[i] = np.concatenate(waves) if waves else SILENCE
    return [found[i] for i in range(len(prompts))]
