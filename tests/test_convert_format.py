"""`convert.format`: the same parameters in the other form, as a folder that can be used alone."""

import json
import shutil
import sys

import pytest

from convert import format as convert_format
from spirit_jax import checkpoint, model_folder, network_folder
from spirit_jax.cli import running
from spirit_jax.errors import InputError
from spirit_jax.model_copy import copy_model
from spirit_jax.speech_tokenizer import SpeechTokenizer

pytestmark = pytest.mark.compat


def hashes(folder):
    return {
        str(path.parent.relative_to(folder)): checkpoint.hash_params(
            checkpoint.load_params(path.parent)
        )
        for path in folder.rglob("config.json")
    }


def forms(folder):
    return {network_folder.find_arrays(p.parent)[0] for p in folder.rglob("config.json")}


def test_a_model_is_the_same_in_both_forms(expressive_folder, tmp_path, monkeypatch, capsys):
    outputs = {"orbax": tmp_path / "orbax", "safetensors": tmp_path / "back"}
    source = expressive_folder
    for form, output in outputs.items():
        arguments = [str(source), "--to", form, "--output", str(output)]
        monkeypatch.setattr(sys, "argv", ["convert.format", *arguments])
        running.run(convert_format.main)
        assert forms(output) == {form}
        assert hashes(output) == hashes(expressive_folder)
        source = output
    tokenizer = SpeechTokenizer.from_pretrained(outputs["orbax"])  # which compares the hashes
    assert tokenizer.config.kind == "expressive"
    same = [model_folder.fingerprint(path) for path in (expressive_folder, outputs["safetensors"])]
    assert same[0] == same[1]


def test_an_unknown_form_is_refused_with_the_known_ones(tmp_path, monkeypatch, capsys):
    arguments = ["spirit-tiny-base", "--to", "npz", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["convert.format", *arguments])
    with pytest.raises(SystemExit, match="2"):
        running.run(convert_format.main)
    assert "'npz' is not one of 'safetensors', 'orbax'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_shared_networks_are_copied(tmp_path):
    copy_model("spirit-tiny-expressive", tmp_path / "model", "safetensors")
    speech = tmp_path / "model" / "speech_tokenizer"
    assert json.loads((speech / "speech_tokenizer.json").read_text())["shared"] == ""
    tokenizer_config = SpeechTokenizer.from_pretrained(speech).config
    assert set(tokenizer_config.hashes) == {
        path.parent.name for path in speech.rglob("config.json")
    }


def test_other_folders_are_refused(base_folder, tmp_path):
    hugging = tmp_path / "hf"
    shutil.copytree(base_folder / "llama", hugging)
    (hugging / "checksums.json").unlink()
    (hugging / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "empty").mkdir()
    for folder, form, message in (
        (hugging, "orbax", "looks like a folder of Hugging Face"),
        (tmp_path / "empty", "orbax", "empty: has no network in it"),
        (base_folder, "zip", "'zip'; expected safetensors or orbax"),
        (tmp_path / "none", "orbax", "no such folder"),
    ):
        with pytest.raises(InputError, match=message):
            copy_model(folder, tmp_path / "out", form)
    assert not (tmp_path / "out").exists()
