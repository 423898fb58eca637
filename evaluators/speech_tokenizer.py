"""Measure speech networks that were trained on the small world, on its test parts.

    python -m evaluators.speech_tokenizer --corpus runs/world --base runs/tiny/base \\
        --expressive runs/tiny/expressive --voice runs/tiny/with-voice \\
        --plain runs/tiny/hubert2/network

Prints each figure with its target, and ends with status 1 if one is missed. With --output, the
resynthesised test recordings and the figures (figures.json) are written there.
"""

import contextlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich import print as show
from rich.console import Console
from rich.progress import track
from rich.table import Table

from corpora import speak
from corpora.world import Corpus
from evaluators import phonetic_units, resynthesis
from evaluators.resynthesis import MannerClassifier, SpeechSample
from spirit_jax import files
from spirit_jax.audio import load_audio, write_wav
from spirit_jax.cli.running import run
from spirit_jax.data.manifest import Item
from spirit_jax.data.speech import read_items
from spirit_jax.errors import InputError
from spirit_jax.files import lock
from spirit_jax.speech_tokenizer import SpeechTokenizer
from spirit_jax.units import Units

CLASSIFIER_STRIDE = 8  # every eighth training recording of flite's voices fits the classifier
PHRASE = 3  # words from which a prompt is more than a name or a letter
PROMPT_ERRORS = {
    "word_errors": "word errors",
    "word_errors_of_phrases": f"word errors of {PHRASE} words or more",
}
ERRORS = Console(stderr=True)

Row = tuple[str, float, str, bool]  # name, value, target, whether it is met


def measure_units(corpus: Path, base: Path, plain: Path) -> tuple[dict, list[Row]]:
    """Phonetic units beside k-means baselines."""
    figures = phonetic_units.measure(corpus, base, plain)
    trained, clusters, spectral = (figures[name] for name in ("units", "kmeans", "mfcc"))
    rows = [
        (f"{figure}, {name}", value, "", True)
        for name, group in figures.items()
        for figure, value in group.items()
    ]
    gain = trained["phone_accuracy"] - spectral["phone_accuracy"]
    noise_ratio = trained["edits_in_noise"] / clusters["edits_in_noise"]
    voice_ratio = trained["same_sentence"] / trained["other_sentence"]
    rows += [
        ("points of phone accuracy over MFCC's", gain, "15 or more", gain >= 15),
        ("edits in noise over those of k-means", noise_ratio, "0.5 or less", noise_ratio <= 0.5),
        ("edits, same sentence over another", voice_ratio, "under 1", voice_ratio < 1),
    ]
    return figures, rows


def measure_resynthesis(
    corpus: Path, base: Path, expressive: Path, output: Path | None
) -> tuple[dict, list[Row]]:
    """Word errors, F0, manner and durations of resynthesised test recordings of flite's voices.

    Args:
      corpus: folder of `corpora.world`.
      base, expressive: folders of speech tokenizers.
      output: folder for the resynthesised recordings, or None.

    Returns:
      figures: by name ("originals", "base", "expressive").
      rows: of the table.
    """
    grammar = corpus / "world.gram"
    items = [
        item for item in read_items([str(corpus / "test.jsonl")]) if item.speaker in speak.FLITE
    ]
    training = read_items([str(corpus / "train.jsonl")])
    training = [item for item in training if item.speaker in speak.FLITE][::CLASSIFIER_STRIDE]
    originals = _find_f0([_sample(item, load_audio(item.audio)) for item in items])
    classifier = MannerClassifier(_find_f0([_sample(i, load_audio(i.audio)) for i in training]))
    figures = {"originals": {"manner_accuracy": classifier.accuracy(originals)}}
    figures["originals"] |= _word_errors(originals, grammar)
    for name, folder in (("base", base), ("expressive", expressive)):
        encoded, samples = resynthesise(folder, items)
        samples = _find_f0(samples)
        figures[name] = _word_errors(samples, grammar)
        figures[name] |= resynthesis.f0_figures(originals, samples)
        figures[name]["manner_accuracy"] = classifier.accuracy(samples)
        voices = [item.speaker for item in items]
        figures[name] |= resynthesis.duration_figures(folder, encoded, voices)
        if output:
            for item, sample in zip(items, samples, strict=True):
                write_wav(output / name / f"{item.id}.wav", sample.samples)
    return figures, _resynthesis_rows(figures)


def _resynthesis_rows(figures: dict[str, dict[str, float]]) -> list[Row]:
    rows = [
        (f"{figure}, {name}", value, "", True)
        for name, group in figures.items()
        for figure, value in group.items()
    ]
    for name in ("base", "expressive"):
        for voice in speak.FLITE:
            errors = figures[name][f"word_errors_{voice}"]
            most = allowed_errors(figures["originals"][f"word_errors_{voice}"])
            target = f"{most:.1f} or less"
            rows.append((f"word errors, {voice}, {name}", errors, target, errors <= most))
        correlation, pace = (figures[name][key] for key in ("duration_correlation", "pace"))
        met = correlation > 0.3
        rows.append((f"correlation of durations, {name}", correlation, "above 0.3", met))
        rows.append((f"pace from strings, {name}", pace, "0.95 to 1.05", 0.95 <= pace <= 1.05))
    correlation = figures["expressive"]["f0_correlation"]
    rows.append(("F0 correlation, expressive", correlation, "above 0.8", correlation > 0.8))
    ratio = figures["expressive"]["f0_frame_error"] / figures["base"]["f0_frame_error"]
    rows.append(("F0 frame error over Base's", ratio, "under 0.5", ratio < 0.5))
    gain = figures["expressive"]["manner_accuracy"] - figures["base"]["manner_accuracy"]
    rows.append(("points of manner over Base's", gain, "25 or more", gain >= 25))
    return rows


def measure_voice(corpus: Path, voice: Path, output: Path | None) -> tuple[dict, list[Row]]:
    """Word errors of held-out prompts in a fine-tuned voice; the grammar lists all prompts.

    Args:
      corpus: folder of `corpora.world`.
      voice: folder of a speech tokenizer whose vocoder was trained on the prompts.
      output: folder for the resynthesised prompts, or None.

    Returns:
      figures: by name ("originals", "voice").
      rows: of the table.
    """
    items = read_items([str(corpus / "asterisk-test.jsonl")])
    prompts = [
        item.text
        for part in ("train", "valid", "test")
        for item in read_items([str(corpus / f"asterisk-{part}.jsonl")])
    ]
    _, resynthesised = resynthesise(voice, items)
    originals = [_sample(item, load_audio(item.audio)) for item in items]
    with tempfile.TemporaryDirectory() as folder:
        grammar = Path(folder) / "prompts.gram"
        files.write_text(grammar, resynthesis.sentence_grammar(prompts))
        figures = {
            name: _prompt_errors(samples, _recognise(samples, grammar))
            for name, samples in (("originals", originals), ("voice", resynthesised))
        }
    if output:
        for item, sample in zip(items, resynthesised, strict=True):
            write_wav(output / "voice" / f"{item.id}.wav", sample.samples)
    rows = []
    for name, title in PROMPT_ERRORS.items():
        errors = figures["voice"][name]
        rows.append((f"{title}, prompts as recorded", figures["originals"][name], "", True))
        # No target for all prompts: a single letter has no context to be recognised by.
        target = ("10 or less", errors <= 10) if name == "word_errors_of_phrases" else ("", True)
        rows.append((f"{title}, prompts in the new voice", errors, *target))
    return figures, rows


def _prompt_errors(
    samples: Sequence[SpeechSample], recognised: list[list[str]]
) -> dict[str, float]:
    phrases = [n for n, sample in enumerate(samples) if len(sample.text.split()) >= PHRASE]
    return {
        "word_errors": resynthesis.word_error_rate(samples, recognised),
        "word_errors_of_phrases": resynthesis.word_error_rate(
            [samples[number] for number in phrases], [recognised[number] for number in phrases]
        ),
    }


def allowed_errors(original: float) -> float:
    """The highest word error rate of resynthesis that meets the target, in percent.

    Args:
      original: the word error rate of the recordings, in percent.
    """
    return max(1.3 * original, original + 2)


def resynthesise(folder: Path, items: Sequence[Item]) -> tuple[list[Units], list[SpeechSample]]:
    """The units of recordings, and the speech decoded from them by speaker and true durations."""
    tokenizer = SpeechTokenizer.from_pretrained(folder)
    encoded = tokenizer.encode_batch([item.audio for item in items])
    pairs = track(zip(items, encoded, strict=True), "Speaking", len(items), console=ERRORS)
    return encoded, [
        _sample(item, tokenizer.decode(units, speaker_id=item.speaker)) for item, units in pairs
    ]


def _sample(item: Item, samples: np.ndarray) -> SpeechSample:
    return SpeechSample(samples, item.text, item.speaker, item.style)


def _find_f0(samples: Sequence[SpeechSample]) -> list[SpeechSample]:
    return resynthesis.in_processes(resynthesis.with_f0, samples, "Finding F0")


def _recognise(samples: Sequence[SpeechSample], grammar: Path) -> list[list[str]]:
    return resynthesis.in_processes(resynthesis.recogniser(grammar), samples, "Recognising words")


def _word_errors(samples: Sequence[SpeechSample], grammar: Path) -> dict[str, float]:
    recognised = _recognise(samples, grammar)
    errors = {}
    for voice in speak.FLITE:
        of_voice = [number for number, sample in enumerate(samples) if sample.speaker == voice]
        errors[f"word_errors_{voice}"] = resynthesis.word_error_rate(
            [samples[number] for number in of_voice], [recognised[number] for number in of_voice]
        )
    return errors


def _measure(
    corpus: Path,
    base: Path | None,
    expressive: Path | None,
    voice: Path | None,
    plain: Path | None,
    output: Path | None,
) -> list[tuple[str, tuple]]:
    """(name, its figures and rows) of every part; the arguments are those of `main`."""
    parts = []
    if plain:
        parts.append(("units", measure_units(corpus, base, plain)))
    if expressive:
        parts.append(("resynthesis", measure_resynthesis(corpus, base, expressive, output)))
    if voice:
        parts.append(("voice", measure_voice(corpus, voice, output)))
    return parts


def main(
    corpus: Corpus,
    base: Annotated[Path | None, typer.Option(help="A Base speech tokenizer")] = None,
    expressive: Annotated[Path | None, typer.Option(help="An Expressive speech tokenizer")] = None,
    voice: Annotated[
        Path | None, typer.Option(help="One whose vocoder was trained on the prompts")
    ] = None,
    plain: Annotated[
        Path | None, typer.Option(help="Encoder and k-means before the quantizer")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for audio and figures")] = None,
) -> None:
    """Runs the command that the module's docstring describes."""
    needs_base = bool(plain or expressive)
    if bool(base) != needs_base or not (base or voice):
        raise InputError("Give --base with --plain or --expressive, or --voice, or all.")
    with contextlib.ExitStack() as stack:
        if output:
            stack.enter_context(lock.hold(output, choice="output folder"))
        parts = _measure(corpus, base, expressive, voice, plain, output)
        if output:
            files.write_json(output / "figures.json", {name: part for name, (part, _) in parts})
    table = Table("figure", "value", "target", "met", box=None, pad_edge=False)
    for _, (_, rows) in parts:
        for name, value, target, met in rows:
            table.add_row(name, f"{value:.3g}", target, ("yes" if met else "NO") if target else "")
    show(table)
    if not all(met for _, (_, rows) in parts for *_, met in rows):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
