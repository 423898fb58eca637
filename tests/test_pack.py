"""Networks are packed into a speech tokenizer that encodes and decodes as they do."""

import json

import numpy as np
import pytest

from spirit_jax import SpeechTokenizer, checkpoint, cli
from spirit_jax.errors import InputError
from spirit_jax.models import hifigan
from spirit_jax.new_model import pack


@pytest.fixture(scope="module")
def networks(expressive_folder):
    folder = expressive_folder / "speech_tokenizer"
    return {
        "units": folder,
        "pitch_units": folder / "pitch",
        "style_units": folder / "style",
        "vocoder": folder / "hifigan",
    }


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_packed_set_has_the_hashes_of_its_networks(networks, expressive_folder, tmp_path):
    packed = pack(tmp_path / "full", **networks)
    source = json.loads((expressive_folder / "speech_tokenizer/speech_tokenizer.json").read_text())
    assert packed.hashes == source["hashes"] and packed.kind == "expressive"
    again = pack(tmp_path / "again", *[expressive_folder] * 4)  # each network from a complete model
    assert again.hashes == packed.hashes
    base = pack(tmp_path / "base", networks["units"])
    assert base.kind == "base" and sorted(base.hashes) == ["hubert", "quantizer"]


def test_float16_storage_halves_the_size_and_loads_as_float32(networks, tmp_path):
    pack(tmp_path / "full", **networks)
    pack(tmp_path / "half", **networks, half=True)
    assert size(tmp_path / "half") < 0.6 * size(tmp_path / "full")
    stored = checkpoint.flatten(checkpoint.load_params(tmp_path / "half/hifigan"))
    _, loaded = hifigan.load(tmp_path / "half/hifigan")
    _, before = hifigan.load(networks["vocoder"])
    before = checkpoint.flatten(before)
    for name, leaf in checkpoint.flatten(loaded).items():
        assert stored[name].dtype == np.float16 and leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, before[name], rtol=1e-3, atol=1e-6)
    tokenizer = SpeechTokenizer.from_pretrained(tmp_path / "half")
    wave = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    assert len(tokenizer.decode(tokenizer.encode(wave))) == 24 * 640


def test_inconsistent_networks_are_rejected(networks, base_folder, tmp_path):
    output = tmp_path / "packed"
    with pytest.raises(InputError, match="go together"):
        pack(output, networks["units"], pitch_units=networks["pitch_units"])
    vocoder = base_folder / "speech_tokenizer/hifigan"
    with pytest.raises(InputError, match="takes 0 pitch units, and there are 64"):
        pack(output, **networks | {"vocoder": vocoder})
    with pytest.raises(InputError, match="takes 64 pitch units, and there are 0"):
        pack(output, networks["units"], vocoder=networks["vocoder"])
    with pytest.raises(InputError, match="no such folder"):
        pack(output, tmp_path)
    large = {"a": np.float32([1e6])}
    checkpoint.save_network(tmp_path / "large", hifigan.HifiGanConfig(num_codes=500), large)
    with pytest.raises(InputError, match="too large for float16"):
        pack(output, networks["units"], vocoder=tmp_path / "large", half=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large"]
    output.mkdir()
    with pytest.raises(InputError, match="exists already"):
        pack(output, networks["units"])


@pytest.mark.slow
def test_networks_shared_by_two_sets_are_stored_once(networks, tmp_path):
    pack(tmp_path / "first", networks["units"])
    unshared = pack(tmp_path / "alone", **networks)
    second = pack(tmp_path / "second", **networks, share=tmp_path / "first")
    assert second.hashes == unshared.hashes and second.shared == "../first"
    stored = {path.name for path in (tmp_path / "second").iterdir() if path.is_dir()}
    assert stored == {"pitch", "style", "hifigan"}
    wave = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    tokenizers = [SpeechTokenizer.from_pretrained(tmp_path / name) for name in ("alone", "second")]
    expected, actual = (tokenizer.encode(wave).to_dict() for tokenizer in tokenizers)
    assert actual == expected
    third = pack(tmp_path / "third", **networks, share=tmp_path / "second")
    assert third.hashes == unshared.hashes
    stored = {path.name for path in (tmp_path / "third").iterdir() if path.is_dir()}
    assert stored == {"hubert", "quantizer"}  # which "second" shares from "first"
    again = pack(tmp_path / "again", *[tmp_path / "second"] * 4)
    assert again.hashes == unshared.hashes
    (tmp_path / "first").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="'hubert' is not there"):
        SpeechTokenizer.from_pretrained(tmp_path / "second")


def test_the_command_packs_and_says_what(expressive_folder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "packed"
    folder = str(expressive_folder)
    arguments = ["pack", str(output), "--units", folder, "--pitch", folder, "--style", folder]
    monkeypatch.setattr("spirit_jax.cli.options.prepare_environment", lambda: None)
    monkeypatch.setattr("sys.argv", ["spirit-jax", *arguments])
    cli.main()
    assert capsys.readouterr().out.startswith(f"{output}: expressive, hubert, ")
    assert (output / "speech_tokenizer.json").is_file()
