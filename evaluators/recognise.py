"""A recogniser for the tasks of `spirit-jax eval`: pocketsphinx with a grammar.

    ls *.wav | python -m evaluators.recognise --grammar runs/world/world.gram

Reads the path of an audio file from each line of the input and writes a line with its words.
"""

import argparse
import sys
from pathlib import Path

from evaluators import resynthesis
from evaluators.resynthesis import SpeechSample
from spirit_jax.audio import load_audio
from spirit_jax.errors import InputError


def main() -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__spec__.name}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--grammar", type=Path, required=True, help="in JSGF")
    args = parser.parse_args()
    try:
        recognise = resynthesis.recogniser(args.grammar)
        samples = [SpeechSample(load_audio(line.strip()), "") for line in sys.stdin]
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    for words in resynthesis.in_processes(recognise, samples, "Recognising words"):
        print(" ".join(words))


if __name__ == "__main__":
    main()
