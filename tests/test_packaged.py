"""The packaged networks: small, complete, and with units that are robust to noise."""

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


def test_speech_networks_are_under_20_megabytes_and_name_no_folder():
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


def test_both_models_give_the_same_units_which_noise_changes_little(recording):
    base, expressive = (SpeechTokenizer.from_pretrained(name) for name in NAMES)
    units = expressive.encode(recording)
    assert base.encode(recording).hubert.tolist() == units.hubert.tolist()
    assert len(set(units.hubert.tolist())) > 30 and len(set(units.pitch.tolist())) > 5
    noisy = augment.add_noise(recording, np.random.default_rng(0), (10.0, 10.0))
    other = augment.add_noise(np.roll(recording, 16_000), np.random.default_rng(0), (10.0, 10.0))
    edits = unit_edit_distance(units.hubert, base.encode(noisy).hubert)
    assert edits < 0.6 * unit_edit_distance(units.hubert, base.encode(other).hubert)


@pytest.mark.slow
def test_resynthesis_follows_f0_and_depends_on_the_speaker(recording):
    expressive = SpeechTokenizer.from_pretrained(NAMES[1])
    resynthesised = expressive.decode(expressive.encode(recording), speaker_id="slt")
    tracks = [f0.pyin_f0(wave) for wave in (recording[: len(resynthesised)], resynthesised)]
    (f0_t, voiced_t), (resynthesised_f0_t, resynthesised_voiced_t) = tracks
    both_t = (voiced_t > 0) & (resynthesised_voiced_t > 0)
    assert both_t.mean() > 0.3 and np.corrcoef(f0_t[both_t], resynthesised_f0_t[both_t])[0, 1] > 0.6
    base = SpeechTokenizer.from_pretrained(NAMES[0])
    units = base.encode(recording)
    waves = [base.decode(units, speaker_id=name) for name in ("kal16", "rms", "slt")]
    assert all(len(wave) == 640 * len(units) and wave.std() > 0.01 for wave in waves)
    assert np.abs(waves[0] - waves[2]).max() > 0.1


def test_units_without_style_are_synthesised():
    expressive = SpeechTokenizer.from_pretrained(NAMES[1])
    wave = expressive.decode("[Pi20][Hu5][Hu17][Hu40][Hu3]")
    assert wave.std() > 0.01


def test_a_local_folder_takes_precedence_over_a_packaged_model(tmp_path, monkeypatch):
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
