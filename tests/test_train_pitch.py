"""The training of the pitch VQ-VAE: it learns, resumes, and its exported network works."""

import dataclasses
import functools
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from speech_runs import changed, load_state, losses, run, without_evaluation
from tones import write_tones

from spirit_jax.data.configs import F0Config
from spirit_jax.data.manifest import Item
from spirit_jax.data.speech import SpeechDataConfig, draw_items, read_items
from spirit_jax.errors import InputError
from spirit_jax.models import pitch
from spirit_jax.models.pitch import PitchConfig, StackConfig
from spirit_jax.training.configs import EmaConfig
from spirit_jax.training.export import export
from spirit_jax.training.optimizer import OptimizerConfig
from spirit_jax.training.pitch import recipe as training
from spirit_jax.training.pitch.config import PitchRunConfig
from spirit_jax.training.pitch.recipe import PitchRecipe

pytest_plugins = "speech_runs"

STEPS = 200
STACK = StackConfig(width=16, hidden=16, depth=1)
NETWORK = PitchConfig(downs=((4, 8, 2),), encoder=STACK, decoder=STACK, num_codes=8, code_dim=16)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pitch")
    manifest = write_tones(folder, 6)
    return PitchRunConfig(
        run_dir=str(folder / "whole"),
        steps=STEPS,
        checkpoint_every=50,
        data=SpeechDataConfig((manifest,), (manifest,), batch_rows=4),
        optimizer=OptimizerConfig(learning_rate=5e-3, weight_decay=0.0),
        network=NETWORK,
        f0=F0Config(str(folder / "f0"), resolution=0.5, workers=1),
        segment_frames=96,
        # of 96 / 4 x 4 latents a step, 12 a code
        ema=EmaConfig(decay=0.9, restart_below=1.0),
    )


@pytest.fixture(scope="module")
def recipe(config):
    return PitchRecipe(config)


def test_it_learns_f0_and_voicing_with_all_codes(whole):
    first, last = whole[0], whole[-1]
    assert last["reconstruction"] < 0.3 * first["reconstruction"]
    assert last["eval_f0_rmse"] < 15 and last["eval_voicing_error"] < 0.15
    assert last["eval_codes_used"] == 1 and last["eval_perplexity"] > 4
    assert first["restarts"] > 0 == last["restarts"]


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bitwise(config, whole, final_state):
    stopped = without_evaluation(changed(config, "stopped"))
    run(PitchRecipe(stopped), stop_after=60)
    recipe = PitchRecipe(stopped)
    rest = run(recipe)
    assert [line["step"] for line in rest] == list(range(51, STEPS + 1))
    assert losses(rest) == losses(whole[50:])
    jax.tree.map(np.testing.assert_array_equal, load_state(recipe), final_state)


@pytest.mark.slow
def test_two_devices_equal_one(config, whole):
    shared = run(PitchRecipe(changed(config, "shared", steps=6, eval_every=3)), devices=2)
    for name in ("loss", "f0_rmse", "codes_used", "restarts"):
        values, expected = ([line[name] for line in lines] for lines in (shared, whole[:6]))
        np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_an_exported_network_gives_the_same_error_and_is_trained_further(
    config, recipe, whole, exported
):
    model, params = pitch.load(exported)
    assert model.config == NETWORK
    features = training.read_features(read_items(config.data.held_out), config, NETWORK)
    rows = [training.make_row(each, np.random.default_rng(0), 400) for each in features]
    given, lengths = (np.stack([row[name] for row in rows]) for name in rows[0])
    apply = jax.jit(model.apply, static_argnames="method")
    codes, counts = map(np.asarray, apply({"params": params}, given, lengths))
    decoded = apply({"params": params}, codes, counts, method="decode")
    decoded, sizes = map(np.asarray, decoded)
    errors, used = [], set()
    for row in range(6):
        size, voiced = sizes[row], given[row, : sizes[row], 1] > 0
        errors.append((decoded[row, :size, 0] - given[row, :size, 0])[voiced])
        used |= set(codes[row, : counts[row]].tolist())
    rmse = np.sqrt(np.square(np.concatenate(errors)).mean())
    np.testing.assert_allclose(rmse, whole[-1]["eval_f0_rmse"], rtol=1e-3)
    assert used == set(range(8))

    further = changed(config, "further", start=str(exported), network=PitchConfig())
    (line,) = run(PitchRecipe(without_evaluation(further)), stop_after=1)
    assert line["restarts"] == 0 and line["reconstruction"] < 2 * whole[-1]["reconstruction"]
    with pytest.raises(InputError, match="exists already"):
        export(recipe, exported)


def test_the_report_has_plots_and_audio(config, whole):
    folder = Path(config.run_dir) / "report"
    assert (folder / "pitch.png").stat().st_size > 10_000
    before, after = (soundfile.read(folder / f"{name}.wav")[0] for name in ("before", "after"))
    assert len(before) == len(after) and np.abs(before).max() > 0.05 < np.abs(after).max()


def test_rows_are_segments_or_padded():
    features = np.arange(20, dtype=np.float32).reshape(10, 2)
    row = training.make_row(features, np.random.default_rng(0), 4)
    assert row["lengths_b"] == 4 and (np.diff(row["features_bt2"][:, 0]) == 2).all()
    starts = {
        float(training.make_row(features, np.random.default_rng(k), 4)["features_bt2"][0, 0])
        for k in range(50)
    }
    assert starts == {0, 2, 4, 6, 8, 10, 12}
    short = training.make_row(features[:3], np.random.default_rng(0), 4)
    assert short["lengths_b"] == 3 and not short["features_bt2"][3].any()


def test_the_mean_of_the_speaker_or_of_the_utterance_is_subtracted(config, whole):
    items = read_items(config.data.sources)
    for mean, groups in (
        ("speaker", [[0, 2, 4], [1, 3, 5]]),
        ("utterance", [[k] for k in range(6)]),
    ):
        features = training.read_features(items, dataclasses.replace(config, mean=mean), NETWORK)
        for group in groups:
            joint = np.concatenate([features[k] for k in group])
            assert abs(joint[joint[:, 1] > 0, 0].mean()) < 0.1
    assert abs(features[0][:, 0]).max() > 10  # Hz


def test_the_loss_is_that_of_the_paper_at_a_scale_of_one(config):
    rng = np.random.default_rng(0)
    given, decoded = (rng.standard_normal((1, 8, 2)).astype(np.float32) for _ in range(2))
    latent, quantized = (rng.standard_normal((1, 2, 16)).astype(np.float32) for _ in range(2))
    mask, code_mask = np.ones((1, 8), bool), np.ones((1, 2), bool)
    codes = np.array([[0, 3]], np.int32)
    output = training.PitchOutput(given, decoded, mask, latent, quantized, codes, code_mask)
    expected = 2 * np.square(given - decoded).mean() + 0.02 * np.square(latent - quantized).mean()
    measure = jax.jit(training.measure, static_argnums=(1, 2))
    metrics = measure(output, dataclasses.replace(config, scale=1.0), 8)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    assert metrics["codes_used"] == 0.25
    mask[0, 4:], decoded[0, 4:] = False, 1e6  # padding does not count
    assert measure(output, config, 8)["loss"] < 10


def test_the_learning_rate_decays_by_epochs(config, whole):
    """Epochs of one step: at a decay of nearly 0 the second step changes nothing."""
    halted = changed(config, "halted", epoch_decay=1e-9, steps=2, checkpoint_every=1)
    recipe = PitchRecipe(without_evaluation(halted))
    assert run(recipe)[0]["learning_rate"] == pytest.approx(5e-3)
    after = load_state(recipe)
    shutil.rmtree(Path(halted.run_dir) / "checkpoints" / "2")
    before = load_state(recipe)
    assert (before.step, after.step) == (1, 2)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-6), before.params, after.params
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": "x"}, "mean is 'x'"),
        ({"segment_frames": 0}, "segment_frames"),
        ({"scale": 0.0}, "scale"),
        ({"epoch_decay": 0.0}, "epoch_decay"),
        ({"start": "nowhere"}, "nowhere"),
    ],
)
def test_wrong_settings_are_named(config, change, message):
    with pytest.raises(InputError, match=message):
        PitchRecipe(dataclasses.replace(config, **change))


def test_the_number_of_recordings_is_limited(config, monkeypatch):
    counts = []
    monkeypatch.setattr(
        training, "read_features", lambda items, *_: counts.append(len(items)) or [np.zeros((9, 2))]
    )
    for limit, expected in ((0, 6), (4, 4)):
        PitchRecipe(dataclasses.replace(config, max_recordings=limit)).make_stream([0])
        assert counts.pop() == expected


def test_a_recording_that_cannot_be_used_is_reported_with_its_manifest(tmp_path):
    (tmp_path / "some.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(InputError, match="some.jsonl: a: Line 1: has neither audio nor text"):
        read_items([str(tmp_path / "some.jsonl")])


def test_recordings_are_drawn_from_everywhere_in_order():
    items = [Item(str(k)) for k in range(100)]
    drawn = [int(item.id) for item in draw_items(items, 20, seed=1)]
    assert len(set(drawn)) == 20 and drawn == sorted(drawn) and drawn[0] < 20 and drawn[-1] > 80
    assert draw_items(items, 0, 0) == draw_items(items, 200, 0) == items
