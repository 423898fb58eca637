"""HuBERT, its quantizer and the style encoder against the release's numbers and Hugging Face."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from marks import slow

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
soundfile = pytest.importorskip("soundfile")

from convert import hubert as convert_hubert  # noqa: E402
from convert import style as convert_style  # noqa: E402
from spirit_jax.cli import running  # noqa: E402
from spirit_jax.errors import InputError  # noqa: E402
from spirit_jax.models import hubert, style  # noqa: E402
from spirit_jax.models.wav2vec2 import Trunk, frame_lengths  # noqa: E402

PART, WHOLE = 1e-5, 1e-4


def difference(result, expected) -> float:
    """The largest difference over the largest value."""
    expected = np.asarray(expected)
    assert result.shape == expected.shape
    return float(np.abs(np.asarray(result) - expected).max() / np.abs(expected).max())


# The release's files and what the release computes from them.


@pytest.fixture(scope="module")
def release(golden, tmp_path_factory):
    """(folder of the release's speech tokenizer, folder of ours)."""
    folder, output = golden / "checkpoints/speech_tokenizer", tmp_path_factory.mktemp("release")
    files = folder / "hubert_25hz"
    convert_hubert.convert_hubert(
        output,
        convert_hubert.read_release_encoder(files / "mhubert_base_25hz.pt"),
        convert_hubert.read_release_quantizer(files / "L11_quantizer_500.pt"),
    )
    convert_style.convert_style(folder / "style_encoder_w2v2", output / "style")
    return folder, output


@pytest.fixture(scope="module")
def recordings(golden):
    """All recordings in one padded batch: (names, wave_bt, lengths_b)."""
    paths = sorted((golden / "audio").iterdir())
    waves = [soundfile.read(p, dtype="float32", always_2d=True)[0].mean(axis=1) for p in paths]
    lengths = np.array([len(wave) for wave in waves], np.int32)
    batch = np.zeros((len(waves), lengths.max()), np.float32)
    for row, wave in zip(batch, waves, strict=True):
        row[: len(wave)] = wave
    return [path.name for path in paths], batch, lengths


@pytest.fixture(scope="module")
def expected(golden):
    """(expected.json, expected_arrays.npz)."""
    arrays = np.load(golden / "expected_arrays.npz")
    return json.loads((golden / "expected.json").read_text()), arrays


@pytest.mark.slow  # test_golden also covers it, without intermediate values
def test_units_are_those_of_the_release(release, recordings, expected):
    names, wave, lengths = recordings
    values, arrays = expected
    model, params = hubert.load(release[1] / "hubert", release[1] / "quantizer")
    quantizer = hubert.make_quantizer(model.quantizer)

    @jax.jit
    def encode(params):
        hidden, frames = Trunk(model.config.trunk).apply(
            {"params": params["hubert"]}, wave, lengths
        )
        units, _ = model.apply({"params": params}, wave, lengths)
        return hidden, quantizer.apply({"params": params["quantizer"]}, hidden), units, frames

    hidden, scores, units, frames = jax.device_get(encode(params))
    np.testing.assert_array_equal(frames, frame_lengths(lengths, model.config.trunk.conv_layers))
    for row, name in enumerate(names):
        n = frames[row]
        assert difference(hidden[row, :n], arrays[f"mid/{name}/hubert_layer11"]) <= PART
        best = np.sort(scores[row, :n], axis=-1)
        margin = best[:, -1] - best[:, -2]
        assert difference(margin, arrays[f"mid/{name}/unit_margin"]) <= WHOLE
        filled = hubert.fill_blanks(units[row, :n], model.quantizer.blank)
        for released in values.values():
            assert " ".join(map(str, filled)) == released["audio"][name]["hubert"]


@pytest.mark.slow  # test_golden also covers it, without intermediate values
def test_styles_are_those_of_the_release(release, recordings, expected):
    names, wave, lengths = recordings
    values, arrays = expected
    model, params = style.load(release[1] / "style")
    logits, counts = jax.device_get(jax.jit(model.apply)({"params": params}, wave, lengths))
    for row, name in enumerate(names):
        result = logits[row, : counts[row]]
        assert difference(result, arrays[f"mid/{name}/style_logits"]) <= PART
        expressive = values["spirit-lm-expressive-7b"]["audio"][name]["style"]
        assert " ".join(map(str, result.argmax(-1))) == expressive


# Hugging Face models with random weights.

SIZES = dict(
    conv_dim=[8, 8, 12],
    conv_kernel=[10, 3, 2],
    conv_stride=[5, 2, 2],
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    num_conv_pos_embeddings=6,
    num_conv_pos_embedding_groups=4,
)
PRE_NORM = dict(
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    conv_bias=True,
    num_conv_pos_embeddings=5,
    layer_norm_eps=1e-3,
)
VARIANTS = {
    "hubert_post": ("Hubert", {}),
    "hubert_pre": ("Hubert", PRE_NORM),
    "hubert_bare": ("Hubert", {"feat_proj_layer_norm": False, "hidden_act": "gelu_new"}),
    "wav2vec2_post": ("Wav2Vec2", {"feat_extract_activation": "relu", "hidden_act": "relu"}),
    "wav2vec2_pre": ("Wav2Vec2", PRE_NORM),
}


def random_hf(family, settings, head="Model"):
    torch.manual_seed(0)
    hf_config = getattr(transformers, f"{family}Config")(**(SIZES | settings))
    model = getattr(transformers, f"{family}{head}" if head == "Model" else head)(hf_config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    return model


def random_wave(samples=700):
    return np.random.default_rng(0).normal(0.1, 0.5, (2, samples)).astype(np.float32)


QUICK = "hubert_pre", "hubert_bare", "wav2vec2_post"  # have all parts


@pytest.fixture(scope="module", params=[name if name in QUICK else slow(name) for name in VARIANTS])
def hf(request, tmp_path_factory):
    """(the model, its folder) of one variant."""
    model = random_hf(*VARIANTS[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder


def run(trunk_config, params, wave):
    """The output of the conv layers, and of all layers."""
    lengths = np.full(len(wave), wave.shape[1], np.int32)
    trunk = Trunk(trunk_config)

    @jax.jit
    def apply(params):
        features, _ = trunk.apply({"params": params}, wave, lengths, method="extract")
        return features, trunk.apply({"params": params}, wave, lengths)[0]

    return apply(params)


@torch.inference_mode()
def test_trunk_equals_hugging_face(hf):
    model, folder = hf
    wave = random_wave()
    reference = model(torch.from_numpy(wave), output_hidden_states=True)
    cfg, params = convert_hubert.read_hf_encoder(folder, layer=2)
    features = model.feature_extractor(torch.from_numpy(wave)).transpose(1, 2)
    extracted, hidden = run(cfg.trunk, params, wave)
    assert difference(extracted, features) <= PART
    # Of a pre-norm model the last of these is not its normed output.
    assert difference(hidden, reference.hidden_states[2]) <= WHOLE
    cfg, params = convert_hubert.read_hf_encoder(folder, layer=1)
    assert set(params["layers"]) == {"0"}
    assert difference(run(cfg.trunk, params, wave)[1], reference.hidden_states[1]) <= WHOLE


FAIRSEQ_NAMES = {
    "feature_projection.layer_norm": "layer_norm",
    "feature_projection.projection": "post_extract_proj",
    "pos_conv_embed.conv": "pos_conv.0",
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
    "attention.": "self_attn.",
    "feed_forward.intermediate_dense": "fc1",
    "feed_forward.output_dense": "fc2",
    "masked_spec_embed": "mask_emb",
}


def as_release(model):
    """The release's file of a Hugging Face model, in fairseq's names."""
    state = {}
    for name, tensor in model.state_dict().items():
        if "conv_layers" in name:
            norm = ".2.1." if model.config.feat_extract_norm == "layer" else ".2."
            name = name.replace(".conv.", ".0.").replace(".layer_norm.", norm)
        elif ".layers." in name:
            name = name.replace(".layer_norm", ".self_attn_layer_norm")
        for hf_name, fairseq_name in FAIRSEQ_NAMES.items():
            name = name.replace(hf_name, fairseq_name)
        state[name] = tensor
    hf_config = model.config
    layers = zip(hf_config.conv_dim, hf_config.conv_kernel, hf_config.conv_stride, strict=True)
    cfg = {
        "extractor_mode": {"group": "default", "layer": "layer_norm"}[hf_config.feat_extract_norm],
        "conv_feature_layers": repr(list(layers)),
        "conv_bias": hf_config.conv_bias,
        "encoder_layers": hf_config.num_hidden_layers,
        "encoder_embed_dim": hf_config.hidden_size,
        "encoder_ffn_embed_dim": hf_config.intermediate_size,
        "encoder_attention_heads": hf_config.num_attention_heads,
        "conv_pos": hf_config.num_conv_pos_embeddings,
        "conv_pos_groups": hf_config.num_conv_pos_embedding_groups,
        "layer_norm_first": hf_config.do_stable_layer_norm,
    }
    return {
        "model_cfg": cfg,
        "task_cfg": {"normalize": True, "sample_rate": 8000},
        "model_weight": state | {"final_proj.weight": torch.zeros(2, 2)},
        "dictionaries_symbols": [],
    }


def last_layer_output(model, wave):
    """What the last transformer layer gives, before anything that follows it."""
    outputs = []
    handle = model.encoder.layers[-1].register_forward_hook(lambda *args: outputs.append(args[-1]))
    model(wave)
    handle.remove()
    return outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]


@torch.inference_mode()
@pytest.mark.parametrize(
    "settings", [slow({}), PRE_NORM | {"layer_norm_eps": 1e-5}], ids=["post", "pre"]
)
def test_release_form_equals_hugging_face(settings, tmp_path):
    model = random_hf("Hubert", settings)
    torch.save(as_release(model), tmp_path / "hubert.pt")
    wave = random_wave()
    normed = torch.nn.functional.layer_norm(torch.from_numpy(wave), wave.shape[1:])
    reference = model(normed, output_hidden_states=True)
    # fairseq's output of a named layer has not passed the encoder's LayerNorm, the last's neither.
    for layer, hidden in ((1, reference.hidden_states[1]), (2, last_layer_output(model, normed))):
        cfg, params = convert_hubert.read_release_encoder(tmp_path / "hubert.pt", layer)
        assert cfg.sample_rate == 8000
        assert difference(run(cfg.trunk, params, wave)[1], hidden) <= WHOLE


@torch.inference_mode()
def test_style_equals_hugging_face_where_one_run_is_all(tmp_path):
    settings = {"classifier_proj_size": 9, "num_labels": 7}
    model = random_hf("Wav2Vec2", settings, "Wav2Vec2ForSequenceClassification")
    model.save_pretrained(tmp_path / "hf")
    wave = random_wave()[:1]
    normed = transformers.Wav2Vec2FeatureExtractor()(wave[0], sampling_rate=16000)
    expected = model(torch.from_numpy(normed["input_values"][0])[None]).logits
    cfg = convert_style.convert_style(tmp_path / "hf", tmp_path / "style")
    _, params = style.load(tmp_path / "style")
    one_run = style.StyleEncoder(dataclasses.replace(cfg, pool_frames=1000))
    logits, counts = jax.jit(one_run.apply)({"params": params}, wave, np.int32([wave.shape[1]]))
    assert counts.tolist() == [1]
    assert difference(logits[0], expected) <= WHOLE


def test_preprocessor_says_whether_the_waveform_is_normalised(hf):
    _, folder = hf
    assert convert_hubert.read_hf_encoder(folder, 1)[0].trunk.input_norm_eps is None
    settings = folder / "preprocessor_config.json"
    settings.write_text('{"do_normalize": true, "sampling_rate": 8000}')
    cfg, _ = convert_hubert.read_hf_encoder(folder, 1)
    settings.unlink()
    assert (cfg.trunk.input_norm_eps, cfg.sample_rate) == (1e-7, 8000)


# What a conversion refuses.


@pytest.fixture
def saved():
    return as_release(random_hf("Hubert", {}))


def read_saved(saved, tmp_path, layer=1):
    torch.save(saved, tmp_path / "hubert.pt")
    return convert_hubert.read_release_encoder(tmp_path / "hubert.pt", layer)


def test_absent_fields_take_fairseq_defaults(saved, tmp_path):
    del saved["model_cfg"]["conv_bias"], saved["model_cfg"]["extractor_mode"], saved["task_cfg"]
    cfg, _ = read_saved(saved, tmp_path)
    assert (cfg.trunk.conv_bias, cfg.trunk.conv_norm, cfg.sample_rate) == (False, "group", 16000)
    assert cfg.trunk.input_norm_eps is None
    del saved["model_cfg"]["conv_feature_layers"]
    with pytest.raises(InputError, match="conv/3/kernel"):
        read_saved(saved, tmp_path)


FC1 = "encoder.layers.0.fc1.weight"


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda w: w.update(surprise=torch.zeros(1)), "surprise"),
        (lambda w: w.pop(FC1), "layers/0/fc1/kernel"),
        (lambda w: w.update({FC1: torch.zeros(3, 16)}), FC1),
        (lambda w: w.update({FC1: 3}), FC1),
        (lambda w: w.pop("encoder.pos_conv.0.weight_g"), "weight_g"),
        (lambda w: w.update({"encoder.layers.1.fc3.weight": w[FC1]}), None),
        (lambda w: w.update({"encoder.layers.2.fc1.weight": w[FC1]}), r"layers\.2\.fc1"),
    ],
    ids=["unknown", "missing", "shape", "no tensor", "half a norm", "skipped", "too many layers"],
)
def test_tensors_that_do_not_fit_are_named(spoil, named, saved, tmp_path):
    spoil(saved["model_weight"])
    if named is None:
        read_saved(saved, tmp_path)
        return
    with pytest.raises(InputError, match=named):
        read_saved(saved, tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("activation_fn", "tanh"),
        ("extractor_mode", "other"),
        ("encoder_layers", 0),
        ("pos_conv_depth", 5),
        ("layer_type", "conformer"),
        ("conv_pos", "wide"),
        ("encoder_attention_heads", 5),
    ],
)
def test_settings_that_are_not_known_are_named(field, value, saved, tmp_path):
    saved["model_cfg"][field] = value
    with pytest.raises(InputError, match="hubert.pt"):
        read_saved(saved, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "[(512, 10, 5)] * 10**9",
        "[(512, 10, 5)] * 1000000000",
        "[[[1] * 60] * 60] * 60 * 60",
        "[(512, 10, 5) for _ in range(3)]",
        "[(512, 10)]",
        "[(512, 10, -5)]",
        "[(512.0, 10, 5)]",
        "[(True, 10, 5)]",
        "[]",
        "3",
        "['abc']",
        "[(512, 10, 5)] + 3",
        "(" * 400 + ")" * 400,
        "[(512, 10, 5)]" + " + [(512, 3, 2)]" * 100,
        "[(512, 10",
        "",
        None,
        [[512, 10, 5]],
    ],
)
def test_conv_expressions_are_never_run(text):
    with pytest.raises(InputError, match="conv_feature_layers"):
        convert_hubert.parse_conv_layers(text, "file.pt")


def test_conv_expressions_of_the_known_kind_are_read():
    parse = convert_hubert.parse_conv_layers
    text = "[(512,10,5)] + [(512,3,2)] * 4 + 3 * [(512,2,2)]"
    layers = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 3)
    assert parse(text, "file.pt") == layers
    assert parse("((512, 2 + 8, 5), [512, 3, 2])", "file.pt") == ((512, 10, 5), (512, 3, 2))


def test_centroids_are_read_from_every_form(tmp_path):
    from safetensors.numpy import save_file

    centroids = np.random.default_rng(0).normal(size=(6, 16)).astype(np.float32)
    np.save(tmp_path / "a.npy", centroids.astype(np.float64))
    np.savez(tmp_path / "b.npz", centers=centroids, labels=np.arange(3))
    save_file({"centers": centroids}, tmp_path / "c.safetensors")
    torch.save(torch.from_numpy(centroids), tmp_path / "d.pt")
    torch.save({"centers": torch.from_numpy(centroids), "steps": 3}, tmp_path / "e.pt")
    for name in ("a.npy", "b.npz", "c.safetensors", "d.pt", "e.pt"):
        cfg, params = convert_hubert.read_kmeans(tmp_path / name)
        assert (cfg.kind, cfg.vocab_size, cfg.dim) == ("kmeans", 6, 16)
        np.testing.assert_array_equal(params["centroids"], centroids)
    np.save(tmp_path / "f.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "g.npz", a=centroids, b=centroids)
    (tmp_path / "h.npy").write_bytes(b"")
    (tmp_path / "i.joblib").write_bytes(b"")
    for name in ("f.npy", "g.npz", "h.npy", "i.joblib", "absent.npy"):
        with pytest.raises(InputError, match=name):
            convert_hubert.read_kmeans(tmp_path / name)


def command(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
    running.run(module.main)


def test_commands_write_folders_or_say_why_not(hf, tmp_path, monkeypatch, capsys):
    _, folder = hf
    np.save(tmp_path / "wide.npy", np.zeros((6, 17), np.float32))
    np.save(tmp_path / "kmeans.npy", np.zeros((6, 16), np.float32))
    convert = ["--hf", folder, "--layer", "2", "--output", tmp_path / "out", "--kmeans"]
    with pytest.raises(SystemExit, match="1"):
        command(convert_hubert, monkeypatch, *convert, tmp_path / "wide.npy")
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert not (tmp_path / "out").exists()

    command(convert_hubert, monkeypatch, *convert, tmp_path / "kmeans.npy")
    printed = capsys.readouterr().out
    assert json.loads(printed) | {"layers": 2, "units": 6} == json.loads(printed)
    model, _ = hubert.load(tmp_path / "out/hubert", tmp_path / "out/quantizer")
    assert model.quantizer.kind == "kmeans"
    with pytest.raises(SystemExit, match="1"):
        command(convert_style, monkeypatch, "--checkpoint", folder, "--output", tmp_path / "style")
    assert capsys.readouterr().err.count("\n") == 1
