"""A recogniser for the tasks of `spirit-jax eval`: pocketsphinx with a grammar.

    ls *.wav | python -m evaluators.recognise --grammar runs/world/world.gram

Reads the path of an audio file from each line of the input and writes a line with its words.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from evaluators import resynthesis
from evaluators.resynthesis import SpeechSample
from spirit_jax.audio import load_audio
from spirit_jax.cli.running import run


def main(grammar: Annotated[Path, typer.Option(help="In JSGF")]) -> None:
    """Runs the command that the module's docstring describes."""
    recognise = resynthesis.recogniser(grammar)
    samples = [SpeechSample(load_audio(line.strip()), "") for line in sys.stdin]
    for words in resynthesis.in_processes(recognise, samples, "Recognising words"):
        print(" ".join(words))


if __name__ == "__main__":
    run(main)
