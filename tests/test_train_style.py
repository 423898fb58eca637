"""The training of the style encoder: its labels, and that it learns them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import speech_runs
from speech_runs import changed
from tones import write_tones

from spirit_jax.audio import load_audio
from spirit_jax.data import f0_cache
from spirit_jax.data.f0_cache import F0Config
from spirit_jax.data.manifest import Item
from spirit_jax.data.speech import SpeechDataConfig, read_items
from spirit_jax.errors import InputError
from spirit_jax.models import style
from spirit_jax.models.style import StyleConfig
from spirit_jax.models.wav2vec2 import TrunkConfig
from spirit_jax.training.export import export
from spirit_jax.training.optimizer import OptimizerConfig
from spirit_jax.training.style import features as style_features
from spirit_jax.training.style import labels as style_labels
from spirit_jax.training.style import recipe as training
from spirit_jax.training.style.config import StyleRunConfig
from spirit_jax.training.style.recipe import StyleRecipe

run = functools.partial(speech_runs.run, StyleRecipe)

STEPS, STYLES = 40, 4
NETWORK = StyleConfig(
    trunk=TrunkConfig(
        input_norm_eps=1e-7,
        conv_layers=((24, 40, 20), (24, 16, 16)),
        conv_pos=4,
        conv_pos_groups=2,
        hidden_size=24,
        num_layers=1,
        num_heads=2,
        ffn_size=32,
    ),
    projection_size=16,
    num_styles=STYLES,
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("style")
    manifest = write_tones(folder, 10)
    return StyleRunConfig(
        run_dir=str(folder / "whole"),
        steps=STEPS,
        checkpoint_every=10,
        data=SpeechDataConfig((manifest,), (manifest,), batch_rows=4),
        optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.0),
        network=NETWORK,
        f0=F0Config(str(folder / "f0"), resolution=0.5, workers=1),
        labels="manifest",
        segment_units=2,
    )


@pytest.fixture(scope="module")
def whole(config):
    """The lines of a run from start to end."""
    return run(config)


def test_it_learns_who_speaks(whole):
    """Two speakers, an octave apart; their two manners sound the same."""
    first, last = whole[0], whole[-1]
    assert last["eval_loss"] < 0.75 * first["loss"]
    assert last["eval_accuracy"] > last["eval_commonest"] + 0.1
    assert last["eval_styles_used"] >= 0.5 and last["eval_perplexity"] > 1.9


def test_stopped_equals_unstopped_bitwise(config, whole):
    stopped = changed(config, "stopped")
    run(stopped, stop_after=15)
    rest = run(stopped)
    assert [line["step"] for line in rest] == list(range(11, STEPS + 1))
    assert [line["loss"] for line in rest] == [line["loss"] for line in whole[10:]]
    states = [speech_runs.load_state(StyleRecipe, run) for run in (config, stopped)]
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.slow
def test_two_devices_equal_one(config, whole):
    data = dataclasses.replace(config.data, held_out=())
    shared = run(changed(config, "shared", steps=5, data=data), devices=2)
    for name in ("loss", "accuracy"):
        found, expected = ([line[name] for line in lines] for lines in (shared, whole[:5]))
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(shared[0]["loss"], whole[0]["loss"], rtol=1e-6)


def test_an_exported_network_gives_the_units_and_can_be_gone_on_with(config, whole, tmp_path):
    assert export(StyleRecipe(config), tmp_path / "network") == STEPS
    model, params = style.load(tmp_path / "network")
    assert model.config == NETWORK
    apply, right, total = jax.jit(model.apply), 0, 0
    for k, item in enumerate(read_items(config.data.held_out)):
        wave = load_audio(item.audio)
        padded = np.pad(wave, (0, 32000 - len(wave)))
        logits, (count,) = apply({"params": params}, padded[None], np.array([len(wave)]))
        found = np.asarray(logits[0, :count]).argmax(-1)
        # In alphabetical order: high calm, high glad, low calm, low glad.
        right, total = right + (found == 2 * (k % 2 == 0) + k // 2 % 2).sum(), total + count
    np.testing.assert_allclose(right / total, whole[-1]["eval_accuracy"], atol=1e-6)

    data = dataclasses.replace(config.data, held_out=())
    start = {"start": str(tmp_path / "network"), "network": StyleConfig()}
    (line,) = run(changed(config, "again", steps=1, data=data, **start))
    assert line["loss"] < 0.75 * whole[0]["loss"]


def test_clusters_of_features_are_labels_and_a_report_shows_them(config):
    clustered = changed(config, "clustered", labels="features", steps=2)
    lines = run(clustered)
    assert 0.2 < lines[-1]["eval_commonest"] < 0.7
    folder = training.Path(clustered.run_dir) / "report"
    assert (folder / "style.png").stat().st_size > 10_000
    sounds = [soundfile.read(path)[0] for path in folder.glob("style-*.wav")]
    assert sounds and all(np.abs(sound).max() > 0.05 for sound in sounds)
    assert len((folder / "styles.tsv").read_text().splitlines()) == STYLES + 1


def make_track(voiced, f0_hz=200.0):
    voiced = np.asarray(voiced, np.float32)
    return f0_cache.Track(np.broadcast_to(np.float32(f0_hz), voiced.shape), voiced)


def test_features_say_how_it_sounds():
    """Four seconds: loud, soft, hissing, and in four bursts."""
    rng, time_t = np.random.default_rng(0), np.arange(16000) / 16000
    tone = np.sin(2 * np.pi * 200 * time_t)
    hiss = np.diff(rng.standard_normal(16001))
    bursts = tone * (np.sin(2 * np.pi * 4 * time_t) > 0)
    wave = np.concatenate([tone, 0.1 * tone, 0.3 * hiss, bursts]).astype(np.float32)
    voiced = np.repeat([1, 1, 0, 0.0], 200)
    f0_t = np.concatenate([np.full(200, 400.0), np.full(600, 200.0)])
    features = style_features.style_features(wave, make_track(voiced, f0_t), 200.0)
    named = dict(zip(style_features.NAMES, features.T, strict=True))
    np.testing.assert_allclose(named["level"][0] - named["level"][1], 20, atol=1)
    assert named["range"].argmax() == 3 and named["tilt"].argmax() == 2
    assert named["tilt"][2] > 0 > named["tilt"][0]
    np.testing.assert_allclose(named["F0 level"], [12, 0, 0, 0], atol=1e-5)
    np.testing.assert_allclose(named["F0 range"], 0, atol=1e-5)
    np.testing.assert_allclose(named["voiced"], [1, 1, 0, 0])
    assert named["pace"].argmax() == 3 and 2 < named["pace"][3] < 6


@pytest.mark.parametrize(
    ("samples", "units"), [(0, 0), (7999, 0), (8000, 1), (23999, 1), (24000, 2)]
)
def test_a_last_second_counts_from_its_half_on(samples, units):
    wave = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    track = make_track(np.ones(samples // 80 + 1))
    features = style_features.style_features(wave, track, 200.0)
    assert features.shape == (units, 7) and np.isfinite(features).all()


def test_silence_has_features():
    track = make_track(np.zeros(201), 0.0)
    features = style_features.style_features(np.zeros(16000, np.float32), track, 0.0)
    assert np.isfinite(features).all() and features[0, 0] == 0


def test_clusters_are_found_and_numbered_by_the_training_set():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0], [0, 100], [1000, 0]])
    points = [centre + rng.standard_normal((50, 2)) for centre in centres]
    items = [Item(str(k)) for k in range(3)]
    labels = style_labels.label_by_features(items, items[:1], points, points[2:], 3, seed=0)
    each = [set(one.labels_s.tolist()) for one in labels.train]
    assert sorted(map(len, each)) == [1, 1, 1] and len(set.union(*each)) == 3
    assert set(labels.held_out[0].labels_s.tolist()) == each[2]
    with pytest.raises(InputError, match="7 clusters"):
        style_labels.label_by_features(items[:1], [], [np.zeros((6, 2))], [], 7, seed=0)


def test_labels_of_a_manifest(tmp_path):
    train = read_items([write_tones(tmp_path, 4)])
    unknown = dataclasses.replace(train[0], style="sad")
    labels = style_labels.label_by_manifest(train, [unknown], 4, 16000)
    assert labels.names == ["high/calm", "high/glad", "low/calm", "low/glad"]
    assert [one.labels_s.tolist() for one in labels.train] == [[2], [0] * 2, [3] * 2, [1] * 2]
    assert labels.held_out[0].labels_s.tolist() == [-1]
    with pytest.raises(InputError, match="have 4 styles"):
        style_labels.label_by_manifest(train, [], 3, 16000)
    with pytest.raises(InputError, match="'style'"):
        style_labels.label_by_manifest([dataclasses.replace(train[0], style="")], [], 3, 16000)


def test_rows_begin_at_whole_seconds():
    wave = np.arange(50, dtype=np.float32)
    labelled = style_labels.Labelled(Item("a", wave), np.arange(4, dtype=np.int32))
    for k in range(20):
        row = training.make_row(labelled, np.random.default_rng(k), units=2, unit_samples=10)
        first = int(row["labels_bs"][0])
        np.testing.assert_array_equal(row["wave_bt"][:10], wave[10 * first : 10 * first + 10])
    whole = training.make_row(labelled, None, units=7, unit_samples=10)
    assert whole["labels_bs"].tolist() == [0, 1, 2, 3, -1, -1, -1] and whole["lengths_b"] == 50


def test_the_loss_is_of_labelled_units_alone():
    """Of given scores: two rows of two seconds, the second row one second long."""
    logits = np.random.default_rng(0).standard_normal((2, 2, STYLES)).astype(np.float32)
    labels = jnp.array([[1, -1], [2, 3]])
    sums, units = training.measure(jnp.asarray(logits), jnp.array([2, 1]), labels)
    metrics = training.summarise(sums)
    assert units.tolist() == [[*logits[0].argmax(-1)], [logits[1, 0].argmax(-1), -1]]
    logs = jax.nn.log_softmax(logits)
    np.testing.assert_allclose(metrics["loss"], -(logs[0, 0, 1] + logs[1, 0, 2]) / 2, rtol=1e-6)
    assert metrics["commonest"] == 0.5
    right = [logits[0, 0].argmax(-1) == 1, logits[1, 0].argmax(-1) == 2]
    assert metrics["accuracy"] == np.mean(right)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"labels": "x"}, "labels is 'x'"), ({"segment_units": 0}, "segment_units")],
)
def test_wrong_settings_are_named(config, change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(config, **change)
