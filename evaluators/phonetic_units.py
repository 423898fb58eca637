"""Measures of phonetic units on the small world's test parts, beside two k-means baselines.

Letters: t frames of a recording.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from spirit_jax import files
from spirit_jax.audio import SAMPLE_RATE, load_audio
from spirit_jax.data import augment
from spirit_jax.data.manifest import Item
from spirit_jax.data.speech import read_items
from spirit_jax.evaluation.unit_distance import labels_at_frames, phone_probe, unit_edit_distance
from spirit_jax.models import hubert
from spirit_jax.models.wav2vec2 import TrunkConfig
from spirit_jax.speech_tokenizer import SpeechTokenizer
from spirit_jax.training.hubert import targets as unit_targets
from spirit_jax.training.kmeans import KMeansConfig

NOISE_DB = 10.0
TRAINING_SHARE = 6  # every so many training recordings are for probes and for k-means of MFCC
KMEANS = KMeansConfig(frames=60_000)

Encode = Callable[[Sequence[Item]], list[np.ndarray]]  # the units of recordings


def measure(corpus: Path, tokenizer: Path, plain: Path) -> dict[str, dict[str, float]]:
    """Measures the tokenizer's units and two k-means baselines with as many clusters.

    Args:
      corpus: folder of `corpora.world`.
      tokenizer: a speech tokenizer's folder.
      plain: folder of the encoder and the k-means that the tokenizer's quantizer started from.

    Returns:
      By name of the units ("units", "kmeans", "mfcc"):
        phone_accuracy: of a linear probe, percent of frames.
        edits_in_noise: unit edit distance between a clean recording and the same in noise at 10 dB
          signal-to-noise ratio, per 100 units.
        same_sentence, other_sentence: unit edit distance between two voices that say one sentence
          in one manner, and between two sentences of one voice and manner, per 100 units.
        nearer: percent of pairs in which the first is less than the second.
    """
    phones = {
        row["id"]: row.get("phones") for row in files.read_json_objects(corpus / "details.jsonl")
    }
    training, test, held_out = (
        read_items([str(corpus / f"{part}.jsonl")]) for part in ("train", "test", "test-voice")
    )
    training = [item for item in training if phones[item.id]][::TRAINING_SHARE]
    model, params = hubert.load_both(tokenizer)
    trunk = model.config.trunk
    pairs = files.read_json_objects(corpus / "pairs.jsonl")
    noisy = [_add_noise(item, seed) for seed, item in enumerate(test)]

    def figures(encode: Encode) -> dict[str, float]:
        recordings = training + test + held_out
        encoded = dict(zip([item.id for item in recordings], encode(recordings), strict=True))
        sides = []
        for items in training, [item for item in test if phones[item.id]]:
            units = np.concatenate([encoded[item.id] for item in items])
            labels = [_label(phones[item.id], len(encoded[item.id]), trunk) for item in items]
            known = np.concatenate(labels) != ""
            sides += [units[known], np.concatenate(labels)[known]]
        edits = [
            unit_edit_distance(encoded[item.id], noisy_t)
            for item, noisy_t in zip(test, encode(noisy), strict=True)
        ]
        same, other = compare_pairs(pairs, encoded)
        return {
            "phone_accuracy": 100 * phone_probe(*sides),
            "edits_in_noise": float(np.mean(edits)),
            "same_sentence": float(same.mean()),
            "other_sentence": float(other.mean()),
            "nearer": float(100 * (same < other).mean()),
        }

    speech_tokenizer = SpeechTokenizer.from_pretrained(tokenizer)
    clusters = encoder_clusters(plain)
    spectral = unit_targets.mfcc_features(trunk)
    size = model.quantizer.vocab_size
    centroids_vd = unit_targets.find_centroids(training, spectral, trunk, size, KMEANS)
    return {
        "units": figures(lambda items: encode_units(speech_tokenizer, items)),
        "kmeans": figures(clusters),
        "mfcc": figures(lambda items: unit_targets.label(items, spectral, trunk, centroids_vd)),
    }


def encode_units(speech_tokenizer: SpeechTokenizer, items: Sequence[Item]) -> list[np.ndarray]:
    """The phonetic units of recordings."""
    encoded = speech_tokenizer.encode_batch([item.audio for item in items])
    return [units.hubert for units in encoded]


def encoder_clusters(folder: Path) -> Encode:
    """The encoding function of a folder with `hubert` and `quantizer`."""
    model, params = hubert.load_both(folder)
    units_of = unit_targets.network_units(model, params)
    trunk, blank = model.config.trunk, model.quantizer.blank
    return lambda items: unit_targets.label_by_units(items, units_of, trunk, blank)


def compare_pairs(pairs: list[dict], encoded: dict) -> tuple[np.ndarray, np.ndarray]:
    """Unit edit distances within each pair, and of its first to another sentence of its voice.

    Args:
      pairs: "first" and "second", the ids of one sentence in two voices.
      encoded: units by id.
    """
    firsts = {pair["first"] for pair in pairs}
    voices: dict[str, list[str]] = {}
    for name in sorted(firsts):
        voices.setdefault(name.rsplit("/", 1)[0], []).append(name)
    same, other = [], []
    for pair in pairs:
        of_voice = voices[pair["first"].rsplit("/", 1)[0]]
        if len(of_voice) < 2:
            continue
        next_sentence = of_voice[(of_voice.index(pair["first"]) + 1) % len(of_voice)]
        same.append(unit_edit_distance(encoded[pair["first"]], encoded[pair["second"]]))
        other.append(unit_edit_distance(encoded[pair["first"]], encoded[next_sentence]))
    return np.array(same), np.array(other)


def _add_noise(item: Item, seed: int) -> Item:
    rng = np.random.default_rng(seed)
    samples_t = augment.add_noise(load_audio(item.audio), rng, (NOISE_DB, NOISE_DB))
    return Item(item.id, audio=(samples_t, SAMPLE_RATE))


def _label(phones: list, frames: int, trunk: TrunkConfig) -> np.ndarray:
    """The phone at the centre of each frame's receptive field."""
    rate, center = SAMPLE_RATE / trunk.stride, trunk.receptive_field / 2 / SAMPLE_RATE
    return labels_at_frames(phones, frames, rate, center)
