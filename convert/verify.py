"""Checks a converted release against what the released weights are published to give.

python -m convert.verify --model MODEL_DIR --audio 7143-88743-0029.flac

The audio is the utterance 7143-88743-0029 of LibriSpeech. Prints a line for each check, and ends
with status 1 if one failed.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from convert.main import run_main
from spirit_jax import SpiritLM
from spirit_jax.audio import load_audio

PUBLISHED = Path(__file__).with_name("published.json")
SAMPLES = 146_160  # of the utterance at 16 kHz


def checks(model: str | Path, audio: str | Path) -> Iterator[tuple[str, object, object]]:
    """(what, expected, got) of every check that fits the model's kind.

    Raises:
      InputError: no model folder, or audio that cannot be read.
    """
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    lm = SpiritLM.from_pretrained(model)
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
        got = " ".join(piece.content.strip() for piece in outputs)
        yield "greedy text", greedy["text"], got


def first_difference(expected: object, got: object) -> str:
    """Where two sequences part, in words."""
    if not isinstance(expected, list | str):
        return f"expected {expected}, got {got}"
    for place, (want, have) in enumerate(zip(expected, got, strict=False)):
        if want != have:
            return f"expected {want!r} at place {place}, got {have!r}"
    return f"expected {len(expected)} items, got {len(got)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", required=True, help="converted model folder")
    parser.add_argument("--audio", required=True, help="the utterance 7143-88743-0029")
    args = parser.parse_args()
    failed = 0
    for what, expected, got in checks(args.model, args.audio):
        same = expected == got
        failed += not same
        print(f"ok   {what}" if same else f"FAIL {what}: {first_difference(expected, got)}")
    if failed:
        sys.exit(f"{failed} checks failed: these are not the released weights, or not converted.")


if __name__ == "__main__":
    run_main(main)
