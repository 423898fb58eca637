"""Forced alignment of English texts with pocketsphinx and its packaged model.

It needs no download and no accelerator, and is less exact than a CTC network: times are multiples
of 10 ms, and a word that is not in its dictionary is aligned as any speech.
"""

import collections
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from spirit_jax.audio import MIN_SAMPLES, SAMPLE_RATE, Audio, load_audio
from spirit_jax.data.align import Aligned
from spirit_jax.data.labels import normalise_words
from spirit_jax.data.timing import Words
from spirit_jax.errors import InputError

FRAME_RATE = 100  # frames per second of pocketsphinx
ANY_SPEECH = "+SPN+"  # the phone of its model for unknown speech
VOICELESS = ("P", "T", "K", "F", "TH")  # the ending 's is S after these, else Z
MAX_STARS = 0.5  # share of unknown words above which a text is likely not English


class PocketsphinxAligner:
    """Aligns English recordings to their texts; a `align_words.WordAligner`.

    Numbers in digits are spelt out. A word that is not in the dictionary (126,000 words), with or
    without a final 's, becomes a star, which matches any speech.
    """

    name = "pocketsphinx"

    def __init__(self):
        try:
            import pocketsphinx
            from num2words import num2words
        except ImportError as error:
            raise InputError(
                f"pocketsphinx cannot be used ({error}); pip install 'spirit-jax[corpora]'."
            ) from error
        # Wide beams, since an alignment fails if its path is pruned. Mean normalisation for each
        # recording ("batch"), so that a result does not depend on the recordings before it.
        self._decoder = pocketsphinx.Decoder(
            lm=None, loglevel="FATAL", cmn="batch", beam=1e-150, wbeam=1e-100, pbeam=1e-150
        )
        self._to_words = num2words
        self._known: dict[str, str] = {}  # entries of the decoder's dictionary, by word
        self.checksum = f"pocketsphinx {_version()}"

    def align_batch(self, audios: Sequence[Audio], texts: Sequence[str]) -> list[Aligned]:
        """Aligns recordings.

        Args:
          audios: each a path, the bytes of a file, an array at 16 kHz or (array, rate).
          texts: English transcripts.

        Returns:
          An alignment for each recording, in order; its `problem` says if it cannot be aligned.

        Raises:
          InputError: audio cannot be read.
        """
        return [
            self._align(load_audio(audio), text) for audio, text in zip(audios, texts, strict=True)
        ]

    def _align(self, wave: np.ndarray, text: str) -> Aligned:
        words = normalise_words(text)
        entries = [self._look_up(word) for word in words]
        unknown = collections.Counter(
            word for word, entry in zip(words, entries, strict=True) if entry.startswith("star.")
        )
        stars = unknown.total()
        if not words:
            return Aligned(problem="The text has no words.")
        if stars > MAX_STARS * len(words):
            return Aligned(
                problem=f"{stars} of {len(words)} words are not in pocketsphinx's dictionary; is "
                "the text English?"
            )
        segments = self._find(wave, entries) if len(wave) >= MIN_SAMPLES else []
        if [entry for entry, _, _ in segments] != entries:
            return Aligned(problem="pocketsphinx does not find the text's words in the recording.")
        seconds = len(wave) / SAMPLE_RATE
        timed: Words = tuple(
            (word, start / FRAME_RATE, min((end + 1) / FRAME_RATE, seconds))
            for word, (_, start, end) in zip(words, segments, strict=True)
        )
        return Aligned(timed, self._score, stars=stars, unknown=unknown)

    def _find(self, wave: np.ndarray, entries: Sequence[str]) -> list[tuple[str, int, int]]:
        """(entry of the dictionary, first frame, last frame) of each word of the alignment."""
        self._decoder.set_align_text(" ".join(entries))
        self._decoder.reinit_feat()  # resets the noise estimate of the previous recording
        self._decoder.start_utt()
        self._decoder.process_raw((wave.clip(-1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
        self._decoder.end_utt()
        segments: list[Any] = list(self._decoder.seg() or ())
        spoken = [
            (re.sub(r"\(\d+\)$", "", segment.word), segment)
            for segment in segments
            if not segment.word.startswith(("<", "[", "("))
        ]
        frames = sum(segment.end_frame - segment.start_frame + 1 for _, segment in spoken)
        # Relative to the likeliest phone of each frame, so that 0 is best.
        logs = [math.log(max(segment.ascore, 1e-300)) for _, segment in spoken]
        self._score = sum(logs) / frames if frames else -math.inf
        return [(entry, segment.start_frame, segment.end_frame) for entry, segment in spoken]

    def _look_up(self, word: str) -> str:
        """The entry of the decoder's dictionary for a word; it is added if there is none."""
        if word not in self._known:
            number = len(self._known)
            phones = self._decoder.lookup_word(word)
            if phones is not None:
                self._known[word] = word
            elif phones := self._spell_out(word):
                self._known[word] = f"word.{number}"
                self._decoder.add_word(f"word.{number}", phones, True)
            else:
                self._known[word] = f"star.{number}"
                self._decoder.add_word(f"star.{number}", ANY_SPEECH, True)
        return self._known[word]

    def _spell_out(self, word: str) -> str:
        """The phones of a number in digits, or of a known word with 's; "" for other words."""
        if word.isascii() and word.isdigit() and len(word) <= 9:
            words = re.findall("[a-z]+", self._to_words(int(word)))
            phones = [self._decoder.lookup_word(each) for each in words]
            return " ".join(phones) if all(phones) else ""
        stem, _, ending = word.rpartition("'")
        phones = self._decoder.lookup_word(stem) if ending == "s" and stem else None
        if phones is None:
            return ""
        return f"{phones} {'S' if phones.split()[-1] in VOICELESS else 'Z'}"


def _version() -> str:
    from importlib.metadata import version

    return version("pocketsphinx")
