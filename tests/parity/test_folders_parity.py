"""Which file and which setting of a Hugging Face folder counts: as transformers reads them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402

from convert import ctc as convert_ctc  # noqa: E402
from convert import hubert as convert_hubert  # noqa: E402
from convert import llama as convert_llama  # noqa: E402
from convert import trunk, weights  # noqa: E402
from spirit_jax import config  # noqa: E402
from spirit_jax.errors import InputError  # noqa: E402
from spirit_jax.models import llama_weights  # noqa: E402
from spirit_jax.models.llama_config import LlamaConfig  # noqa: E402

SIZES = dict(
    vocab_size=61,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=256,
    initializer_range=0.2,
)


def make_llama(seed=0, **changes):
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**(SIZES | changes))).eval()


def write_config(folder, *dropped, **changes):
    """The config.json of `make_llama`, as a file of an earlier transformers or of another tool."""
    folder.mkdir(exist_ok=True)
    values = json.loads(make_llama().config.to_json_string(use_diff=False)) | changes
    values = {key: value for key, value in values.items() if key not in dropped}
    (folder / "config.json").write_text(json.dumps(values))


def write_weights(folder, form, seed):
    """The weights of `make_llama(seed)` as one of the files that a folder may hold."""
    state = {name: tensor.clone() for name, tensor in make_llama(seed).state_dict().items()}
    if form.endswith("index.json"):
        suffix = "safetensors" if "safetensors" in form else "bin"
        names, weight_map = list(state), {}
        for i, part in enumerate((names[:5], names[5:]), 1):
            shard = f"part{seed}-0000{i}-of-00002.{suffix}"
            write_file(folder / shard, {name: state[name] for name in part})
            weight_map |= dict.fromkeys(part, shard)
        content = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / form).write_text(json.dumps(content))
    else:
        write_file(folder / form, state)


def write_file(path, state):
    if path.suffix == ".safetensors":
        save_file(state, path, metadata={"format": "pt"})
    else:
        torch.save(state, path)


FORMS = list(weights.WEIGHT_NAMES)


@pytest.mark.parametrize(
    "forms", [FORMS, FORMS[1:], slow(FORMS[2:]), FORMS[3:], slow(FORMS[::-1]), slow(FORMS[::2])]
)
def test_the_file_is_read_that_transformers_reads(forms, tmp_path):
    folder = tmp_path / "hf"
    write_config(folder)
    for seed, form in enumerate(forms):
        write_weights(folder, form, seed)
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    tensors = weights.open_folder(folder)
    assert set(tensors) == set(expected)
    for name, tensor in expected.items():
        assert np.array_equal(tensors[name], tensor.numpy()), name


def test_what_an_index_does_not_list_is_read_from_its_shards(tmp_path):
    folder = tmp_path / "hf"
    write_config(folder)
    write_weights(folder, "model.safetensors.index.json", 3)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del index["weight_map"]["model.norm.weight"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    tensors = weights.open_folder(folder)
    assert np.array_equal(tensors["model.norm.weight"], expected["model.norm.weight"].numpy())


def test_a_file_that_the_config_names_is_read(tmp_path):
    folder = tmp_path / "hf"
    write_config(folder, transformers_weights="other.safetensors")
    write_weights(folder, "model.safetensors", 0)
    write_weights(folder, "other.safetensors", 1)
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    tensors = weights.open_folder(folder)
    assert np.array_equal(tensors["lm_head.weight"], expected["lm_head.weight"].numpy())
    write_config(folder, transformers_weights="../other.safetensors")
    with pytest.raises(InputError, match="names the weight file"):
        weights.open_folder(folder)


def test_files_of_a_variant_are_not_taken(tmp_path):
    write_config(tmp_path)
    write_weights(tmp_path, "model.fp16.safetensors", 0)
    with pytest.raises(InputError, match="has no weights; expected model.safetensors or"):
        weights.open_folder(tmp_path)


def test_files_of_before_pytorch_1_6_are_read(tmp_path):
    state = {"a": torch.arange(4.0), "b": torch.ones(2, 3).T}
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    tensors = weights.open_folder(tmp_path)
    assert np.array_equal(tensors["a"], [0, 1, 2, 3]) and tensors["b"].shape == (3, 2)


LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
OLD = ("rope_parameters",)  # settings that only transformers 5 writes
CONFIGS = {
    "theta beside": (OLD, {"rope_theta": 500.0}),
    "theta inside": ((), {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "both": (
        (),
        {"rope_theta": 9.0, "rope_parameters": {"rope_type": "default", "rope_theta": 5e3}},
    ),
    "no theta": (OLD, {}),
    "scaling wins": (
        (),
        {
            "rope_scaling": {"type": "linear", "factor": 3.0},
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0},
        },
    ),
    "llama3 of all positions": (OLD, {"rope_scaling": {"rope_type": "llama3", **LLAMA3}}),
    "llama3 inside": (
        OLD,
        {"rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 32, **LLAMA3}},
    ),
    "llama3 beside": (
        OLD,
        {
            "original_max_position_embeddings": 16,
            "rope_scaling": {
                "rope_type": "llama3",
                "original_max_position_embeddings": 32,
                **LLAMA3,
            },
        },
    ),
    "llama3 of transformers 5": (
        (),
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3}},
    ),
    "defaults": ((*OLD, "rms_norm_eps", "num_key_value_heads", "head_dim", "hidden_act"), {}),
    "swish": ((), {"hidden_act": "swish"}),
    "sliding window": ((), {"sliding_window": 4, "use_sliding_window": True}),  # not of a Llama
}


def assert_same_logits(folder, output):
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    convert_llama.convert_llama(folder, output)
    tokens = np.random.default_rng(0).integers(0, 61, (1, 200))
    with torch.no_grad():
        expected = reference(torch.from_numpy(tokens)).logits.numpy()
    model, params = llama_weights.load(output)
    positions = np.arange(200)[None]
    logits, _ = jax.jit(model.apply)(
        {"params": params}, jnp.asarray(tokens), jnp.ones_like(positions), positions
    )
    assert np.abs(np.asarray(logits) - expected).max() < 1e-4 * np.abs(expected).max()


QUICK = "no theta", "scaling wins", "llama3 beside", "defaults"


@pytest.mark.parametrize("name", [name if name in QUICK else slow(name) for name in CONFIGS])
def test_a_config_is_read_as_by_transformers(name, tmp_path):
    dropped, changes = CONFIGS[name]
    write_config(tmp_path / "hf", *dropped, **changes)
    write_weights(tmp_path / "hf", "model.safetensors", 0)
    assert_same_logits(tmp_path / "hf", tmp_path / "ours")


@pytest.mark.parametrize(
    "held", ["both, different", slow("both, equal"), "embedding", slow("head"), slow("base")]
)
def test_heads_are_tied_as_in_transformers(held, tmp_path):
    write_config(tmp_path / "hf", tie_word_embeddings=True)
    state = {name: tensor.clone() for name, tensor in make_llama().state_dict().items()}
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    if held == "both, equal":
        state[head] = state[embedding].clone()
    elif held == "head":
        del state[embedding]
    elif held != "both, different":
        del state[head]
    if held == "base":  # as a LlamaModel is saved
        state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    save_file(state, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    assert_same_logits(tmp_path / "hf", tmp_path / "ours")
    assert config.read(LlamaConfig, tmp_path / "ours/config.json") == (
        LlamaConfig(**vars(convert_llama.read_config(tmp_path / "hf")))
        if held != "both, different"
        else dataclasses.replace(convert_llama.read_config(tmp_path / "hf"), tie_embeddings=False)
    )


def test_an_untied_head_that_is_missing_is_named(tmp_path):
    write_config(tmp_path / "hf")
    state = {k: v.clone() for k, v in make_llama().state_dict().items() if k != "lm_head.weight"}
    save_file(state, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(InputError, match="parameter 'head'"):
        convert_llama.convert_llama(tmp_path / "hf", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "one set for all"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"model_type": "qwen2"}, "k/bias"),
        ({"num_attention_heads": 0}, "config.json"),
        ({"num_hidden_layers": 10**30}, "num_layers"),
        ({"num_hidden_layers": 200}, "asks for 200 layers, but its tensors have 1"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"rms_norm_eps": "small"}, "config.json"),
        ({"hidden_size": -16}, "config.json"),
        ({"num_key_value_heads": 0}, "num_kv_heads"),
        ({"head_dim": 7}, "even"),
    ],
)
def test_settings_that_are_not_known_are_named(changes, says, tmp_path):
    write_config(tmp_path / "hf", **changes)
    write_weights(tmp_path / "hf", "model.safetensors", 0)
    with pytest.raises(InputError, match=says) as error:
        convert_llama.convert_llama(tmp_path / "hf", tmp_path / "ours")
    assert str(tmp_path / "hf") in str(error.value)
    assert not (tmp_path / "ours").exists()


# Audio settings.

NESTED = {"feature_extractor": {"do_normalize": False, "sampling_rate": 8000}}
AUDIO = {
    "transformers 4": {"preprocessor_config.json": {"do_normalize": False, "sampling_rate": 8000}},
    "transformers 5": {"processor_config.json": NESTED},
    "both": {
        "processor_config.json": NESTED,
        "preprocessor_config.json": {"do_normalize": True, "sampling_rate": 22050},
    },
    "a processor without audio settings": {
        "processor_config.json": {"processor_class": "Wav2Vec2Processor"},
        "preprocessor_config.json": {"do_normalize": False},
    },
    "defaults": {"preprocessor_config.json": {}},
    "defaults inside": {"processor_config.json": {"feature_extractor": {"sampling_rate": 8000}}},
}


@pytest.mark.parametrize("name", AUDIO)
def test_audio_settings_are_those_of_transformers(name, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "hubert"}')
    for file, values in AUDIO[name].items():
        (tmp_path / file).write_text(json.dumps(values))
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    settings = trunk.read_preprocessor(tmp_path)
    for setting in ("do_normalize", "sampling_rate"):
        assert settings[setting] == getattr(extractor, setting), setting


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"feature_extractor_type": "WhisperFeatureExtractor"}, "WhisperFeatureExtractor"),
        ({"do_normalize": 1}, "do_normalize"),
        ({"feature_size": 2}, "feature_size"),
    ],
)
def test_audio_settings_that_are_not_known_are_named(values, says, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=says):
        trunk.read_preprocessor(tmp_path)


SPEECH = dict(
    conv_dim=[8, 8],
    conv_kernel=[10, 3],
    conv_stride=[5, 2],
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    num_conv_pos_embeddings=6,
    num_conv_pos_embedding_groups=4,
)


def test_networks_take_the_audio_settings(tmp_path):
    settings = json.dumps({"feature_extractor": {"sampling_rate": 8000, "do_normalize": False}})
    transformers.HubertModel(transformers.HubertConfig(**SPEECH)).save_pretrained(tmp_path / "h")
    (tmp_path / "h/processor_config.json").write_text(settings)
    cfg, _ = convert_hubert.read_hf_encoder(tmp_path / "h", 1)
    assert (cfg.sample_rate, cfg.trunk.input_norm_eps) == (8000, None)
    model = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**SPEECH, vocab_size=3))
    model.save_pretrained(tmp_path / "c")
    (tmp_path / "c/vocab.json").write_text('{"<pad>": 0, "|": 1, "A": 2}')
    (tmp_path / "c/processor_config.json").write_text(settings)
    cfg = convert_ctc.convert_ctc(tmp_path / "c", tmp_path / "ctc")
    assert (cfg.sample_rate, cfg.trunk.input_norm_eps) == (8000, None)
    (tmp_path / "c/processor_config.json").unlink()
    (tmp_path / "c/preprocessor_config.json").write_text("{}")
    cfg = convert_ctc.convert_ctc(tmp_path / "c", tmp_path / "ctc2")
    assert (cfg.sample_rate, cfg.trunk.input_norm_eps) == (16000, 1e-7)


@pytest.mark.parametrize(
    ("defaults", "cls"),
    [
        (trunk.HF_DEFAULTS, "HubertConfig"),
        (trunk.HF_DEFAULTS, "Wav2Vec2Config"),
        (trunk.FEATURE_DEFAULTS, "Wav2Vec2FeatureExtractor"),
    ],
)
def test_defaults_are_those_of_transformers(defaults, cls):
    reference = getattr(transformers, cls)()
    for name, value in defaults.items():
        other = getattr(reference, name)
        assert (list(other) if isinstance(other, tuple) else other) == value, name
