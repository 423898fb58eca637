"""The training of the style encoder: its labels, and that it learns them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from speech_runs import changed, load_state, losses, run, without_evaluation
from tones import write_tones

from spirit_jax.audio import load_audio
from spirit_jax.data.configs import F0Config
from spirit_jax.data.manifest import Item
from spirit_jax.data.speech import SpeechDataConfig, read_items
from spirit_jax.errors import InputError
from spirit_jax.models import style
from spirit_jax.models.style import StyleConfig
from spirit_jax.models.wav2vec2 import TrunkConfig
from spirit_jax.training import f0_tracks
from spirit_jax.training.optimizer import OptimizerConfig
from spirit_jax.training.style import features as style_features
from spirit_jax.training.style import labels as style_labels
from spirit_jax.training.style import recipe as training
from spirit_jax.training.style.config import StyleRunConfig
from spirit_jax.training.style.recipe import StyleRecipe

pytest_plugins = "speech_runs"

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
def recipe(config):
    return StyleRecipe(config)


def test_it_learns_to_distinguish_speakers(whole):
    """Two speakers, an octave apart; their two styles are alike."""
    first, last = whole[0], whole[-1]
    assert last["eval_loss"] < 0.75 * first["loss"]
    assert last["eval_accuracy"] > last["eval_commonest"] + 0.1
    assert last["eval_styles_used"] >= 0.5 and last["eval_perplexity"] > 1.9


@pytest.mark.slow  # that of test_add_a_network.py runs in every suite
def test_a_resumed_run_equals_an_uninterrupted_one_bitwise(config, whole, final_state):
    stopped = without_evaluation(changed(config, "stopped"))
    run(StyleRecipe(stopped), stop_after=15)
    recipe = StyleRecipe(stopped)
    rest = run(recipe)
    assert [line["step"] for line in rest] == list(range(11, STEPS + 1))
    assert losses(rest) == losses(whole[10:])
    jax.tree.map(np.testing.assert_array_equal, load_state(recipe), final_state)


@pytest.mark.slow
def test_two_devices_equal_one(config, whole):
    shared = run(StyleRecipe(without_evaluation(changed(config, "shared", steps=5))), devices=2)
    for name in ("loss", "accuracy"):
        values, expected = ([line[name] for line in lines] for lines in (shared, whole[:5]))
        np.testing.assert_allclose(values, expected, rtol=1e-4)
    np.testing.assert_allclose(shared[0]["loss"], whole[0]["loss"], rtol=1e-6)


def test_an_exported_network_gives_the_units_and_is_trained_further(config, whole, exported):
    model, params = style.load(exported)
    assert model.config == NETWORK
    apply, right, total = jax.jit(model.apply), 0, 0
    for k, item in enumerate(read_items(config.data.held_out)):
        wave = load_audio(item.audio)
        padded = np.pad(wave, (0, 32000 - len(wave)))
        logits, (count,) = apply({"params": params}, padded[None], np.array([len(wave)]))
        units = np.asarray(logits)[0, :count].argmax(-1)
        # In alphabetical order: high calm, high glad, low calm, low glad.
        right, total = right + (units == 2 * (k % 2 == 0) + k // 2 % 2).sum(), total + count
    np.testing.assert_allclose(right / total, whole[-1]["eval_accuracy"], atol=1e-6)

    further = changed(config, "further", start=str(exported), network=StyleConfig())
    (line,) = run(StyleRecipe(without_evaluation(further)), stop_after=1)
    assert line["loss"] < 0.75 * whole[0]["loss"]


@pytest.mark.slow
def test_clusters_of_features_are_labels_and_a_report_shows_them(config, final_state, tmp_path):
    recipe = StyleRecipe(changed(config, "clustered", labels="features"))
    labels = next(recipe.make_stream([0]))["labels_bs"]
    assert labels.max() >= 0 and set(labels.flat) <= {-1, *range(STYLES)}  # -1 for padding
    mesh = config.mesh.make(jax.devices()[:1])
    assert 0.2 < recipe.evaluate(final_state, mesh)["commonest"] < 0.7
    folder = tmp_path / "report"
    folder.mkdir()
    recipe.report(final_state, folder)
    assert (folder / "style.png").stat().st_size > 10_000
    sounds = [soundfile.read(path)[0] for path in folder.glob("style-*.wav")]
    assert sounds and all(np.abs(sound).max() > 0.05 for sound in sounds)
    assert len((folder / "styles.tsv").read_text().splitlines()) == STYLES + 1


def make_track(voiced, f0_hz=200.0):
    voiced = np.asarray(voiced, np.float32)
    return f0_tracks.Track(np.broadcast_to(np.float32(f0_hz), voiced.shape), voiced)


def test_features_describe_loudness_pitch_and_pace():
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
def test_half_a_second_at_the_end_counts_as_one(samples, units):
    wave = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    track = make_track(np.ones(samples // 80 + 1))
    features = style_features.style_features(wave, track, 200.0)
    assert features.shape == (units, 7) and np.isfinite(features).all()


def test_silence_has_features():
    track = make_track(np.zeros(201), 0.0)
    features = style_features.style_features(np.zeros(16000, np.float32), track, 0.0)
    assert np.isfinite(features).all() and features[0, 0] == 0


def test_clusters_are_fitted_to_the_training_set():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0], [0, 100], [1000, 0]])
    points = [centre + rng.standard_normal((50, 2)) for centre in centres]
    items = [Item(str(k)) for k in range(3)]
    labels = style_labels.label_by_features(items, items[:1], points, points[2:], 3, seed=0)
    each = [set(labelled.labels_s.tolist()) for labelled in labels.train]
    assert sorted(map(len, each)) == [1, 1, 1] and len(set.union(*each)) == 3
    assert set(labels.held_out[0].labels_s.tolist()) == each[2]
    with pytest.raises(InputError, match="7 clusters"):
        style_labels.label_by_features(items[:1], [], [np.zeros((6, 2))], [], 7, seed=0)


def test_labels_of_a_manifest(tmp_path):
    train = read_items([write_tones(tmp_path, 4)])
    unknown = dataclasses.replace(train[0], style="sad")
    labels = style_labels.label_by_manifest(train, [unknown], 4, 16000)
    assert labels.names == ["high/calm", "high/glad", "low/calm", "low/glad"]
    each = [labelled.labels_s.tolist() for labelled in labels.train]
    assert each == [[2], [0] * 2, [3] * 2, [1] * 2]
    assert labels.held_out[0].labels_s.tolist() == [-1]
    with pytest.raises(InputError, match="have 4 styles"):
        style_labels.label_by_manifest(train, [], 3, 16000)
    with pytest.raises(InputError, match="'style'"):
        style_labels.label_by_manifest([dataclasses.replace(train[0], style="")], [], 3, 16000)


def test_rows_start_at_whole_seconds():
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
    labels = np.array([[1, -1], [2, 3]])
    sums, units = jax.jit(training.measure)(logits, jnp.array([2, 1]), labels)
    metrics = training.summarise(sums)
    assert units.tolist() == [[*logits[0].argmax(-1)], [logits[1, 0].argmax(-1), -1]]
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
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
