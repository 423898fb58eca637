"""A judge for `spirit-jax eval`: in which manner one of flite's voices speaks.

    ls *.wav | python -m corpora.manner --corpus runs/world --voice slt
    python -m corpora.manner --corpus runs/world --voice slt --accuracy

Reads a path a line, writes neutral, lively or sad a line. It learns from the training's recordings
first, which takes a minute. With --accuracy it says how often it is right on the test's recordings.
"""

import argparse
import sys
from pathlib import Path

from corpora import judge_speech, speak
from corpora.judge_speech import MannerClassifier, Sound
from spirit_jax.audio import load_audio
from spirit_jax.data.speech import read_items
from spirit_jax.errors import InputError

SHARE = 4  # every so many recordings of the voice are learnt from; its three manners take turns


def main() -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__spec__.name}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--corpus", type=Path, required=True, help="of corpora.world")
    parser.add_argument("--voice", choices=list(speak.FLITE), required=True)
    parser.add_argument("--accuracy", action="store_true", help="judge the judge")
    given = parser.parse_args()

    def read(part: str) -> list[Sound]:
        items = read_items([str(given.corpus / f"{part}.jsonl")])
        own = [item for item in items if item.speaker == given.voice]
        return [Sound(load_audio(i.audio), i.text, i.speaker, i.style) for i in own]

    try:
        known = read("train")[::SHARE]
        if given.accuracy:
            asked = read("test")
        else:
            asked = [Sound(load_audio(line.strip()), "", given.voice) for line in sys.stdin]
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    known, asked = (
        judge_speech.in_processes(judge_speech.with_f0, sounds, "Finding F0")
        for sounds in (known, asked)
    )
    classifier = MannerClassifier(known)
    if given.accuracy:
        print(f"{classifier.accuracy(asked):.1f} % of {len(asked)} recordings")
        return
    for sound in asked:
        print(classifier.tell(sound))


if __name__ == "__main__":
    main()
