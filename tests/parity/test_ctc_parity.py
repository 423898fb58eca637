"""The CTC network against Hugging Face's, and checkpoints that its conversion rejects."""

import json
import sys

import jax
import numpy as np
import pytest
from marks import slow

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402

from convert import ctc as convert_ctc  # noqa: E402
from spirit_jax.cli import running  # noqa: E402
from spirit_jax.errors import InputError  # noqa: E402
from spirit_jax.models import ctc  # noqa: E402

SIZES = dict(
    conv_dim=[8, 8],
    conv_kernel=[10, 3],
    conv_stride=[5, 2],
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    num_conv_pos_embeddings=6,
    num_conv_pos_embedding_groups=4,
    vocab_size=6,
)
LAYER = dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
VARIANTS = {"group": {}, "layer": LAYER, "adapter": LAYER | {"adapter_attn_dim": 3}}
VOCAB = {"<pad>": 0, "<s>": 1, "|": 2, "A": 3, "B": 4, "'": 5}


def make_model(settings):
    model = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**(SIZES | settings))).eval()
    torch.manual_seed(0)  # after construction, so that the trunk does not depend on the vocabulary
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    return model


def save(model, folder, vocab):
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocab))


@torch.inference_mode()
def assert_same_logits(model, network):
    wave = np.random.default_rng(0).normal(0.1, 0.5, (2, 400)).astype(np.float32)
    mean, var = wave.mean(1, keepdims=True), wave.var(1, keepdims=True)
    expected = model(torch.from_numpy((wave - mean) / np.sqrt(var + 1e-7))).logits.numpy()
    aligner, params = ctc.load(network)
    logits, counts = jax.jit(aligner.apply)({"params": params}, wave, np.int32([400, 400]))
    assert logits.shape == expected.shape and counts.tolist() == [expected.shape[1]] * 2
    assert np.abs(np.asarray(logits) - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("variant", ["group", slow("layer"), "adapter"])
def test_logits_equal_hugging_face(variant, tmp_path):
    model = make_model(VARIANTS[variant])
    save(model, tmp_path / "hf", VOCAB)
    cfg = convert_ctc.convert_ctc(tmp_path / "hf", tmp_path / "ctc")
    assert cfg.labels == tuple(VOCAB)
    assert (cfg.blank, cfg.separator, cfg.sample_rate) == (0, "|", 16000)
    assert cfg.trunk.adapter_size == (3 if variant == "adapter" else 0)
    assert_same_logits(model, tmp_path / "ctc")


@pytest.fixture(scope="module")
def languages(tmp_path_factory):
    """(folder of two languages, the model of the first, the model of the second)."""
    folder = tmp_path_factory.mktemp("mms") / "hf"
    model = make_model(VARIANTS["adapter"])
    save(model, folder, {"eng": VOCAB, "xyz": {"<pad>": 0, "ж": 1, "я": 2}})
    (folder / "tokenizer_config.json").write_text('{"target_lang": "eng"}')
    other = make_model(VARIANTS["adapter"] | {"vocab_size": 3})
    tensors = other.state_dict()
    for name, tensor in tensors.items():
        if "adapter_layer" in name or "lm_head" in name:
            tensor += 0.5
    other_only = {n: t for n, t in tensors.items() if "adapter_layer" in n or "lm_head" in n}
    save_file(other_only, folder / "adapter.xyz.safetensors")
    return folder, model, other


def test_a_language_selects_its_adapter_and_labels(languages, tmp_path):
    folder, first, other = languages
    assert convert_ctc.convert_ctc(folder, tmp_path / "eng").labels == tuple(VOCAB)
    assert_same_logits(first, tmp_path / "eng")
    cfg = convert_ctc.convert_ctc(folder, tmp_path / "xyz", "xyz")
    assert (cfg.labels, cfg.separator) == (("<pad>", "ж", "я"), "")
    assert_same_logits(other, tmp_path / "xyz")


def test_an_unknown_language_is_rejected(languages, tmp_path):
    folder, _, _ = languages
    with pytest.raises(InputError, match="no language 'fra'.* 2 .*eng, xyz"):
        convert_ctc.convert_ctc(folder, tmp_path / "out", "fra")
    (folder / "adapter.xyz.safetensors").rename(tmp_path / "away")
    with pytest.raises(InputError, match="adapter.xyz.safetensors"):
        convert_ctc.convert_ctc(folder, tmp_path / "out", "xyz")
    (tmp_path / "away").rename(folder / "adapter.xyz.safetensors")
    assert not (tmp_path / "out").exists()


def test_the_command_writes_the_folder_or_prints_an_error(tmp_path, monkeypatch, capsys):
    save(make_model({}), tmp_path / "hf", VOCAB | {"C": 6})
    arguments = ["--hf", str(tmp_path / "hf"), "--output", str(tmp_path / "ctc")]
    monkeypatch.setattr(sys, "argv", ["convert.ctc", *arguments])
    with pytest.raises(SystemExit, match="1"):
        running.run(convert_ctc.main)
    assert "'C' is 6; the network has 6 labels" in capsys.readouterr().err
    (tmp_path / "hf/vocab.json").write_text(json.dumps(VOCAB))
    running.run(convert_ctc.main)
    assert ctc.load(tmp_path / "ctc")[0].config.labels[3] == "A"
    monkeypatch.setattr(sys, "argv", ["convert.ctc", *arguments, "--language", "eng"])
    with pytest.raises(SystemExit, match="1"):
        running.run(convert_ctc.main)
    assert capsys.readouterr().err.count("\n") == 1


def test_a_model_without_a_ctc_head_is_rejected(tmp_path):
    save(make_model({}).wav2vec2, tmp_path / "hf", VOCAB)
    with pytest.raises(InputError, match="Wav2Vec2ForCTC"):
        convert_ctc.convert_ctc(tmp_path / "hf", tmp_path / "ctc")
