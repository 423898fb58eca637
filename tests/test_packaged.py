"""The networks in the package: small, whole, and hearing the same beside noise."""

from pathlib import Path

import numpy as np
import pytest

from spirit_jax import SpeechTokenizer, f0, model_folder
from spirit_jax.audio import load_audio
from spirit_jax.data import augment
from spirit_jax.errors import InputError
from spirit_jax.evaluation.unit_distance import unit_edit_distance

NAMES = "spirit-tiny-base", "spirit-tiny-expressive"


@pytest.fixture(scope="module")
def recording():
    return load_audio(Path(__file__).with_name("agent-incorrect.flac"))


def test_all_speech_networks_are_under_20_megabytes_and_name_no_folder():
    folders = [model_folder.ASSETS / name / "speech_tokenizer" for name in NAMES]
    assert all(folder.is_dir() for folder in folders)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
    for path in files:
        assert b"partial_save" not in path.read_bytes(), path


def test_the_package_is_under_40_megabytes():
    files = [path for path in model_folder.ASSETS.rglob("*") if path.is_file()]
    assert files
    assert sum(path.stat().st_size for path in files) < 40e6


def test_units_of_both_are_the_same_and_stay_in_noise(recording):
    base, expressive = (SpeechTokenizer.from_pretrained(name) for name in NAMES)
    heard = expressive.encode(recording)
    assert base.encode(recording).hubert.tolist() == heard.hubert.tolist()
    assert len(set(heard.hubert.tolist())) > 30 and len(set(heard.pitch.tolist())) > 5
    noisy = augment.add_noise(recording, np.random.default_rng(0), (10.0, 10.0))
    other = augment.add_noise(np.roll(recording, 16_000), np.random.default_rng(0), (10.0, 10.0))
    edits = unit_edit_distance(heard.hubert, base.encode(noisy).hubert)
    assert edits < 0.6 * unit_edit_distance(heard.hubert, base.encode(other).hubert)


def test_they_speak_what_they_hear_and_expressive_in_its_melody(recording):
    expressive = SpeechTokenizer.from_pretrained(NAMES[1])
    made = expressive.decode(expressive.encode(recording), speaker_id="slt")
    tracks = [f0.pyin_f0(wave) for wave in (recording[: len(made)], made)]
    (true_t, voiced_t), (found_t, found_voiced_t) = tracks
    both_t = (voiced_t > 0) & (found_voiced_t > 0)
    assert both_t.mean() > 0.3 and np.corrcoef(true_t[both_t], found_t[both_t])[0, 1] > 0.6
    base = SpeechTokenizer.from_pretrained(NAMES[0])
    heard = base.encode(recording)
    waves = [base.decode(heard, speaker_id=name) for name in ("kal16", "rms", "slt")]
    assert all(len(wave) == 640 * len(heard) and wave.std() > 0.01 for wave in waves)
    assert np.abs(waves[0] - waves[2]).max() > 0.1


def test_a_string_without_style_is_spoken_in_the_commonest():
    expressive = SpeechTokenizer.from_pretrained(NAMES[1])
    wave = expressive.decode("[Pi20][Hu5][Hu17][Hu40][Hu3]")
    assert wave.std() > 0.01


def test_a_folder_of_that_name_goes_before_the_package(tmp_path, monkeypatch):
    assert model_folder.find_model(NAMES[0]) == model_folder.ASSETS / NAMES[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAMES[0]).mkdir()
    assert str(model_folder.find_model(NAMES[0])) == NAMES[0]
    with pytest.raises(InputError, match="no such folder"):
        model_folder.find_model(f"runs/{NAMES[0]}")


@pytest.mark.parametrize("name", ["spirit-tiny-bse", "spirit-tiny", "Spirit-Tiny-Base"])
def test_a_misspelt_name_lists_the_packaged_models(name):
    with pytest.raises(InputError) as error:
        SpeechTokenizer.from_pretrained(name)
    assert f"{name}: there is no such folder" in str(error.value)
    assert "Packaged models are spirit-tiny-base, spirit-tiny-expressive." in str(error.value)
    if name.startswith("spirit-tiny-b"):
        assert "Did you mean spirit-tiny-base?" in str(error.value)
