"""The training of the vocoder: it learns, resumes, and its exported network generates speech."""

import dataclasses
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
import speech_runs
from speech_runs import load_state, run
from tones import write_tones

from spirit_jax import checkpoint, model_folder, speech_tokenizer
from spirit_jax.audio import load_audio, write_wav
from spirit_jax.data.configs import F0Config
from spirit_jax.data.manifest import Item
from spirit_jax.data.speech import SpeechDataConfig, read_items
from spirit_jax.errors import InputError
from spirit_jax.models import hifigan
from spirit_jax.models.discriminators import DiscriminatorConfig
from spirit_jax.models.frames import MelConfig
from spirit_jax.models.hifigan import HifiGanConfig
from spirit_jax.random_model import write_random_model
from spirit_jax.speech_tokenizer import SpeechTokenizer
from spirit_jax.training import loop
from spirit_jax.training.export import export
from spirit_jax.training.optimizer import OptimizerConfig
from spirit_jax.training.step import TrainState
from spirit_jax.training.vocoder import data as vocoder_data
from spirit_jax.training.vocoder import network as vocoder_network
from spirit_jax.training.vocoder import recipe as vocoder
from spirit_jax.training.vocoder.config import VocoderRunConfig
from spirit_jax.training.vocoder.recipe import VocoderRecipe
from spirit_jax.units import Units

pytest_plugins = "speech_runs"

STEPS, ALONE = 24, 16  # in all, and those without discriminators
NETWORK = HifiGanConfig(
    default_speaker=0,
    default_style=0,
    embedding_dim=8,
    upsample_rates=(20, 32),
    upsample_kernels=(20, 32),
    initial_channels=32,
    resblock_kernels=(3,),
    resblock_dilations=((1,),),
    duration_hidden=8,
    source_harmonics=2,
    f0_hidden=8,
)


@pytest.fixture(scope="module")
def config(tmp_path_factory, base_folder):
    folder = tmp_path_factory.mktemp("vocoder")
    manifest = write_tones(folder, 6)
    return VocoderRunConfig(
        run_dir=str(folder / "whole"),
        steps=STEPS,
        checkpoint_every=4,
        data=SpeechDataConfig((manifest,), (manifest,), batch_rows=4),
        optimizer=OptimizerConfig(learning_rate=3e-3, beta1=0.8, beta2=0.99, clip_norm=0.0),
        tokenizer=str(base_folder),
        speakers=("high", "low"),
        network=NETWORK,
        f0=F0Config(resolution=0.5),
        discriminators=DiscriminatorConfig(
            periods=(3,),
            period_channels=(4, 8),
            scales=1,
            scale_channels=(4, 8),
            scale_kernels=(9, 5),
            scale_strides=(4, 1),
            scale_groups=(1, 2),
        ),
        segment_units=6,
        duration_runs=8,
        adversarial_from=ALONE,
        stft_weight=1.0,
        stft_sizes=(256,),
        envelope_weight=2.0,
        envelope=MelConfig(n_fft=256, hop=64, num_mels=8),
        eval_recordings=4,
    )


@pytest.fixture(scope="module")
def recipe(config):
    return VocoderRecipe(config)


def changed(config, name, **changes):
    """Another run, with the cached units of the first."""
    other = speech_runs.changed(config, name, **changes)
    cached = Path(config.run_dir) / "units"
    if cached.is_dir():
        shutil.copytree(cached, Path(other.run_dir) / "units", dirs_exist_ok=True)
    return other


def losses(lines):
    return [
        {name: value for name, value in line.items() if name.startswith(("loss", "score", "eval_"))}
        for line in lines
    ]


def test_it_learns_audio_and_durations(whole):
    first, last = whole[0], whole[-1]
    assert [line["step"] for line in whole] == list(range(1, STEPS + 1))
    assert last["loss_mel"] < 0.6 * first["loss_mel"]
    assert last["loss_stft"] < 0.6 * first["loss_stft"]
    assert last["loss_envelope"] < 0.4 * first["loss_envelope"]
    assert last["loss_duration"] < 0.6 * first["loss_duration"]
    assert last["eval_mel"] < 3 and 0.3 < last["eval_pace"] < 3


def test_discriminators_are_trained_from_their_step_on(whole):
    adversarial = ["loss_discriminator" in line for line in whole]
    assert adversarial == [False] * ALONE + [True] * (STEPS - ALONE)
    first, last = whole[ALONE], whole[-1]
    # both discriminators are untrained and score around 0
    assert 1.6 < first["loss_discriminator"] < 2.4 and abs(first["score_real"]) < 0.2
    assert last["loss_discriminator"] < first["loss_discriminator"]
    apart = [line["score_real"] - line["score_generated"] for line in (first, last)]
    assert apart[1] > apart[0]
    weighted = 45 * last["loss_mel"] + last["loss_stft"] + last["loss_duration"]
    weighted += last["loss_f0"] + 2 * last["loss_envelope"]
    weighted += last["loss_adversarial"] + 2 * last["loss_features"]
    np.testing.assert_allclose(last["loss"], weighted, rtol=1e-5)


@pytest.mark.slow  # that of test_add_a_network.py runs in every suite
@pytest.mark.parametrize("stop_after", [6, ALONE + 2])
def test_a_resumed_run_equals_an_uninterrupted_one_bitwise(config, whole, final_state, stop_after):
    stopped = changed(config, f"stopped{stop_after}")
    run(VocoderRecipe(stopped), stop_after=stop_after)
    recipe = VocoderRecipe(stopped)
    rest = run(recipe)
    assert 0 < len(rest) < STEPS and losses(rest) == losses(whole[-len(rest) :])
    jax.tree.map(np.testing.assert_array_equal, load_state(recipe), final_state)
    assert run(recipe) == []


@pytest.mark.slow  # a language model's run stops at a signal in every suite
def test_sigterm_at_the_first_step_with_discriminators_ends_the_run(config):
    recipe = VocoderRecipe(changed(config, "last", adversarial_from=2, steps=8))
    steps = []
    for metrics in loop.train(recipe, jax.devices()[:1]):
        steps.append(metrics["step"])
        if metrics["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
    # The metrics of a step come when the next one has been sent.
    assert steps == [1, 2, 3] and load_state(recipe).step == 3


@pytest.mark.slow
def test_two_devices_change_nothing(config):
    short = speech_runs.without_evaluation(changed(config, "short", steps=3, adversarial_from=1))
    runs = [changed(short, f"on{n}") for n in (1, 2)]
    lines = [run(VocoderRecipe(config), n) for n, config in enumerate(runs, 1)]
    for line, other in zip(*map(losses, lines), strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            np.testing.assert_allclose(other[name], value, rtol=2e-5, atol=1e-5, err_msg=name)


def test_report_and_exported_network(config, recipe, final_state, base_folder, tmp_path):
    report = Path(config.run_dir) / "report"
    for name in ("high", "low"):
        assert (report / f"{name}.png").stat().st_size > 1000
        real, generated, timed = (
            soundfile.read(report / f"{name}_{what}.wav")[0]
            for what in ("real", "generated", "generated_with_predicted_durations")
        )
        assert len(real) == len(generated) and len(timed) % 640 == 0 < np.abs(generated).max()
        np.testing.assert_allclose(np.abs(real).max(), vocoder_data.PEAK, atol=0.01)

    folder = tmp_path / "speech_tokenizer"
    shutil.copytree(base_folder / "speech_tokenizer", folder)
    shutil.rmtree(folder / "hifigan")
    assert export(recipe, folder / "hifigan") == STEPS
    model_folder.write_speech_tokenizer(folder, "base", f0_method="pyin")
    tokenizer = SpeechTokenizer.from_pretrained(folder)
    encoded = tokenizer.encode_batch([item.audio for item in read_items(config.data.sources)])
    voices = [tokenizer.decode(encoded[0], name) for name in ("low", "high")]
    assert len(voices[0]) == len(voices[1]) and np.abs(voices[0] - voices[1]).max() > 1e-4
    stored = checkpoint.flatten(checkpoint.load_params(folder / "hifigan"))
    trained = checkpoint.flatten(final_state.params["generator"])
    assert stored.keys() == trained.keys()
    for name, leaf in trained.items():
        if name == "duration/out/bias":  # calibrated
            assert np.abs(stored[name] - leaf).max() > 1e-3
        else:
            np.testing.assert_array_equal(stored[name], leaf)
    strings = [tokenizer.to_string(units) for units in encoded]
    decoded = tokenizer.decode_batch(strings)
    assert sum(map(len, decoded)) == pytest.approx(640 * sum(map(len, encoded)), rel=0.02)
    with pytest.raises(InputError, match="exists already"):
        export(recipe, folder / "hifigan")


def test_a_new_voice_is_added_to_a_trained_network(config, exported):
    before, params = hifigan.load(exported)
    tuned = changed(config, "tuned", start=str(exported), speakers=("low", "new"))
    planned, grown = vocoder.plan_network(tuned)
    assert planned.speakers == ("high", "low", "new") and planned.num_speakers == 3
    assert dataclasses.replace(planned, speakers=before.config.speakers, num_speakers=2) == (
        before.config
    )
    tables = params.pop("embed_speaker")["embedding"], grown.pop("embed_speaker")["embedding"]
    np.testing.assert_array_equal(tables[1][:2], tables[0])
    np.testing.assert_allclose(tables[1][2], tables[0].mean(0), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, params, grown)
    # recordings without a speaker get the only name in `speakers`
    items = [Item("a", "a.wav"), Item("b", "b.wav", speaker="low")]
    assert [item.id for item in vocoder_data.choose(items, ("new",), ())] == ["a"]
    # rows without a name are named by their numbers
    assert vocoder_network.add_names(("ann",), 3, ("bob", "ann")) == ("ann", "1", "2", "bob")


def test_styles_are_ids_of_the_network(config):
    network, _ = vocoder.plan_network(changed(config, "styled", style_ids=True))
    assert network.styles == ("calm", "glad") and network.num_style_ids == 2
    item = Item("a", "a.wav", speaker="low", style="glad")
    ids_tc = vocoder_data.frame_ids(Units([5, 5, 7]), item, network)
    assert ids_tc.tolist() == [[5, 1, 1], [5, 1, 1], [7, 1, 1]]
    # recordings without a style have the default one
    (unnamed,) = vocoder_data.choose([Item("a", "a.wav", speaker="low")], ("low",), (), "glad")
    assert unnamed.style == "glad"


def test_a_vocoder_has_a_default_speaker_and_style(config):
    styled = changed(config, "styled", style_ids=True)
    network, _ = vocoder.plan_network(styled)
    assert (network.default_speaker, network.default_style) == (0, 0)
    chosen = dataclasses.replace(styled, default_speaker="low", default_style="glad")
    network, _ = vocoder.plan_network(chosen)
    assert network.speakers[network.default_speaker] == "low"
    assert network.styles[network.default_style] == "glad"
    with pytest.raises(InputError, match="'wild' is none of calm, glad"):
        vocoder.plan_network(dataclasses.replace(chosen, default_style="wild"))


def test_frames_have_the_ids_of_decoding():
    network = dataclasses.replace(
        NETWORK, num_pitch=64, num_style=100, num_style_ids=0, speakers=("a", "b"), num_speakers=2
    )
    rng = np.random.default_rng(0)
    units = Units(rng.integers(0, 501, 60), rng.integers(0, 64, 29), rng.integers(0, 100, 2))
    ids = vocoder_data.frame_ids(units, Item("x", speaker="b"), network)
    decoder_ids = speech_tokenizer._stack_ids(units, {"speaker": 1}, network)
    np.testing.assert_array_equal(ids, decoder_ids)
    with pytest.raises(InputError, match="x: This vocoder needs pitch units, and there are none"):
        vocoder_data.frame_ids(Units([1, 2]), Item("x", speaker="b"), network)
    with pytest.raises(InputError, match="x: There is no code unit 501; known are 0 to 500"):
        vocoder_data.frame_ids(Units([1, 501], [1], [1]), Item("x", speaker="b"), network)


def test_a_row_is_a_segment_of_frames_and_a_sequence_of_whole_runs(tmp_path):
    wave_s = np.linspace(-0.5, 0.25, 20 * 640 + 100).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave_s, 16000, subtype="FLOAT")
    codes_t = np.repeat(np.arange(8), [1, 2, 3, 4, 1, 2, 3, 4]).astype(np.int32)
    ids_tc = np.stack([codes_t, np.arange(20)], -1).astype(np.int32)  # the second is the frame
    f0_tk = np.arange(80, dtype=np.float32).reshape(20, 4) + 100
    recording = vocoder_data.UnitRecording("a", "s", tmp_path / "a.wav", ids_tc, f0_tk)
    loud_s = load_audio(tmp_path / "a.wav") / 0.5 * vocoder_data.PEAK
    starts, firsts = set(), set()
    for seed in range(100):
        row = vocoder_data.make_row(recording, np.random.default_rng(seed), 5, 3, 640)
        start, first = row["ids_btc"][0, 1], row["codes_bt"][0]
        np.testing.assert_array_equal(row["ids_btc"], ids_tc[start : start + 5])
        np.testing.assert_array_equal(row["source_bte"][:, :4], f0_tk[start : start + 5])
        np.testing.assert_allclose(row["wave_bs"], loud_s[start * 640 : start * 640 + 3200], 1e-6)
        durations = [1, 2, 3, 4, 1, 2, 3, 4][first : first + 3]
        assert row["codes_bt"].tolist() == list(range(first, first + 3))
        assert row["frames_bt"].tolist() == durations
        assert row["counted_bt"].tolist() == [first == 0, True, first == 5]
        starts.add(int(start)), firsts.add(int(first))
    assert starts == set(range(16)) and firsts == set(range(6))
    row = vocoder_data.make_row(recording, np.random.default_rng(0), 24, 10, 640)
    assert row["lengths_b"] == 20 and row["counts_b"] == 8 and row["counted_bt"].sum() == 8
    assert row["wave_bs"].shape == (24 * 640,) and not row["wave_bs"][20 * 640 :].any()


def test_units_are_cached_for_each_speech_tokenizer(config, whole, tmp_path, monkeypatch):
    items = read_items(config.data.sources)
    monkeypatch.setattr(SpeechTokenizer, "encode_batch", None)  # not needed
    encoded = vocoder_data.read_units(items, config.tokenizer, Path(config.run_dir))
    assert len(encoded) == 6 and all(map(len, encoded))
    write_random_model(tmp_path / "other", "base", seed=1)
    with pytest.raises(TypeError):
        vocoder_data.read_units(items, str(tmp_path / "other"), Path(config.run_dir))


def test_replaced_recordings_are_encoded_again_and_copies_once(config, tmp_path, monkeypatch):
    samples = load_audio(read_items(config.data.sources)[0].audio)
    write_wav(tmp_path / "a.wav", samples)
    file = Item("a", tmp_path / "a.wav")
    other = Item("here", samples[:8000])
    computed = []
    encode = SpeechTokenizer.encode_batch
    monkeypatch.setattr(
        SpeechTokenizer, "encode_batch", lambda *a: computed.extend(a[1]) or encode(*a)
    )

    def read(*items):
        return vocoder_data.read_units(items, config.tokenizer, tmp_path)

    before = read(file, other, file)
    assert len(computed) == 2 and before[0] == before[2] and len(before[1]) == 12
    write_wav(tmp_path / "a.wav", samples[:12000])
    again = read(file, Item("here", samples[:4000]), other)
    assert len(computed) == 5 and again[2] == before[1]  # the chunk of all three
    assert (len(again[0]), len(again[1])) == (18, 6) and len(again[0]) < len(before[0])


@pytest.mark.slow
def test_without_a_duration_predictor_the_report_has_no_predicted_durations(config, tmp_path):
    network = dataclasses.replace(NETWORK, duration_hidden=0)
    recipe = VocoderRecipe(changed(config, "untimed", network=network))
    recipe.report(TrainState.create(recipe.init()[0], recipe.optimizer), tmp_path)
    names = sorted(path.name for path in tmp_path.glob("low*"))
    assert names == ["low.png", "low_generated.wav", "low_real.wav"]


def test_what_does_not_fit_is_named(config):
    for changes, message in (
        ({"speakers": ()}, "expected names, each once"),
        ({"speakers": ("a", "a")}, "expected names, each once"),
        ({"segment_units": 0}, "at least 1"),
        ({"mel_weight": -1.0}, "0 or more"),
        ({"stft_sizes": (100,)}, "multiples of 8"),
        ({"segment_units": 1, "stft_sizes": (2048,)}, "segment_units"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(config, **changes)
    with pytest.raises(InputError, match="no recordings of the speakers nobody.*high, low"):
        run(VocoderRecipe(changed(config, "nobody", speakers=("nobody",))))
    items = [Item("a", "a.wav", speaker="slt", style="sad"), Item("b", "b.wav", speaker="slt")]
    with pytest.raises(InputError, match="speakers slt in the styles wild.*: slt.*styles: sad"):
        vocoder_data.choose(items, ("slt",), ("wild",))
    with pytest.raises(InputError, match="nowhere: there is no such folder"):
        run(VocoderRecipe(changed(config, "no_tokenizer", tokenizer="nowhere")))
