"""Asterisk's English prompts as a prepared corpus: 25 minutes of one voice, with word times.

The recordings and their texts are in Debian's packages asterisk-core-sounds-en-g722 and
asterisk-core-sounds-en (Allison Smith, CC BY-SA 3.0). ffmpeg decodes them, pocketsphinx aligns
them. Units are k-means clusters of MFCCs, 25 a second, so no trained network is needed.

    sudo apt-get install asterisk-core-sounds-en asterisk-core-sounds-en-g722 ffmpeg
    pip install -e '.[corpora]'
    python -m corpora.asterisk --output runs/asterisk

Writes train/ and test/ (whole prompts, one in ten is for test), train-words/ and test-words/
(single words), and model/, a vocabulary and a text tokenizer for a randomly initialised model.
"""

import gzip
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import librosa
import numpy as np
import sentencepiece
from num2words import num2words
from pocketsphinx import Decoder
from rich.progress import track

from corpora import programs
from spirit_jax import config, files
from spirit_jax.audio import SAMPLE_RATE, load_audio
from spirit_jax.cli.running import Output, run
from spirit_jax.data.records import Utterance, write_shard
from spirit_jax.errors import InputError
from spirit_jax.files import lock
from spirit_jax.units import Units
from spirit_jax.vocab import Vocab

SOUNDS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
TEXTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
CLUSTERS, TEXT_PIECES, SEED = 100, 500, 0
HOP = SAMPLE_RATE // 25
TEST_EVERY = 10


def read_texts() -> dict[str, str]:
    """The words of each prompt by name, in lower case; prompts without speech are left out."""
    if not TEXTS.is_file() or not SOUNDS.is_dir():
        raise InputError(
            f"{TEXTS if SOUNDS.is_dir() else SOUNDS}: is not there; apt-get install "
            "asterisk-core-sounds-en asterisk-core-sounds-en-g722."
        )
    texts = {}
    for line in gzip.open(TEXTS, "rt", encoding="utf-8"):
        name, separator, text = line.rstrip("\n").partition(": ")
        if separator and not line.startswith(";") and "[" not in text:
            spelled = re.sub(r"\d+", lambda match: num2words(int(match[0])), text)
            words = re.findall(r"[a-z]+(?:'[a-z]+)*", spelled.lower())
            texts[name] = " ".join(words)
    return {name: text for name, text in texts.items() if text}


def decode(path: Path) -> np.ndarray:
    """Samples of a G.722 file, float32 at 16 kHz.

    Raises:
      InputError: ffmpeg is not there or cannot read it.
    """
    command = ["ffmpeg", "-loglevel", "error", "-f", "g722", "-i", str(path), "-f", "wav", "-"]
    return load_audio(programs.run(command, "ffmpeg"))


def align(decoder: Decoder, samples: np.ndarray, text: str) -> tuple | None:
    """(word, start, end) in seconds of every word; None if pocketsphinx cannot align the text."""
    if any(decoder.lookup_word(word) is None for word in text.split()):
        return None
    decoder.set_align_text(text)
    decoder.start_utt()
    decoder.process_raw((samples * 32767).astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()
    seconds = len(samples) / SAMPLE_RATE
    words = []
    for segment in decoder.seg() or ():
        word = re.sub(r"\(\d+\)$", "", segment.word)
        if not word.startswith(("<", "[")):
            end = min((segment.end_frame + 1) / 100, seconds)
            words.append((word, segment.start_frame / 100, end))
    return tuple(words) if [word for word, _, _ in words] == text.split() else None


def mfcc_features(samples: np.ndarray) -> np.ndarray:
    """(frames, 39): 13 MFCCs with their first and second differences, 25 frames a second."""
    mfcc = librosa.feature.mfcc(y=samples, sr=SAMPLE_RATE, n_mfcc=13, n_fft=1024, hop_length=HOP)
    frames = max(1, len(samples) // HOP)
    width = min(9, mfcc.shape[1] - (mfcc.shape[1] + 1) % 2)
    deltas = [mfcc] + [
        librosa.feature.delta(mfcc, width=width, order=order) if width >= 3 else np.zeros_like(mfcc)
        for order in (1, 2)
    ]
    return np.concatenate(deltas).T[:frames]


def split_words(utterance: Utterance) -> Iterator[Utterance]:
    """Each word as a separate utterance."""
    hubert = utterance.units.hubert
    rate = len(hubert) / utterance.seconds
    for number, (word, start, end) in enumerate(utterance.words):
        word_units = hubert[int(np.floor(start * rate)) : int(np.ceil(end * rate))]
        if len(word_units):
            seconds = len(word_units) / rate
            times = ((word, 0.0, seconds),)
            yield Utterance(f"{utterance.id}/{number}", Units(word_units), seconds, word, times)


def write_start(folder: Path, texts: list[str]) -> None:
    """Writes a vocabulary and a text tokenizer trained on the texts."""
    path = folder / "text_tokenizer" / "tokenizer.model"
    with files.whole_file(path) as unfinished, unfinished.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=file,
            vocab_size=TEXT_PIECES,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            minloglevel=2,
        )
    config.write(Vocab.make("base", TEXT_PIECES), folder / "vocab.json")


def build(output: Path) -> None:
    """Builds the corpus; prints how many prompts were left out and why."""
    from sklearn.cluster import MiniBatchKMeans

    decoder = Decoder(loglevel="FATAL")
    kept, left_out = [], []
    for name, text in track(
        sorted(read_texts().items()), "aligning", disable=not sys.stderr.isatty()
    ):
        path = SOUNDS / f"{name}.g722"
        samples = decode(path) if path.is_file() else None
        words = align(decoder, samples, text) if samples is not None else None
        if words:
            kept.append((name, text, samples, words))
        else:
            left_out.append(name)
    features = [mfcc_features(samples) for _, _, samples, _ in kept]
    train = [index for index in range(len(kept)) if index % TEST_EVERY]
    training = np.concatenate([features[index] for index in train])
    mean, spread = training.mean(0), training.std(0)
    clusters = MiniBatchKMeans(CLUSTERS, random_state=SEED, n_init=5, batch_size=4096)
    clusters.fit((training - mean) / spread)
    utterances = [
        Utterance(
            name,
            Units(clusters.predict((frames - mean) / spread).astype(np.int32)),
            len(samples) / SAMPLE_RATE,
            text,
            words,
            "allison",
        )
        for (name, text, samples, words), frames in zip(kept, features, strict=True)
    ]
    parts = {
        "train": [utterances[index] for index in train],
        "test": [u for index, u in enumerate(utterances) if not index % TEST_EVERY],
    }
    for name, part in parts.items():
        write_shard(output / name / "allison.arrayrecord", part)
        words = [word for utterance in part for word in split_words(utterance)]
        write_shard(output / f"{name}-words" / "allison.arrayrecord", words)
        minutes = sum(utterance.seconds for utterance in part) / 60
        print(f"{output / name}: {len(part)} prompts, {len(words)} words, {minutes:.1f} minutes")
    write_start(output / "model", [utterance.text for utterance in parts["train"]])
    print(f"left out, since pocketsphinx could not align them: {len(left_out)} prompts")


def main(output: Output) -> None:
    """Runs the command that the module's docstring describes."""
    with lock.hold(output, choice="output folder"):
        build(output)


if __name__ == "__main__":
    run(main)
