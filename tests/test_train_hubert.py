"""The training of HuBERT: it learns, resumes, and its exported networks give units."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from speech_runs import TRUNK, changed, losses, run, without_evaluation
from tones import write_tones

from spirit_jax import checkpoint
from spirit_jax.audio import load_audio, write_wav
from spirit_jax.data.speech import SpeechDataConfig, read_items
from spirit_jax.errors import InputError
from spirit_jax.models import hubert
from spirit_jax.models.hubert import HubertConfig
from spirit_jax.models.wav2vec2 import Trunk
from spirit_jax.training import distributed, kmeans, loop
from spirit_jax.training.export import export
from spirit_jax.training.hubert import gabor as filters
from spirit_jax.training.hubert import recipe as training
from spirit_jax.training.hubert import targets as unit_targets
from spirit_jax.training.hubert.config import HubertRunConfig
from spirit_jax.training.hubert.recipe import HubertRecipe
from spirit_jax.training.hubert.targets import Recording
from spirit_jax.training.optimizer import OptimizerConfig, make_optimizer

pytest_plugins = "speech_runs"

STEPS = 100


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("units")
    manifest = write_tones(folder, 6)
    return HubertRunConfig(
        run_dir=str(folder / "whole"),
        steps=STEPS,
        checkpoint_every=50,
        data=SpeechDataConfig((manifest,), (manifest,), batch_rows=4),
        optimizer=OptimizerConfig(learning_rate=5e-3, weight_decay=0.0, warmup_steps=5),
        network=TRUNK,
        target_clusters=6,
        embedding_size=8,
        mask_span=3,
        noise=0.3,
        segment_seconds=1.2,
        layer=1,
        clusters=5,
    )


@pytest.fixture(scope="module")
def recipe(config):
    return HubertRecipe(config)


def test_it_learns(whole, config):
    assert np.mean(losses(whole[-10:])) < 0.8 * np.mean(losses(whole[:5]))
    accuracies = [line["accuracy"] for line in whole]
    assert np.mean(accuracies[-10:]) > np.mean(accuracies[:5]) + 0.15
    assert whole[-1]["eval_accuracy"] > 0.4
    assert 1 < whole[-1]["perplexity"] <= 6 and 0 < whole[-1]["clusters_used"] <= 1
    report = Path(config.run_dir) / "report"
    assert all((report / name).stat().st_size > 1000 for name in ("units.png", "units.wav"))


def read_centroids(config):
    """The centroids in the cache of a run."""
    arrays = [np.load(path) for path in (Path(config.run_dir) / "targets").iterdir()]
    (centroids_vd,) = (array["value"] for array in arrays if "value" in array)
    return centroids_vd


@pytest.mark.slow  # that of test_add_a_network.py runs in every suite
def test_a_resumed_run_equals_an_uninterrupted_one_bitwise(config, whole):
    stopped = changed(config, "stopped", steps=16, checkpoint_every=6)
    run(HubertRecipe(stopped), stop_after=9)
    files = sorted((Path(stopped.run_dir) / "targets").iterdir())
    written_at = [path.stat().st_mtime_ns for path in files]
    rest = run(HubertRecipe(stopped))
    assert losses(rest) == losses(whole[:16])[-len(rest) :] and 0 < len(rest) < 16
    assert sorted(files[0].parent.iterdir()) == files
    assert [path.stat().st_mtime_ns for path in files] == written_at


@pytest.mark.slow
def test_two_devices_change_nothing(config, whole):
    split = run(HubertRecipe(changed(config, "split", steps=8)), devices=2)
    np.testing.assert_allclose(losses(split), losses(whole[:8]), rtol=2e-5)


def test_the_exported_network_is_an_inner_layer_with_clusters_of_its_output(
    config, recipe, exported, final_state
):
    model, params = hubert.load(exported / "hubert", exported / "quantizer")
    trunk = model.config.trunk
    assert trunk == dataclasses.replace(TRUNK, num_layers=1)
    trained = final_state.params["trunk"]
    jax.tree.map(np.testing.assert_array_equal, params["hubert"]["conv"], trained["conv"])
    assert list(params["hubert"]["layers"]) == ["0"]
    centroids = params["quantizer"]["centroids"]
    assert centroids.shape == (5, 16)
    hidden, units = (
        np.concatenate(list(unit_targets.compute_features(recipe.training_items(), network, trunk)))
        for network in (
            unit_targets.network_features(trunk, params["hubert"]),
            unit_targets.network_units(model, params),
        )
    )
    nearest = np.square(hidden[:, None] - centroids).sum(-1).argmin(-1)
    np.testing.assert_array_equal(units, nearest)
    assert set(units) == set(range(5))  # clusters of these recordings: all are used
    with pytest.raises(InputError, match="exists already"):
        export(recipe, exported)


@pytest.mark.slow
def test_a_second_iteration_predicts_clusters_of_the_first(config, exported):
    second = without_evaluation(changed(config, "second", targets=str(exported / "hubert")))
    recipe = HubertRecipe(second)
    assert len(run(recipe, stop_after=1)) == 1
    recordings, label = recipe.labelled
    centroids = read_centroids(second)
    assert centroids.shape == (6, 16)
    trunk, params = checkpoint.load_network(exported / "hubert", HubertConfig)
    network = unit_targets.network_features(trunk.trunk, params)
    items = [recording.item for recording in recordings]
    features = unit_targets.compute_features(items, network, trunk.trunk)
    again = label(items)
    for recording, features_td, labels_t in zip(recordings, features, again, strict=True):
        np.testing.assert_array_equal(kmeans.assign(features_td, centroids), recording.labels_t)
        np.testing.assert_array_equal(labels_t, recording.labels_t)
    for changes, message in (
        ({"target_layer": 2}, "no layer 2; the network has 1"),
        ({"network": dataclasses.replace(TRUNK, conv_layers=((16, 320, 320),))}, "its frames"),
    ):
        with pytest.raises(InputError, match=message):
            run(HubertRecipe(changed(second, "other", **changes)))


def label_recordings(config):
    """The labelled recordings of a run; the labels are cached in its folder."""
    Path(config.run_dir).mkdir(exist_ok=True)
    return HubertRecipe(config).labelled[0]


@pytest.mark.slow
def test_labels_can_be_those_of_a_reference_with_the_same_text(config, exported, tmp_path):
    lines = [json.loads(line) for line in Path(config.data.sources[0]).read_text().splitlines()]
    for line in lines:
        line["audio"] = str(Path(config.data.sources[0]).parent / line["audio"])
        line["text"] = f"sentence {int(line['id'][4:]) // 2}"  # each by a low and a high voice
    paths = {}
    for name, chosen in (("low", lines[::2]), ("high", lines[1::2])):
        paths[name] = str(tmp_path / f"{name}.jsonl")
        Path(paths[name]).write_text("".join(json.dumps(line) + "\n" for line in chosen))
    data = SpeechDataConfig((paths["high"],), (paths["high"],), batch_rows=2)
    unaligned = changed(config, "reference", data=data, reference=paths["low"])
    aligned = dataclasses.replace(unaligned, aligner=str(exported / "hubert"))
    recordings = label_recordings(aligned)
    centroids = read_centroids(aligned)
    references = read_items((paths["low"],))
    features = unit_targets.compute_features(references, unit_targets.mfcc_features(TRUNK), TRUNK)
    for recording, features_td in zip(recordings, features, strict=True):
        assert set(recording.labels_t) <= set(kmeans.assign(features_td, centroids))
    cached = Path(aligned.run_dir) / "targets"

    def count_computed(config):
        before = len(list(cached.iterdir()))
        label_recordings(config)
        return len(list(cached.iterdir())) - before

    assert count_computed(aligned) == 0
    assert count_computed(unaligned) == 1
    for name, old, new in (("high", "sentence 1", "sentence 2"), ("low", "tone2", "tone3")):
        before = Path(paths[name]).read_text()
        assert old in before
        Path(paths[name]).write_text(before.replace(old, new, 1))  # another text, recording
        assert count_computed(aligned) >= 1
        Path(paths[name]).write_text(before)
        assert count_computed(aligned) == 0


def test_recordings_without_a_frame_are_left_out(config, tmp_path):
    lines = Path(config.data.sources[0]).read_text().splitlines()
    for line in lines:
        path = Path(config.data.sources[0]).parent / json.loads(line)["audio"]
        shutil.copy(path, tmp_path)
    write_wav(tmp_path / "empty.wav", np.zeros(0, np.float32))
    empty = json.dumps({"id": "empty", "audio": "empty.wav"})
    names = {}
    for name, chosen in (("some", [lines[0], empty, *lines[1:]]), ("none", [empty])):
        names[name] = str(tmp_path / f"{name}.jsonl")
        Path(names[name]).write_text("".join(f"{line}\n" for line in chosen))
    data = dataclasses.replace(config.data, sources=(names["some"],), held_out=(names["some"],))
    recordings = label_recordings(changed(config, "some", data=data))
    assert len(recordings) == 6 and all(len(recording.labels_t) for recording in recordings)
    data = dataclasses.replace(data, held_out=(names["none"],))
    with pytest.raises(InputError, match="None of the 1 recordings is long enough"):
        _ = HubertRecipe(changed(config, "some", data=data)).held_out


@pytest.mark.slow
def test_every_held_out_frame_weighs_the_same(config, whole, final_state):
    mesh = config.mesh.make(jax.devices()[:1])
    metrics = []
    for rows in (4, 6):  # two batches, of which the last is not full, and one
        data = dataclasses.replace(config.data, batch_rows=rows)
        recipe = HubertRecipe(dataclasses.replace(config, data=data, unmasked_weight=0.5))
        metrics.append(recipe.evaluate(final_state, mesh))
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)


def test_every_process_computes_the_report_and_the_first_one_keeps_it(config, monkeypatch):
    folders = []

    class Reporting(HubertRecipe):
        def report(self, state, folder):
            folders.append((folder, folder.is_dir()))

    for first, name in ((True, "first"), (False, "another")):
        monkeypatch.setattr(distributed, "is_first", lambda first=first: first)
        recipe = Reporting(changed(config, name))
        loop._write_report(recipe, None)
        assert (Path(recipe.config.run_dir) / "report").is_dir() == first
    assert [existed for _, existed in folders] == [True, True]
    assert folders[0][0].is_dir() and not folders[1][0].is_dir()


def test_vectors_do_not_decay():
    params = {"mask": jnp.ones(3), "labels": jnp.ones((2, 3)), "head": {"bias": jnp.ones(3)}}
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.5), lambda step: 1.0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    update = jax.jit(lambda params: optimizer.update(zeros, optimizer.init(params), params)[0])
    updates = update(params)
    assert not updates["mask"].any() and not updates["head"]["bias"].any()
    np.testing.assert_allclose(updates["labels"], -0.5)


def first_params(config, pick):
    """Those of the initial parameters of a run's trunk that `pick` returns; only they are drawn."""
    return jax.jit(lambda: pick(HubertRecipe(config).init()[0]["trunk"]))()


def first_kernel(trunk):
    return trunk["conv"]["0"]["kernel"]


def test_the_first_filters_can_be_band_passes_unless_they_are_trained(config, exported):
    gabor = changed(config, "gabor", first_filters="gabor")
    kernel = first_params(gabor, first_kernel)
    np.testing.assert_array_equal(kernel[:, 0], filters.gabor(40, 16))
    started = dataclasses.replace(gabor, start=str(exported / "hubert"))
    _, given = checkpoint.load_network(exported / "hubert", HubertConfig)
    kernel = first_params(started, first_kernel)
    np.testing.assert_array_equal(kernel, given["conv"]["0"]["kernel"])
    odd = dataclasses.replace(TRUNK, conv_layers=((15, 40, 20), (16, 32, 32)))
    for changes, message in (
        ({"network": odd}, "Gabor filters are pairs; the first conv has 15"),
        ({"first_filters": "mel"}, "expected random or gabor"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(gabor, **changes)


def test_a_start_is_trained_further_and_may_get_more_layers(config, exported):
    taller = dataclasses.replace(TRUNK, num_layers=3)
    started = changed(config, "started", start=str(exported / "hubert"), network=taller)
    params = first_params(
        started, lambda trunk: {"conv": trunk["conv"], "first": trunk["layers"]["0"]}
    )
    layers = jax.eval_shape(HubertRecipe(started).init)[0]["trunk"]["layers"]
    assert sorted(layers) == ["0", "1", "2"]
    _, given = checkpoint.load_network(exported / "hubert", HubertConfig)
    jax.tree.map(np.testing.assert_array_equal, params["first"], given["layers"]["0"])
    jax.tree.map(np.testing.assert_array_equal, params["conv"], given["conv"])
    random = first_params(config, lambda trunk: trunk["layers"]["0"]["fc1"]["kernel"])
    assert not np.array_equal(random, params["first"]["fc1"]["kernel"])


def test_pre_norm_networks_are_cut_before_their_last_norm():
    trunk = dataclasses.replace(TRUNK, norm_first=True)
    audio = jnp.ones((1, 4000)), jnp.array([4000])
    params = jax.eval_shape(Trunk(trunk).init, jax.random.key(0), *audio)["params"]
    inner, kept = unit_targets.cut(trunk, params, 1)
    assert not inner.final_norm and "norm" not in kept and "norm" in params
    jax.eval_shape(Trunk(inner).apply, {"params": kept}, *audio)  # has all of its parameters
    assert unit_targets.cut(trunk, params, 0) == (trunk, params)
    assert unit_targets.cut(trunk, params, 2) == (trunk, params)


def test_masks_are_those_of_a_plain_loop():
    for seed in range(20):
        mask = training.draw_mask(50, 0.08, 5, np.random.default_rng(seed))
        drawn = np.random.default_rng(seed).random(50) < 0.08
        plain = [any(drawn[max(place - 4, 0) : place + 1]) for place in range(50)]
        assert mask.tolist() == plain or (not drawn.any() and mask.sum() in range(1, 6))
        assert mask.any()
    mask = training.draw_mask(100_000, 0.08, 5, np.random.default_rng(0))
    assert mask.mean() == pytest.approx(1 - 0.92**5, abs=0.01)
    assert training.draw_mask(0, 0.08, 5, np.random.default_rng(0)).shape == (0,)


def test_rows_have_the_labels_of_their_place_and_noise_leaves_them(config):
    items = read_items(config.data.sources)
    recordings = [Recording(item, np.arange(24, dtype=np.int32)) for item in items]
    for noise in (0.0, 1.0):
        settings = dataclasses.replace(config, noise=noise, segment_seconds=0.6)
        samples, places = load_audio(items[0].audio), set()
        for seed in range(8):
            rng = np.random.default_rng(seed)
            row = training.make_row(recordings[0], rng, settings, TRUNK, recordings)
            place = row["labels_bt"][0]
            places.add(int(place))
            assert row["labels_bt"].tolist() == list(range(place, place + 15))
            clean = samples[place * 640 :][: row["lengths_b"]]
            error = row["wave_bt"][: row["lengths_b"]] - clean
            assert len(clean) == 14 * 640 + TRUNK.receptive_field
            if noise:
                decibels = 10 * np.log10(np.mean(clean**2) / np.mean(error**2))
                assert 4.9 < decibels < 20.1
            else:
                assert not error.any()
        assert len(places) > 3


def test_short_recordings_are_padded_and_do_not_count(config):
    recording = Recording(read_items(config.data.sources)[0], np.full(7, 3, np.int32))
    settings = dataclasses.replace(config, segment_seconds=4.0)
    row = training.make_row(recording, np.random.default_rng(0), settings, TRUNK)
    assert row["lengths_b"] == 16000 and len(row["wave_bt"]) == 99 * 640 + TRUNK.receptive_field
    assert not row["mask_bt"][7:].any() and not row["labels_bt"][7:].any()


def test_the_loss_is_that_of_masked_frames(config):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 9, 6)).astype(np.float32)
    labels, mask = rng.integers(0, 6, (2, 9)), rng.random((2, 9)) < 0.5
    true = np.arange(9) < np.array([[9], [4]])
    settings = dataclasses.replace(config, unmasked_weight=0.5)
    sums = jax.jit(training.measure)(logits, true, mask, labels)
    metrics = training.summarise(sums, settings.unmasked_weight)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    costs = -np.take_along_axis(log_probs, labels[..., None], -1)[..., 0]
    masked, seen = (costs[true & part].mean() for part in (mask, ~mask))
    assert metrics["masked_loss"] == pytest.approx(masked, rel=1e-5)
    assert metrics["loss"] == pytest.approx(masked + 0.5 * seen, rel=1e-5)
    right = (logits.argmax(-1) == labels)[true & mask].mean()
    assert metrics["accuracy"] == pytest.approx(right, rel=1e-5)


def test_masked_audio_has_no_effect_and_scores_are_cosines(recipe, final_state):
    waves = np.random.default_rng(0).normal(size=(2, 6000)).astype(np.float32)
    lengths, mask = jnp.array([6000, 6000]), np.ones((2, 9), bool)
    variables = {"params": final_state.params}
    apply = jax.jit(lambda mask: recipe.model.apply(variables, waves, lengths, mask)[0])
    scores = apply(mask)
    np.testing.assert_array_equal(scores[0], scores[1])
    assert np.abs(scores).max() <= 1 / recipe.config.temperature
    assert not np.array_equal(*apply(mask & (np.arange(9) > 4)))


def test_long_recordings_are_computed_in_pieces_that_make_up_the_whole(config, monkeypatch):
    items = read_items(config.data.sources)[:3]

    def sum_frames(wave, lengths):  # the samples that a frame covers, added up
        starts = range(0, max(wave.shape[1] - 649, 1), 640)
        counts = np.maximum((lengths - TRUNK.receptive_field) // 640 + 1, 0)
        width = TRUNK.receptive_field
        return np.stack([wave[:, s : s + width].sum(1) for s in starts], 1), counts

    def compute():
        return list(unit_targets.compute_features(items, sum_frames, TRUNK))

    expected = compute()
    monkeypatch.setattr(unit_targets, "PIECE_SECONDS", 1)
    for features, whole in zip(compute(), expected, strict=True):
        np.testing.assert_allclose(features, whole, atol=1e-4)
    lengths = [len(load_audio(item.audio)) for item in items]
    frames = [(length - TRUNK.receptive_field) // 640 + 1 for length in lengths]
    assert [len(features) for features in expected] == frames


def test_damaged_labels_are_computed_again(config, whole, tmp_path, capsys):
    other = dataclasses.replace(config, run_dir=str(tmp_path / "run"))
    shutil.copytree(Path(config.run_dir) / "targets", tmp_path / "run" / "targets")
    for path in (tmp_path / "run" / "targets").iterdir():
        path.write_bytes(b"PK half of it")
    expected, _ = HubertRecipe(config).labelled
    recordings, _ = HubertRecipe(other).labelled
    assert "is damaged and computed again" in capsys.readouterr().err
    for recording, original in zip(recordings, expected, strict=True):
        np.testing.assert_array_equal(recording.labels_t, original.labels_t)


def test_wrong_settings_are_named(config):
    for changes, message in (
        ({"mask_span": 0}, "mask_span"),
        ({"temperature": 0.0}, "temperature"),
        ({"mask_start": 0.0}, "mask_start"),
        ({"noise": 1.5}, "noise"),
        ({"noise_db": (20.0, 5.0)}, "noise_db"),
        ({"max_recordings": -1}, "max_recordings"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(config, **changes)
    with pytest.raises(InputError, match="has no checkpoint yet"):
        export(HubertRecipe(changed(config, "nothing")), "nowhere")
