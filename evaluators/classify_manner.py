"""A classifier for the tasks of `spirit-jax eval`: the manner in which a voice of flite speaks.

    ls *.wav | python -m evaluators.classify_manner --corpus runs/world --voice slt
    python -m evaluators.classify_manner --corpus runs/world --voice slt --accuracy

Reads the path of an audio file from each line of the input and writes a line with neutral, lively
or sad. The classifier is first fitted to training recordings, which takes a minute. With --accuracy
it prints its accuracy on the test recordings instead.
"""

import argparse
import sys
from pathlib import Path

from corpora import speak
from evaluators import resynthesis
from evaluators.resynthesis import MannerClassifier, SpeechSample
from spirit_jax.audio import load_audio
from spirit_jax.data.speech import read_items
from spirit_jax.errors import InputError

STRIDE = 4  # every fourth training recording is used; no multiple of 3, so all manners occur


def main() -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__spec__.name}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--corpus", type=Path, required=True, help="folder of corpora.world")
    parser.add_argument("--voice", choices=list(speak.FLITE), required=True)
    parser.add_argument("--accuracy", action="store_true", help="measure the classifier")
    args = parser.parse_args()

    def read(part: str) -> list[SpeechSample]:
        items = read_items([str(args.corpus / f"{part}.jsonl")])
        items = [item for item in items if item.speaker == args.voice]
        return [SpeechSample(load_audio(i.audio), i.text, i.speaker, i.style) for i in items]

    try:
        training = read("train")[::STRIDE]
        if args.accuracy:
            samples = read("test")
        else:
            samples = [SpeechSample(load_audio(line.strip()), "", args.voice) for line in sys.stdin]
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    training, samples = (
        resynthesis.in_processes(resynthesis.with_f0, group, "Finding F0")
        for group in (training, samples)
    )
    classifier = MannerClassifier(training)
    if args.accuracy:
        print(f"{classifier.accuracy(samples):.1f} % of {len(samples)} recordings")
        return
    for sample in samples:
        print(classifier.predict(sample))


if __name__ == "__main__":
    main()
