"""Speech networks exported to PyTorch: equal results there, and equal parameters converted back."""

import json
import sys

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch_hifigan import TorchHifiGan  # noqa: E402

from convert import export_speech, hubert  # noqa: E402
from convert.hifigan import convert_hifigan  # noqa: E402
from spirit_jax import checkpoint, model_folder  # noqa: E402
from spirit_jax.errors import InputError  # noqa: E402
from spirit_jax.models import hifigan  # noqa: E402
from spirit_jax.models.hubert import HubertConfig, QuantizerConfig  # noqa: E402
from spirit_jax.models.wav2vec2 import Trunk, TrunkConfig, abstract_params  # noqa: E402
from spirit_jax.random_model import random_params  # noqa: E402

TRUNK = dict(
    conv_layers=((8, 10, 5), (8, 3, 2)),
    conv_pos=6,
    conv_pos_groups=2,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    ffn_size=24,
)
VARIANTS = {
    "post-norm": {},
    "pre-norm of a layer": {"norm_first": True, "final_norm": False, "conv_norm": "layer"},
    "pre-norm": {"norm_first": True, "conv_bias": True, "input_norm_eps": 1e-7},
}


def assert_same(params, expected):
    params, expected = checkpoint.flatten(params), checkpoint.flatten(expected)
    assert set(params) == set(expected)
    for path in params:
        assert np.array_equal(params[path], expected[path]), path


@pytest.mark.parametrize("name", VARIANTS)
def test_an_exported_hubert_equals_hugging_face_and_converts_back(name, tmp_path):
    cfg = HubertConfig(TrunkConfig(**TRUNK, **VARIANTS[name]))
    model = Trunk(cfg.trunk)
    params = random_params(abstract_params(model), np.random.default_rng(0))
    params["pos_conv"]["kernel"][2] = (
        0  # weight norm cannot divide this slice by its norm, which is 0
    )
    export_speech.export_hubert(cfg, params, tmp_path / "hf", "hubert")
    layer = None if cfg.trunk.norm_first and cfg.trunk.final_norm else 2
    cfg_read, params_read = hubert.read_hf_encoder(tmp_path / "hf", layer)
    assert cfg_read == cfg
    assert_same(params_read, params)
    reference, report = transformers.HubertModel.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    wave = np.random.default_rng(0).standard_normal((1, 800)).astype(np.float32)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "hf")
    inputs = extractor(wave[0], sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        result = reference.eval()(inputs, output_hidden_states=True)
    expected = (result.last_hidden_state if layer is None else result.hidden_states[2]).numpy()
    hidden, _ = jax.jit(model.apply)({"params": params}, wave, np.array([800], np.int32))
    assert np.abs(np.asarray(hidden) - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_hubert_that_transformers_does_not_have_is_refused(tmp_path):
    cfg = HubertConfig(TrunkConfig(**TRUNK, norm_first=True, adapter_size=4))
    params = random_params(abstract_params(Trunk(cfg.trunk)), np.random.default_rng(0))
    with pytest.raises(InputError, match="adapter_size is 4"):
        export_speech.export_hubert(cfg, params, tmp_path / "hf", "hubert")


VOCODER = dict(
    num_codes=9,
    embedding_dim=4,
    upsample_rates=(5, 4),
    upsample_kernels=(11, 8),
    initial_channels=8,
    resblock_kernels=(3, 5),
    resblock_dilations=((1, 3), (1,)),
    duration_hidden=6,
    code_hop=20,
)
VOICES = {
    "one voice": {"num_speakers": 0, "num_style_ids": 0, "default_speaker": 0, "default_style": 0},
    "voices and styles": {
        "num_speakers": 3,
        "num_style_ids": 2,
        "speakers": ("ex01", "ex02"),
        "styles": ("default", "happy"),
        "default_speaker": 1,
        "default_style": 1,
        "duration_hidden": 0,
    },
    "pitch and style units": {
        "num_pitch": 5,
        "num_style": 4,
        "common_style": 3,
        "num_speakers": 2,
        "num_style_ids": 0,
        "default_speaker": 1,
        "default_style": 0,
    },
}


@pytest.mark.parametrize("name", VOICES)
def test_an_exported_vocoder_equals_the_release_and_converts_back(name, tmp_path):
    cfg = hifigan.HifiGanConfig(**(VOCODER | VOICES[name]))
    model = hifigan.HifiGan(cfg)
    params = random_params(hifigan.abstract_params(model), np.random.default_rng(0))
    assert not export_speech.export_hifigan(cfg, params, tmp_path / "release")
    assert convert_hifigan(tmp_path / "release", tmp_path / "converted") == cfg
    assert_same(hifigan.load(tmp_path / "converted")[1], params)
    reference = TorchHifiGan(json.loads((tmp_path / "release/config.json").read_text()))
    state = torch.load(tmp_path / "release/generator.pt", weights_only=True)["generator"]
    reference.load_state_dict(state)
    rng = np.random.default_rng(0)
    ids = np.stack([rng.integers(0, n, (1, 6)) for n in cfg.channels.values()], axis=-1)
    wave, _ = jax.jit(model.apply)({"params": params}, ids, np.array([6], np.int32))
    with torch.no_grad():
        expected = reference([torch.from_numpy(ids[..., i]) for i in range(ids.shape[-1])]).numpy()
    assert np.abs(np.asarray(wave) - expected).max() < 1e-4 * expected.std()


def test_exported_quantizers_convert_back(tmp_path):
    for cfg in (QuantizerConfig("mlp", 5, 16, (14, 11)), QuantizerConfig("kmeans", 5, 16)):
        shapes = hubert.quantizer_shapes(cfg)
        params = random_params(shapes, np.random.default_rng(0))
        assert not export_speech.export_quantizer(cfg, params, tmp_path)
        if cfg.kind == "kmeans":
            cfg_read, params_read = hubert.read_kmeans(tmp_path / "centroids.npy")
        else:
            cfg_read, params_read = hubert.read_release_quantizer(tmp_path / "quantizer.pt")
        assert cfg_read == cfg
        assert_same(params_read, params)


def test_networks_without_a_pytorch_format_are_left_out_of_an_export(base_folder, tmp_path, capsys):
    from convert.export import main

    main(base_folder, tmp_path / "out", speech=True)
    printed = capsys.readouterr().out
    source = model_folder.find_speech_tokenizer(base_folder)
    _, params = hubert.read_hf_encoder(tmp_path / "out/hubert", layer=None)
    assert_same(params, checkpoint.load_params(source / "hubert"))
    assert "wrote" in printed
    main("spirit-tiny-base", tmp_path / "tiny", speech=True)
    printed = capsys.readouterr().out
    assert "left out the network hifigan: its source_harmonics is 8" in printed
    assert (tmp_path / "tiny/hubert/model.safetensors").is_file()


def test_missing_torch_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    quantizer = QuantizerConfig("mlp", 5, 16, (14, 11))
    params = random_params(hubert.quantizer_shapes(quantizer), np.random.default_rng(0))
    with pytest.raises(InputError, match="quantizer.pt: is written by torch, which is not inst"):
        export_speech.export_quantizer(quantizer, params, tmp_path)
    vocoder = hifigan.HifiGanConfig(**(VOCODER | VOICES["one voice"]))
    with pytest.raises(InputError, match="generator.pt: is written by torch, which is not inst"):
        export_speech.export_hifigan(vocoder, {}, tmp_path)
    assert not list(tmp_path.iterdir())
