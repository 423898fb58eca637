"""Labels from a reference voice: frames are aligned, and say what the reference says."""

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


def test_a_stretched_sequence_is_aligned_frame_by_frame():
    others_ud = np.random.default_rng(0).standard_normal((6, 8))
    lasting = [2, 1, 3, 1, 1, 4]
    values_td = 3 * np.repeat(others_ud, lasting, axis=0)  # loudness has no say
    np.testing.assert_array_equal(
        parallel.align(values_td, others_ud), np.repeat(np.arange(6), lasting)
    )
    # The other way round a frame has several, of which the middle one is taken.
    np.testing.assert_array_equal(parallel.align(others_ud, values_td), [0, 2, 4, 6, 7, 9])
    assert len(parallel.align(values_td[:0], others_ud)) == 0


def chord(pitches: list[float], seconds: list[float], tilt: float) -> np.ndarray:
    """Tones in a row; `tilt` is how weak the second and third harmonics are: a voice."""
    parts = []
    for pitch, length in zip(pitches, seconds, strict=True):
        times = np.arange(int(length * RATE)) / RATE
        parts.append(sum(tilt**n * np.sin(2 * np.pi * (n + 1) * pitch * times) for n in range(3)))
    noise = np.random.default_rng(0).standard_normal(sum(len(part) for part in parts))
    return (0.1 * np.concatenate(parts) + 1e-3 * noise).astype(np.float32)


def test_two_voices_that_say_the_same_have_the_labels_of_the_reference(tmp_path):
    said = [300.0, 900.0, 1500.0]
    reference = Item("r", chord(said, [0.4, 0.5, 0.4], 0.2), "la", speaker="one")
    other = Item("o", chord(said, [0.7, 0.3, 0.6], 0.8), "la", speaker="two")
    alone = Item("a", chord(said, [0.7, 0.3, 0.6], 0.8), "li", speaker="two")
    features_of = unit_targets.mfcc_features(TRUNK)
    (features_td,) = unit_targets.compute_features([reference], features_of, TRUNK)
    centroids_vd = kmeans.fit(features_td, 6, kmeans.KMeansConfig())
    found = features_of, TRUNK, centroids_vd
    aligned, own = parallel.label([other, alone], {"la": reference}, *found, features_of)
    (expected,) = unit_targets.label([reference], *found)
    np.testing.assert_array_equal(aligned[dedup(aligned)], expected[dedup(expected)])
    np.testing.assert_array_equal(own, unit_targets.label([alone], *found)[0])
    assert len(aligned) == len(own)
    (plain,) = parallel.label([other], {}, *found, features_of)
    np.testing.assert_array_equal(plain, own)
    # Features that hear nothing align as the clock does, and the labels are the reference's still.
    deaf = lambda wave_bt, lengths_b: tuple(  # noqa: E731
        np.ones_like(array) if array.ndim > 2 else array
        for array in features_of(wave_bt, lengths_b)
    )
    (by_clock,) = parallel.label([other], {"la": reference}, *found, deaf)
    assert set(by_clock) <= set(expected) and list(by_clock) != list(aligned)


def test_a_reference_without_a_frame_is_named():
    short = Item("short one", np.zeros(10, np.float32), "la", speaker="one")
    other = Item("o", chord([300.0], [0.4], 0.8), "la", speaker="two")
    features_of = unit_targets.mfcc_features(TRUNK)
    found = features_of, TRUNK, np.zeros((2, 39), np.float32), features_of
    with pytest.raises(InputError, match="short one: is a reference that is too short"):
        parallel.label([other], {"la": short}, *found)
    assert len(parallel.label([short], {"la": short}, *found)[0]) == 0


def test_references_say_what_they_say_and_are_of_one_voice(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(4000), RATE)
    rows = [{"id": name, "audio": "a.wav", "text": name, "speaker": "one"} for name in "ab"]

    def write(rows: list[dict]) -> str:
        path = tmp_path / "reference.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    assert sorted(parallel.read_references(write(rows))) == ["a", "b"]
    for wrong in ({"speaker": "two"}, {"text": ""}):
        with pytest.raises(InputError, match="b must have a text"):
            parallel.read_references(write([rows[0], rows[1] | wrong]))
