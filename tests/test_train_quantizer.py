"""The training of the quantizer: augmentation, CTC, and units that stay the same."""

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from speech_runs import TRUNK, changed, losses, run
from tones import make_tone

from spirit_jax import checkpoint
from spirit_jax.audio import load_audio, write_wav
from spirit_jax.data import augment
from spirit_jax.data.augment import AugmentConfig
from spirit_jax.data.speech import SpeechDataConfig, read_items
from spirit_jax.errors import InputError
from spirit_jax.evaluation import unit_distance as evaluation
from spirit_jax.models import hubert
from spirit_jax.models.hubert import HubertConfig, QuantizerConfig
from spirit_jax.models.wav2vec2 import Trunk
from spirit_jax.training.export import export
from spirit_jax.training.hubert import targets as unit_targets
from spirit_jax.training.hubert.targets import Recording
from spirit_jax.training.kmeans import KMeansConfig
from spirit_jax.training.optimizer import OptimizerConfig
from spirit_jax.training.quantizer import recipe as training
from spirit_jax.training.quantizer.config import QuantizerRunConfig
from spirit_jax.training.quantizer.recipe import QuantizerRecipe

pytest_plugins = "speech_runs"

STEPS = 80
CLUSTERS = 5
AUGMENT = AugmentConfig(
    stretch=0.2,
    pitch=0,
    reverberation=0,
    noise=0.7,
    stretch_rates=(0.9, 1.1),
    pitch_semitones=(-1, 1),
    noise_db=(20, 30),
)


def write_sounds(folder, count):
    """Recordings of sounds that are easy to distinguish, each 0.2 to 0.4 s long."""
    for number in range(count):
        rng = np.random.default_rng(number)
        parts = []
        while sum(map(len, parts)) < 16000:
            time = np.arange(int(rng.uniform(0.2, 0.4) * 16000)) / 16000
            frequency = (150, 600, 2400, 5000)[rng.integers(4)]
            parts.append(0.2 * np.sin(2 * np.pi * frequency * time))
        write_wav(folder / f"{number}.wav", np.concatenate(parts)[:16000])
    return str(folder)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run that starts from a random encoder and clusters of its output."""
    folder = tmp_path_factory.mktemp("quantizer")
    sounds = write_sounds(folder / "sounds", 6)
    audio = jnp.zeros((1, 1600)), jnp.array([1600])
    params = jax.jit(Trunk(TRUNK).init)(jax.random.key(0), *audio)["params"]
    items = read_items([sounds])
    network = unit_targets.network_features(TRUNK, params)
    centroids = unit_targets.find_centroids(items, network, TRUNK, CLUSTERS, KMeansConfig())
    kmeans = QuantizerConfig("kmeans", CLUSTERS, TRUNK.hidden_size)
    params = jax.tree.map(np.asarray, params)
    checkpoint.save_network(folder / "start" / "hubert", HubertConfig(TRUNK), params)
    checkpoint.save_network(folder / "start" / "quantizer", kmeans, {"centroids": centroids})
    return QuantizerRunConfig(
        run_dir=str(folder / "whole"),
        start=str(folder / "start"),
        steps=STEPS,
        checkpoint_every=50,
        data=SpeechDataConfig((sounds,), (sounds,), batch_rows=4),
        optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.0, warmup_steps=5),
        augment=AUGMENT,
        hidden_sizes=(16,),
        train_encoder_layers=1,
        segment_seconds=1.2,
        eval_recordings=0,
    )


@pytest.fixture(scope="module")
def recipe(config):
    return QuantizerRecipe(config)


@pytest.mark.slow
def test_it_learns_and_measures_how_far_units_move(whole, config):
    assert np.mean(losses(whole[-10:])) < 0.4 * np.mean(losses(whole[:5]))
    last = whole[-1]
    assert 0 < last["blank_share"] < 1 and 1 < last["perplexity"] <= CLUSTERS
    assert 0 < last["units_used"] <= 1 and last["fitting_rows"] == 1
    edits = [last[f"eval_start_edits_{kind}"] for kind in augment.KINDS]
    assert last["eval_start_edits"] == pytest.approx(np.mean(edits)) and min(edits) > 0
    assert last["eval_edits_noise"] < 0.5 * last["eval_start_edits_noise"]
    assert last["eval_edits_from_start"] < 60
    report = Path(config.run_dir) / "report"
    assert (report / "units.png").stat().st_size > 1000
    for kind in ("unchanged", *augment.KINDS):
        assert len(load_audio(report / f"{kind}.wav"))


@pytest.mark.slow  # that of test_add_a_network.py runs in every suite
def test_a_resumed_run_equals_an_uninterrupted_one_bitwise(config, whole):
    stopped = changed(config, "stopped", steps=16, checkpoint_every=6)
    run(QuantizerRecipe(stopped), stop_after=9)
    rest = run(QuantizerRecipe(stopped))
    assert losses(rest) == losses(whole[:16])[-len(rest) :] and 0 < len(rest) < 16


@pytest.mark.slow
def test_two_devices_change_nothing(config, whole):
    split = run(QuantizerRecipe(changed(config, "split", steps=8)), devices=2)
    np.testing.assert_allclose(losses(split), losses(whole[:8]), rtol=2e-5)


@pytest.mark.slow
def test_the_exported_networks_give_units_and_only_the_last_layer_is_trained(
    config, recipe, exported
):
    model, params = hubert.load(exported / "hubert", exported / "quantizer")
    assert model.quantizer == QuantizerConfig("mlp", CLUSTERS, 16, (16,))
    _, before = checkpoint.load_network(f"{config.start}/hubert", HubertConfig)
    moved = {
        path
        for path, leaf in checkpoint.flatten(params["hubert"]).items()
        if not np.array_equal(leaf, checkpoint.flatten(before)[path])
    }
    assert moved and all(path.startswith("layers/1/") for path in moved)
    audio = load_audio(read_items(config.data.sources)[0].audio)
    network = unit_targets.network_units(model, params)
    units, frames = network(audio[None], jnp.array([len(audio)]))
    assert frames.tolist() == [24] and 0 <= units.min() and units.max() <= CLUSTERS
    with pytest.raises(InputError, match="exists already"):
        export(recipe, exported)


@pytest.mark.slow
def test_a_trained_quantizer_is_trained_further(config, exported):
    further = changed(config, "further", start=str(exported), train_encoder_layers=0)
    trained, frozen = QuantizerRecipe(further).init()
    _, params = hubert.load(exported / "hubert", exported / "quantizer")
    merged = training.merge(trained, frozen)
    jax.tree.map(np.testing.assert_array_equal, merged, params)
    assert trained["layers"] == {}


ctc_loss = jax.jit(training.ctc_loss, static_argnums=4)


def test_ctc_equals_a_sum_over_all_paths():
    """Paths that give the units when repeats, and then blanks, are dropped."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 5, 4)).astype(np.float32)
    units = np.array([[0, 1, 0], [2, 9, 9], [1, 2, 9]])
    counts, frames = np.array([3, 1, 2]), np.array([5, 3, 4])
    expected = []
    for row in range(3):
        probs = np.exp(scores[row]) / np.exp(scores[row]).sum(-1, keepdims=True)
        total = 0.0
        for path in itertools.product(range(4), repeat=int(frames[row])):
            collapsed = [unit for unit, _ in itertools.groupby(path) if unit != 3]
            if collapsed == units[row, : counts[row]].tolist():
                total += np.prod([probs[time, unit] for time, unit in enumerate(path)])
        expected.append(-np.log(total))
    units[units == 9] = 0
    computed = ctc_loss(scores, frames, units, counts, 3)
    np.testing.assert_allclose(computed, expected, rtol=1e-4)


def test_rows_with_fewer_frames_than_units_do_not_count():
    scores = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    units, counts = np.array([[0, 1, 0], [0, 1, 0]]), np.array([3, 3])
    metrics = jax.jit(training.measure, static_argnums=4)(
        scores, np.array([4, 2]), units, counts, 2
    )
    first = float(ctc_loss(scores, np.array([4, 2]), units, counts, 2)[0])
    assert metrics["fitting_rows"] == 0.5
    assert metrics["loss"] == pytest.approx(first / 3, rel=1e-5)
    best = np.concatenate([scores[0], scores[1, :2]]).argmax(-1)
    assert metrics["blank_share"] == pytest.approx(np.mean(best == 2))


def test_rows_have_the_units_of_their_place(config):
    teacher, _ = hubert.load(f"{config.start}/hubert", f"{config.start}/quantizer")
    labels = np.repeat(np.arange(12, dtype=np.int32), 2)
    recording = Recording(read_items(config.data.sources)[0], labels)
    still = dataclasses.replace(config, augment=training.NO_AUGMENTATION, segment_seconds=0.4)
    samples = load_audio(recording.item.audio)
    places = set()
    for seed in range(8):
        row = training.make_row(recording, np.random.default_rng(seed), still, teacher)
        units = row["units_bu"][: row["counts_b"]]
        assert units.tolist() == list(range(units[0], units[-1] + 1)) and len(units) in (5, 6)
        wave = row["wave_bt"][: row["lengths_b"]]
        starts = [n for n in range(15) if np.array_equal(wave, samples[n * 640 :][: len(wave)])]
        assert [labels[n] for n in starts] == [units[0]]
        places.update(starts)
    assert len(places) > 3
    moved = dataclasses.replace(still, augment=augment.only("stretch", config.augment))
    row = training.make_row(recording, np.random.default_rng(0), moved, teacher)
    assert row["lengths_b"] != len(wave)


# Augmentation.

TONE = make_tone(1, 2.0, 150.0)


def pitch_of(samples):
    f0 = librosa.yin(samples, fmin=60, fmax=800, sr=16000)
    return np.median(f0)


def hum(frequency, seconds=1.5):
    phase = 2 * np.pi * frequency * np.arange(int(seconds * 16000)) / 16000
    return sum(np.sin(k * phase) / k for k in range(1, 6)).astype(np.float32) * 0.1


@pytest.mark.parametrize("rate", [0.8, 1.2])
def test_stretching_changes_the_length_and_not_the_pitch(rate):
    augmented = augment.stretch(hum(200), np.random.default_rng(0), (rate, rate))
    assert len(augmented) == pytest.approx(24000 / rate, abs=1) and augmented.dtype == np.float32
    assert pitch_of(augmented) == pytest.approx(200, rel=0.02)


@pytest.mark.parametrize("semitones", [-4.0, 4.0])
def test_shifting_changes_the_pitch_and_not_the_length(semitones):
    augmented = augment.shift_pitch(hum(200), np.random.default_rng(0), (semitones, semitones))
    assert augmented.shape == (24000,) and augmented.dtype == np.float32
    assert pitch_of(augmented) == pytest.approx(200 * 2 ** (semitones / 12), rel=0.02)


def test_reverberation_decays_at_its_rate():
    click = np.zeros(16000, np.float32)
    click[4000] = 0.5
    augmented = augment.reverberate(click, np.random.default_rng(0), (0.4, 0.4))
    assert augmented.shape == click.shape and augmented.dtype == np.float32
    assert not np.abs(augmented[:3990]).max() > 1e-6
    assert np.argmax(np.abs(augmented)) == 4000  # the direct sound stays where it was
    power = [np.mean(augmented[4001 + n * 1600 :][:1600] ** 2) for n in range(4)]
    # 60 dB in 0.4 s are 15 dB in 0.1 s
    decays = 10 * np.log10(np.array(power[:-1]) / power[1:])
    np.testing.assert_allclose(decays, 15, atol=1.5)
    assert np.mean(augmented**2) == pytest.approx(np.mean(click**2), rel=1e-3)


@pytest.mark.parametrize("decibels", [5.0, 15.0])
def test_noise_has_the_given_ratio(decibels):
    augmented = augment.add_noise(TONE, np.random.default_rng(0), (decibels, decibels))
    ratio = np.mean(TONE**2) / np.mean((augmented - TONE) ** 2)
    assert 10 * np.log10(ratio) == pytest.approx(decibels, abs=0.01)


def test_noise_has_the_slope_of_its_exponent():
    for exponent in (0, 1, 2):
        noise = augment.coloured_noise(1 << 16, exponent, np.random.default_rng(0))
        power = np.square(np.abs(np.fft.rfft(noise)))
        frequency = np.fft.rfftfreq(1 << 16, 1 / 16000)
        bands = [power[(frequency > low) & (frequency < 2 * low)].mean() for low in (200, 400, 800)]
        octave = 10 * np.log10(bands[0] / bands[1]), 10 * np.log10(bands[1] / bands[2])
        np.testing.assert_allclose(octave, 3.01 * exponent, atol=1)


def test_augmentations_are_drawn_from_the_rng_each_with_its_probability():
    config = AugmentConfig()
    draws = [augment.augment(TONE, np.random.default_rng(seed), config) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert draws[0].shape != draws[2].shape or not np.array_equal(draws[0], draws[2])
    nothing = training.NO_AUGMENTATION
    np.testing.assert_array_equal(augment.augment(TONE, np.random.default_rng(0), nothing), TONE)
    for kind in augment.KINDS:
        changed = augment.augment(TONE, np.random.default_rng(0), augment.only(kind, config))
        assert not np.array_equal(changed, TONE)
        assert (len(changed) != len(TONE)) == (kind == "stretch")


def test_silence_and_very_short_audio_are_augmented():
    for samples in (np.zeros(3000, np.float32), TONE[:50], TONE[:0]):
        for kind in augment.KINDS:
            rng = np.random.default_rng(0)
            augmented = augment.augment(samples, rng, augment.only(kind, AugmentConfig()))
            assert np.isfinite(augmented).all()


# Metrics of units.


def test_unit_edits_are_in_percent_without_repeats():
    clean, other = np.array([7, 7, 1, 1, 1, 2, 7]), np.array([7, 1, 3, 3, 7, 7])
    assert evaluation.unit_edit_distance(clean, other) == 25
    assert evaluation.unit_edit_distance(clean, clean.repeat(3)) == 0
    assert evaluation.unit_edit_distance(clean[:0], clean[:0]) == 0


def test_the_phone_probe_takes_the_phone_a_unit_mostly_has():
    train = np.array([0, 0, 0, 1, 1, 2]), np.array(["a", "a", "b", "b", "b", "a"])
    test = np.array([0, 0, 1, 2, 3]), np.array(["a", "b", "b", "a", "a"])
    # Unit 3 is not in the training data: it gets the most frequent phone, "a" (as frequent as "b").
    assert evaluation.phone_probe(*train, *test) == pytest.approx(4 / 5)


def test_frames_have_the_phones_at_their_middle():
    spans = [("a", 0.0, 0.1), ("b", 0.15, 0.3)]
    labels = evaluation.labels_at_frames(spans, 7, rate=25, center=0.02)
    assert labels.tolist() == ["a", "a", "", "", "b", "b", "b"]


def test_wrong_settings_are_named(config):
    with pytest.raises(InputError, match="start is empty"):
        dataclasses.replace(config, start="")
    with pytest.raises(InputError, match="has 2"):
        QuantizerRecipe(dataclasses.replace(config, train_encoder_layers=3))
    for changes, message in (
        ({"stretch": 1.5}, "probabilities"),
        ({"noise_db": (15.0, 5.0)}, "noise_db"),
        ({"stretch_rates": (0.0, 1.0)}, "above 0"),
    ):
        with pytest.raises(InputError, match=message):
            AugmentConfig(**changes)
