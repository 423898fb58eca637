"""Unit labels from a reference speaker: frames are aligned and take the labels of the reference."""

import json

import numpy as np
import pytest
import soundfile

from spirit_jax.data.manifest import Item
from spirit_jax.errors import InputError
from spirit_jax.models.wav2vec2 import TrunkConfig
from spirit_jax.training import kmeans
from spirit_jax.training.hubert import reference_targets as parallel
from spirit_jax.training.hubert import targets as unit_targets
from spirit_jax.units import dedup

TRUNK = TrunkConfig(conv_layers=((16, 20, 10), (16, 8, 8), (16, 8, 8)))
RATE = 16_000


def test_a_time_stretched_sequence_is_aligned_frame_by_frame():
    reference_ud = np.random.default_rng(0).standard_normal((6, 8))
    durations = [2, 1, 3, 1, 1, 4]
    values_td = 3 * np.repeat(reference_ud, durations, axis=0)  # scaling does not matter
    np.testing.assert_array_equal(
        parallel.align(values_td, reference_ud), np.repeat(np.arange(6), durations)
    )
    # In the other direction, several frames match one, and the middle one is taken.
    np.testing.assert_array_equal(parallel.align(reference_ud, values_td), [0, 2, 4, 6, 7, 9])
    assert len(parallel.align(values_td[:0], reference_ud)) == 0


def chord(pitches: list[float], seconds: list[float], tilt: float) -> np.ndarray:
    """Tones in a row; `tilt`, the decay of the harmonics, stands for a speaker."""
    parts = []
    for pitch, length in zip(pitches, seconds, strict=True):
        times = np.arange(int(length * RATE)) / RATE
        parts.append(sum(tilt**n * np.sin(2 * np.pi * (n + 1) * pitch * times) for n in range(3)))
    noise = np.random.default_rng(0).standard_normal(sum(len(part) for part in parts))
    return (0.1 * np.concatenate(parts) + 1e-3 * noise).astype(np.float32)


def test_two_speakers_with_one_text_get_the_labels_of_the_reference(tmp_path):
    pitches = [300.0, 900.0, 1500.0]
    reference = Item("r", chord(pitches, [0.4, 0.5, 0.4], 0.2), "la", speaker="one")
    other = Item("o", chord(pitches, [0.7, 0.3, 0.6], 0.8), "la", speaker="two")
    unmatched = Item("a", chord(pitches, [0.7, 0.3, 0.6], 0.8), "li", speaker="two")
    features_of = unit_targets.mfcc_features(TRUNK)
    (features_td,) = unit_targets.compute_features([reference], features_of, TRUNK)
    centroids_vd = kmeans.fit(features_td, 6, kmeans.KMeansConfig())
    targets = features_of, TRUNK, centroids_vd
    aligned, unmatched_labels = parallel.label(
        [other, unmatched], {"la": reference}, *targets, features_of
    )
    (expected,) = unit_targets.label([reference], *targets)
    np.testing.assert_array_equal(aligned[dedup(aligned)], expected[dedup(expected)])
    np.testing.assert_array_equal(unmatched_labels, unit_targets.label([unmatched], *targets)[0])
    assert len(aligned) == len(unmatched_labels)
    (without_reference,) = parallel.label([other], {}, *targets, features_of)
    np.testing.assert_array_equal(without_reference, unmatched_labels)
    # With constant features, frames are aligned by time, and labels are still of the reference.
    constant_features = lambda wave_bt, lengths_b: tuple(  # noqa: E731
        np.ones_like(array) if array.ndim > 2 else array
        for array in features_of(wave_bt, lengths_b)
    )
    (by_time,) = parallel.label([other], {"la": reference}, *targets, constant_features)
    assert set(by_time) <= set(expected) and list(by_time) != list(aligned)


def test_a_reference_without_a_frame_is_rejected():
    short = Item("short one", np.zeros(10, np.float32), "la", speaker="one")
    other = Item("o", chord([300.0], [0.4], 0.8), "la", speaker="two")
    features_of = unit_targets.mfcc_features(TRUNK)
    arguments = features_of, TRUNK, np.zeros((2, 39), np.float32), features_of
    with pytest.raises(InputError, match="short one: is a reference that is too short"):
        parallel.label([other], {"la": short}, *arguments)
    assert len(parallel.label([short], {"la": short}, *arguments)[0]) == 0


def test_references_need_a_text_and_a_single_speaker(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(4000), RATE)
    rows = [{"id": name, "audio": "a.wav", "text": name, "speaker": "one"} for name in "ab"]

    def write(rows: list[dict]) -> str:
        path = tmp_path / "reference.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    assert sorted(parallel.read_references(write(rows))) == ["a", "b"]
    for invalid in ({"speaker": "two"}, {"text": ""}):
        with pytest.raises(InputError, match="b must have a text"):
            parallel.read_references(write([rows[0], rows[1] | invalid]))
