"""Prints how good speech networks are that were trained on the small world, on its test parts.

    python -m corpora.evaluate --corpus runs/world --base runs/tiny/base \\
        --expressive runs/tiny/expressive --voice runs/tiny/with-voice \\
        --plain runs/tiny/units2/network

Each figure has its aim beside it, and the command ends with status 1 where one is missed. With
--output, the resynthesised test recordings and the figures (figures.json) are kept.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import print as show
from rich.console import Console
from rich.progress import track
from rich.table import Table

from corpora import judge_speech, judge_units, speak
from corpora.judge_speech import MannerClassifier, Sound
from spirit_jax import files
from spirit_jax.audio import load_audio, write_wav
from spirit_jax.data.manifest import Item
from spirit_jax.data.speech import read_items
from spirit_jax.errors import InputError
from spirit_jax.speech_tokenizer import SpeechTokenizer
from spirit_jax.units import Units

CLASSIFIER_SHARE = 8  # every so many training recordings of flite's voices are for the classifier
PHRASE = 3  # words of a prompt that is more than a name or a letter
PROMPT_ERRORS = {
    "word_errors": "word errors",
    "word_errors_of_phrases": f"word errors of {PHRASE} words or more",
}
ERRORS = Console(stderr=True)

Row = tuple[str, float, str, bool]  # what, how much, the aim, whether it is met


def judge_phonetic(corpus: Path, base: Path, plain: Path) -> tuple[dict, list[Row]]:
    """Units beside k-means."""
    found = judge_units.judge(corpus, base, plain)
    own, clusters, spectral = (found[name] for name in ("units", "kmeans", "mfcc"))
    rows = [
        (f"{figure}, {name}", value, "", True)
        for name, figures in found.items()
        for figure, value in figures.items()
    ]
    gain = own["phone_accuracy"] - spectral["phone_accuracy"]
    less = own["edits_in_noise"] / clusters["edits_in_noise"]
    nearer = own["same_sentence"] / own["other_sentence"]
    rows += [
        ("points of phone accuracy over MFCC's", gain, "15 or more", gain >= 15),
        ("edits in noise over those of k-means", less, "0.5 or less", less <= 0.5),
        ("edits, same sentence over another", nearer, "under 1", nearer < 1),
    ]
    return found, rows


def judge_resynthesis(
    corpus: Path, base: Path, expressive: Path, output: Path | None
) -> tuple[dict, list[Row]]:
    """Words, F0, manner and durations of flite's voices spoken anew."""
    grammar = corpus / "world.gram"
    items = [
        item for item in read_items([str(corpus / "test.jsonl")]) if item.speaker in speak.FLITE
    ]
    training = read_items([str(corpus / "train.jsonl")])
    training = [item for item in training if item.speaker in speak.FLITE][::CLASSIFIER_SHARE]
    originals = _find_f0([_sound(item, load_audio(item.audio)) for item in items])
    classifier = MannerClassifier(_find_f0([_sound(i, load_audio(i.audio)) for i in training]))
    found = {"originals": {"manner_accuracy": classifier.accuracy(originals)}}
    found["originals"] |= _word_errors(originals, grammar)
    heard: dict[str, list[Units]] = {}
    for name, folder in (("base", base), ("expressive", expressive)):
        heard[name], made = resynthesise(folder, items)
        made = _find_f0(made)
        found[name] = _word_errors(made, grammar)
        found[name] |= judge_speech.f0_figures(originals, made)
        found[name]["manner_accuracy"] = classifier.accuracy(made)
        voices = [item.speaker for item in items]
        found[name] |= judge_speech.duration_figures(folder, heard[name], voices)
        if output:
            for item, sound in zip(items, made, strict=True):
                write_wav(_ready(output / name / f"{item.id}.wav"), sound.samples)
    rows = [
        (f"{figure}, {name}", value, "", True)
        for name, figures in found.items()
        for figure, value in figures.items()
    ]
    for name in ("base", "expressive"):
        for voice in speak.FLITE:
            errors = found[name][f"word_errors_{voice}"]
            most = allowed_errors(found["originals"][f"word_errors_{voice}"])
            aim = f"{most:.1f} or less"
            rows.append((f"word errors, {voice}, {name}", errors, aim, errors <= most))
        together, pace = (found[name][key] for key in ("duration_correlation", "pace"))
        rows.append((f"correlation of durations, {name}", together, "above 0.3", together > 0.3))
        rows.append((f"pace from strings, {name}", pace, "0.95 to 1.05", 0.95 <= pace <= 1.05))
    together = found["expressive"]["f0_correlation"]
    rows.append(("F0 correlation, expressive", together, "above 0.8", together > 0.8))
    less = found["expressive"]["f0_frame_error"] / found["base"]["f0_frame_error"]
    rows.append(("F0 frame error over Base's", less, "under 0.5", less < 0.5))
    gain = found["expressive"]["manner_accuracy"] - found["base"]["manner_accuracy"]
    rows.append(("points of manner over Base's", gain, "25 or more", gain >= 25))
    return found, rows


def judge_voice(corpus: Path, voice: Path, output: Path | None) -> tuple[dict, list[Row]]:
    """Held-out prompts of the user's own voice; the recogniser knows all prompts as sentences."""
    items = read_items([str(corpus / "asterisk-test.jsonl")])
    every = [
        item.text
        for part in ("train", "valid", "test")
        for item in read_items([str(corpus / f"asterisk-{part}.jsonl")])
    ]
    _, made = resynthesise(voice, items)
    originals = [_sound(item, load_audio(item.audio)) for item in items]
    with tempfile.TemporaryDirectory() as folder:
        grammar = Path(folder) / "prompts.gram"
        files.write_text(grammar, judge_speech.sentence_grammar(every))
        found = {
            name: _prompt_errors(sounds, _recognise(sounds, grammar))
            for name, sounds in (("originals", originals), ("voice", made))
        }
    if output:
        for item, sound in zip(items, made, strict=True):
            write_wav(_ready(output / "voice" / f"{item.id}.wav"), sound.samples)
    rows = []
    for name, what in PROMPT_ERRORS.items():
        errors = found["voice"][name]
        rows.append((f"{what}, prompts as recorded", found["originals"][name], "", True))
        # A letter alone has nothing around it to be told by.
        aim = ("10 or less", errors <= 10) if name == "word_errors_of_phrases" else ("", True)
        rows.append((f"{what}, prompts in the new voice", errors, *aim))
    return found, rows


def _prompt_errors(sounds: Sequence[Sound], heard: list[list[str]]) -> dict[str, float]:
    long = [number for number, sound in enumerate(sounds) if len(sound.text.split()) >= PHRASE]
    return {
        "word_errors": judge_speech.word_error_rate(sounds, heard),
        "word_errors_of_phrases": judge_speech.word_error_rate(
            [sounds[number] for number in long], [heard[number] for number in long]
        ),
    }


def allowed_errors(original: float) -> float:
    """The most word errors of resynthesis, percent, for those of the recordings."""
    return max(1.3 * original, original + 2)


def resynthesise(folder: Path, items: Sequence[Item]) -> tuple[list[Units], list[Sound]]:
    """The units of recordings, and these spoken in the voice of each, with their timing."""
    tokenizer = SpeechTokenizer.from_pretrained(folder)
    heard = tokenizer.encode_batch([item.audio for item in items])
    spoken = track(zip(items, heard, strict=True), "Speaking", len(items), console=ERRORS)
    return heard, [
        _sound(item, tokenizer.decode(one, speaker_id=item.speaker)) for item, one in spoken
    ]


def _sound(item: Item, samples: np.ndarray) -> Sound:
    return Sound(samples, item.text, item.speaker, item.style)


def _find_f0(sounds: Sequence[Sound]) -> list[Sound]:
    return judge_speech.in_processes(judge_speech.with_f0, sounds, "Finding F0")


def _recognise(sounds: Sequence[Sound], grammar: Path) -> list[list[str]]:
    return judge_speech.in_processes(judge_speech.recogniser(grammar), sounds, "Recognising words")


def _word_errors(sounds: Sequence[Sound], grammar: Path) -> dict[str, float]:
    heard = _recognise(sounds, grammar)
    errors = {}
    for voice in speak.FLITE:
        own = [number for number, sound in enumerate(sounds) if sound.speaker == voice]
        errors[f"word_errors_{voice}"] = judge_speech.word_error_rate(
            [sounds[number] for number in own], [heard[number] for number in own]
        )
    return errors


def _ready(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def main() -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__spec__.name}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--corpus", type=Path, required=True, help="of corpora.world")
    parser.add_argument("--base", type=Path, help="a Base speech tokenizer")
    parser.add_argument("--expressive", type=Path, help="an Expressive one")
    parser.add_argument("--voice", type=Path, help="one whose vocoder was tuned on the prompts")
    parser.add_argument("--plain", type=Path, help="encoder and k-means before the quantizer")
    parser.add_argument("--output", type=Path, help="folder for sounds and figures")
    given = parser.parse_args()
    try:
        judged = bool(given.plain or given.expressive)
        if bool(given.base) != judged or not (given.base or given.voice):
            raise InputError("Give --base with --plain or --expressive, or --voice, or all.")
        parts = []
        if given.plain:
            parts.append(("units", judge_phonetic(given.corpus, given.base, given.plain)))
        if given.expressive:
            sets = given.base, given.expressive, given.output
            parts.append(("resynthesis", judge_resynthesis(given.corpus, *sets)))
        if given.voice:
            parts.append(("voice", judge_voice(given.corpus, given.voice, given.output)))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    table = Table("figure", "value", "aim", "met", box=None, pad_edge=False)
    for _, (_, rows) in parts:
        for what, value, aim, met in rows:
            table.add_row(what, f"{value:.3g}", aim, ("yes" if met else "NO") if aim else "")
    show(table)
    if given.output:
        figures = {name: found for name, (found, _) in parts}
        files.write_json(given.output / "figures.json", figures)
    if not all(met for _, (_, rows) in parts for *_, met in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
