"""Check a converted release against published outputs of the released weights.

spirit-jax convert verify --model MODEL_DIR --audio 7143-88743-0029.flac

The audio is the utterance 7143-88743-0029 of LibriSpeech. Prints a line for each check, and exits
with status 1 if one fails.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

import spirit_jax
from spirit_jax.audio import load_audio
from spirit_jax.cli.running import run

PUBLISHED = Path(__file__).with_name("published.json")
SAMPLES = 146_160  # of the utterance at 16 kHz


def checks(model: str | Path, audio: str | Path) -> Iterator[tuple[str, object, object]]:
    """(name, expected value, actual value) of each check for the kind of the model.

    Raises:
      InputError: the model folder or the audio cannot be read.
    """
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    lm = spirit_jax.SpiritLM.from_pretrained(model)
    kind = lm.speech_tokenizer.config.kind
    yield "samples of the utterance", SAMPLES, len(load_audio(audio))
    for name, stream in lm.speech_tokenizer.encode(audio).to_dict().items():
        yield f"{name} units", published[name], stream
    string = lm.speech_tokenizer.encode_string(audio)
    yield "unit string", published[f"{kind}_string"], string
    greedy = published["greedy_text"]
    if greedy["model"] == kind:
        outputs = lm.generate(
            [("text", greedy["prompt"])], "text", max_new_tokens=greedy["max_new_tokens"]
        )
        text = " ".join(piece.content.strip() for piece in outputs)
        yield "greedy text", greedy["text"], text


def first_difference(expected: object, actual: object) -> str:
    """A description of the first difference of two values or sequences."""
    if not isinstance(expected, list | str):
        return f"expected {expected}, got {actual}"
    for index, (a, b) in enumerate(zip(expected, actual, strict=False)):
        if a != b:
            return f"expected {a!r} at index {index}, got {b!r}"
    return f"expected {len(expected)} items, got {len(actual)}"


def main(
    model: Annotated[Path, typer.Option(help="Converted model folder")],
    audio: Annotated[Path, typer.Option(help="The utterance 7143-88743-0029")],
) -> None:
    """Runs the command that the module's docstring describes."""
    failed = 0
    for name, expected, actual in checks(model, audio):
        is_same = expected == actual
        failed += not is_same
        print(f"ok   {name}" if is_same else f"FAIL {name}: {first_difference(expected, actual)}")
    if failed:
        sys.exit(f"{failed} checks failed: these are not the released weights, or not converted.")


if __name__ == "__main__":
    run(main)
