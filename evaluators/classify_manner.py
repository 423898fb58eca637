"""A classifier for the tasks of `spirit-jax eval`: the manner in which a voice of flite speaks.

    ls *.wav | python -m evaluators.classify_manner --corpus runs/world --voice slt
    python -m evaluators.classify_manner --corpus runs/world --voice slt --accuracy

Reads the path of an audio file from each line of the input and writes a line with neutral, lively
or sad. The classifier is first fitted to training recordings, which takes a minute. With --accuracy
it prints its accuracy on the test recordings instead.
"""

import sys
from typing import Annotated, Literal

import typer

from corpora import speak
from corpora.world import Corpus
from evaluators import resynthesis
from evaluators.resynthesis import MannerClassifier, SpeechSample
from spirit_jax.audio import load_audio
from spirit_jax.cli.running import run
from spirit_jax.data.speech import read_items

STRIDE = 4  # every fourth training recording is used; no multiple of 3, so all manners occur


def main(
    corpus: Corpus,
    voice: Annotated[Literal[*speak.FLITE], typer.Option(help="Voice of flite")],
    accuracy: Annotated[bool, typer.Option("--accuracy", help="Measure the classifier")] = False,
) -> None:
    """Runs the command that the module's docstring describes."""

    def read(part: str) -> list[SpeechSample]:
        items = read_items([str(corpus / f"{part}.jsonl")])
        items = [item for item in items if item.speaker == voice]
        return [SpeechSample(load_audio(i.audio), i.text, i.speaker, i.style) for i in items]

    training = read("train")[::STRIDE]
    if accuracy:
        samples = read("test")
    else:
        samples = [SpeechSample(load_audio(line.strip()), "", voice) for line in sys.stdin]
    training, samples = (
        resynthesis.in_processes(resynthesis.with_f0, group, "Finding F0")
        for group in (training, samples)
    )
    classifier = MannerClassifier(training)
    if accuracy:
        print(f"{classifier.accuracy(samples):.1f} % of {len(samples)} recordings")
        return
    for sample in samples:
        print(classifier.predict(sample))


if __name__ == "__main__":
    run(main)
