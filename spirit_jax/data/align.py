"""Forced alignment of a text with its recording, by a CTC speech recogniser.

The network gives the log-probabilities of its labels, which are characters, for every frame. The
Viterbi path through the characters of the text gives the frames of each character
(`ctc.ctc_align`). A word that cannot be spelt with the network's labels (see `spelling`), such as a
number in digits, is replaced by a star: a label that matches anything. Its probability is slightly
below that of the frame's most probable label.

Axes: b batch, t samples or frames, v labels of the network and the star, l labels of the text.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from spirit_jax import bucketing, checkpoint, checksums, model_folder, sharding
from spirit_jax.audio import SAMPLE_RATE, Audio, load_audio
from spirit_jax.bucketing import power_of_two
from spirit_jax.data.spelling import Speller, Spelling
from spirit_jax.data.timing import Words
from spirit_jax.errors import InputError
from spirit_jax.models import ctc
from spirit_jax.models.wav2vec2 import frame_lengths

CHUNK_SECONDS, CONTEXT_SECONDS = 30, 2  # chunks of long audio, and their context on both sides
BUCKET_SECONDS = (2, 4, 8, 16)  # lengths to which shorter chunks are padded
BATCH_SECONDS = 320  # audio in a batch on an accelerator; on a CPU a batch is one chunk
STAR_COST = 0.1  # nats per frame, so that a star does not take the silence around its word


@dataclasses.dataclass(frozen=True)
class Aligned:
    """The alignment of a text.

    Attributes:
      words: (word, start, end) in seconds, in order and disjoint; lower case, no punctuation.
      score: mean log-probability of the frames of characters and separators, without stars and
        blanks. It is near 0 for a correct text, and lower by some nats for a wrong one.
      problem: why the text cannot be aligned; "" if it can.
      stars: number of words that cannot be spelt with the network's labels.
      unknown: the characters without a label, with the number of words that contain them.
    """

    words: Words = ()
    score: float = -np.inf
    problem: str = ""
    stars: int = 0
    unknown: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Aligner:
    """Aligns recordings of any length to their texts; create it with `from_pretrained`.

    Results do not depend on the rest of the batch. For audio over 30 s, the network is applied to
    chunks with 2 s of context, and the path is found for the whole recording.
    """

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, devices: Sequence[jax.Device] | None = None
    ) -> "Aligner":
        """Loads the folder that `spirit-jax convert ctc` writes.

        Args:
          folder: the folder.
          devices: they share each batch; the default device if not given.

        Raises:
          InputError: the folder is incomplete, or its network is for another sampling rate.
        """
        model, params = ctc.load(model_folder.find_aligner(folder))
        if model.config.sample_rate != SAMPLE_RATE:
            raise InputError(
                f"{folder}: needs {model.config.sample_rate} Hz; only {SAMPLE_RATE} is supported."
            )
        return cls(model, params, str(folder), devices)

    def __init__(
        self,
        model: ctc.CtcModel,
        params: dict,
        name: str = "",
        devices: Sequence[jax.Device] | None = None,
    ):
        self.config, self.name = model.config, name
        arrays = {path: np.asarray(a) for path, a in checkpoint.flatten(params).items()}
        hashes = {path: checksums.of_bytes(np.ascontiguousarray(a)) for path, a in arrays.items()}
        self.checksum = checksums.of_value([dataclasses.asdict(model.config), hashes])
        self._speller = Speller(self.config, name or "the network")
        score = jax.jit(functools.partial(_score_frames, model))
        self._score = sharding.DataParallel(score, params, devices)
        self._find = jax.jit(functools.partial(ctc.ctc_align, blank=self.config.blank))
        self._batch_seconds = 0 if jax.default_backend() == "cpu" else BATCH_SECONDS

    def align(self, audio: Audio, text: str) -> Aligned:
        """The times of a text's words in its recording.

        Raises:
          InputError: audio that cannot be used, or a text without words or too long for it.
        """
        (aligned,) = self.align_batch([audio], [text])
        if aligned.problem:
            raise InputError(aligned.problem)
        return aligned

    def align_batch(self, audios: Sequence[Audio], texts: Sequence[str]) -> list[Aligned]:
        """Aligns several recordings.

        Args:
          audios: each a path, the bytes of a file, an array at 16 kHz or (array, rate).
          texts: transcripts. Punctuation and annotations such as [laughter] are removed. A word
            that has a character without a label is replaced by a star.

        Returns:
          An alignment for each recording, in order; its `problem` says if it cannot be aligned.

        Raises:
          InputError: audio cannot be read.
        """
        waves = [load_audio(audio) for audio in audios]
        spelt = [self._speller.spell(text) for text in texts]
        paths = self._find_paths(self._log_probs(waves), spelt)
        return [self._to_aligned(*each) for each in zip(waves, spelt, paths, strict=True)]

    def _log_probs(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The log-probabilities of each recording: float32 (t, v)."""
        trunk = self.config.trunk
        chunk, context = (s * SAMPLE_RATE // trunk.stride for s in (CHUNK_SECONDS, CONTEXT_SECONDS))
        rest = trunk.receptive_field - trunk.stride  # samples that a frame shares with the next
        items = []  # the samples of each chunk with its context
        slices = []  # for each recording, the frames of its chunks without the context
        for wave in waves:
            frames = int(frame_lengths(len(wave), trunk.conv_layers))
            slices.append([])
            for start in range(0, frames, chunk):
                low, high = max(0, start - context), min(frames, start + chunk + context)
                end = len(wave) if high == frames else high * trunk.stride + rest
                items.append((wave[low * trunk.stride : end],))
                slices[-1].append(slice(start - low, min(start + chunk, frames) - low))
        longest = (chunk + 2 * context + 1) * trunk.stride + max(rest, 0)
        buckets = [*(s * SAMPLE_RATE for s in BUCKET_SECONDS), longest]
        rows = self._batch_seconds * SAMPLE_RATE
        rows_of = lambda bucket: max(1, rows // bucket)  # noqa: E731
        scored = iter(bucketing.run(self._score, items, buckets, rows_of, self._score.devices))
        empty = np.zeros((0, self._speller.star + 1), np.float32)
        return [np.concatenate([empty, *(next(scored)[s] for s in parts)]) for parts in slices]

    def _find_paths(self, log_probs, spelt: Sequence[Spelling]) -> list[tuple[np.ndarray, ...]]:
        """The alignment of each recording; recordings of similar sizes form a batch.

        Args:
          log_probs: from `_log_probs`.
          spelt: the spelling of each text.

        Returns:
          For each recording `starts_bl`, `ends_bl`, `label_scores_bl` and `scores_b` of
          `ctc.CtcPath`, without the batch axis.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for index, (log_probs_tv, spelling) in enumerate(zip(log_probs, spelt, strict=True)):
            sizes = power_of_two(len(log_probs_tv), 64), power_of_two(len(spelling.labels), 16)
            groups.setdefault(sizes, []).append(index)
        paths: list[tuple[np.ndarray, ...]] = [()] * len(spelt)
        for (frames, labels), members in groups.items():
            rows = power_of_two(len(members), 1)
            log_probs_btv = np.zeros((rows, frames, self._speller.star + 1), np.float32)
            labels_bl = np.zeros((rows, labels), np.int32)
            lengths_2b = np.zeros((2, rows), np.int32)
            for row, index in enumerate(members):
                labels_l = spelt[index].labels
                log_probs_btv[row, : len(log_probs[index])] = log_probs[index]
                labels_bl[row, : len(labels_l)] = labels_l
                lengths_2b[:, row] = len(log_probs[index]), len(labels_l)
            path = self._find(log_probs_btv, lengths_2b[0], labels_bl, lengths_2b[1])
            arrays = path.starts_bl, path.ends_bl, path.label_scores_bl, path.scores_b
            arrays = [np.asarray(array) for array in arrays]
            for row, index in enumerate(members):
                paths[index] = tuple(array[row] for array in arrays)
        return paths

    def _to_aligned(
        self, wave: np.ndarray, spelling: Spelling, path: tuple[np.ndarray, ...]
    ) -> Aligned:
        """Converts the frames of labels to the times of words."""
        starts_l, ends_l, scores_l, score = path
        size = len(spelling.labels)
        starts_l, ends_l, scores_l = starts_l[:size], ends_l[:size], scores_l[:size]
        word_of_l = np.array(spelling.word_of)
        is_star_l = np.array(spelling.labels) == self._speller.star
        if spelling.problem:
            return Aligned(problem=spelling.problem)
        if not np.isfinite(score):
            seconds = len(wave) / SAMPLE_RATE
            return Aligned(
                problem=f"The text has {size} characters, too many for {seconds:.2f} s of audio."
            )
        words = []
        for number, word in enumerate(spelling.words):
            indices = np.flatnonzero(word_of_l == number)
            frames = int(starts_l[indices[0]]), int(ends_l[indices[-1]])
            start, end = (round(f * self.config.trunk.stride / SAMPLE_RATE, 4) for f in frames)
            words.append((word, start, end))
        counts_l = np.where(is_star_l, 0, ends_l - starts_l)
        mean = float((scores_l * counts_l).sum() / counts_l.sum())
        return Aligned(tuple(words), mean, "", spelling.stars, spelling.unknown)


def _score_frames(model: ctc.CtcModel, params, wave_bt, lengths_b):
    """(log-probabilities of the labels and, last, of the star; true numbers of frames)."""
    logits_btv, frames_b = model.apply({"params": params}, wave_bt, lengths_b)
    log_probs_btv = jax.nn.log_softmax(logits_btv)
    star_bt1 = log_probs_btv.max(axis=-1, keepdims=True) - STAR_COST
    return jnp.concatenate([log_probs_btv, star_bt1], axis=-1), frames_b
