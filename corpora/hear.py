"""A judge for `spirit-jax eval`: what pocketsphinx hears, with the grammar of the small world.

    ls *.wav | python -m corpora.hear --grammar runs/world/world.gram

Reads a path a line, writes the words a line.
"""

import argparse
import sys
from pathlib import Path

from corpora import judge_speech
from corpora.judge_speech import Sound
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
    given = parser.parse_args()
    try:
        recognise = judge_speech.recogniser(given.grammar)
        sounds = [Sound(load_audio(line.strip()), "") for line in sys.stdin]
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    for words in judge_speech.in_processes(recognise, sounds, "Recognising words"):
        print(" ".join(words))


if __name__ == "__main__":
    main()
