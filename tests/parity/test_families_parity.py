"""Mistral, Qwen and SmolLM, which have the form of a Llama: against Hugging Face's, and back."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from marks import slow

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from convert import llama_config, weights  # noqa: E402
from convert.export import export_llama  # noqa: E402
from convert.llama import convert_llama  # noqa: E402
from spirit_jax import sharding  # noqa: E402
from spirit_jax.errors import InputError  # noqa: E402
from spirit_jax.models import llama, llama_weights  # noqa: E402

SIZES = dict(
    vocab_size=61,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    initializer_range=0.3,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
MSCALE = {"mscale": 1.5, "mscale_all_dim": 0.8, "beta_fast": 16, "beta_slow": 2, "truncate": False}
VARIANTS = {
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 8}),
    "mistral_wide_window": ("mistral", {"sliding_window": 1024}),
    "qwen2": ("qwen2", {"max_window_layers": 1, "sliding_window": 8}),  # not switched on
    "qwen2_tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 6, "tie_word_embeddings": True}),
    "qwen3_untied": ("qwen3", {"head_dim": 8, "attention_bias": True}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1]}),
    "smollm3_rotated": ("smollm3", {"no_rope_layers": [1, 1]}),
    "smollm3_interval": ("smollm3", {"num_hidden_layers": 5}),  # the fourth has none
    "yarn": ("llama", {"rope_scaling": YARN}),
    "yarn_scales": ("qwen2", {"rope_scaling": YARN | MSCALE}),
    "yarn_factor": ("qwen3", {"rope_scaling": YARN | {"attention_factor": 1.3}}),
}
QUICK = "mistral", "qwen2", "qwen3", "smollm3", "yarn_scales"


def make(model_type, dtype=torch.float32, **changes):
    """A random network whose biases and norms all act."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **(SIZES | changes))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value, std=0.3)
        elif "norm" in name:
            torch.nn.init.normal_(value, mean=1.0, std=0.3)
    return model.to(dtype)


@pytest.fixture(scope="module", params=[n if n in QUICK else slow(n) for n in VARIANTS])
def pair(request, tmp_path_factory):
    """(Hugging Face folder, our network folder) of a variant: bfloat16 in several shards."""
    folder = tmp_path_factory.mktemp(request.param)
    model_type, changes = VARIANTS[request.param]
    model = make(model_type, torch.bfloat16, **changes)
    model.save_pretrained(folder / "hf", max_shard_size="3KB")
    assert (folder / "hf/model.safetensors.index.json").is_file()
    convert_llama(folder / "hf", folder / "ours")
    return folder / "hf", folder / "ours"


def logits_of(folder, tokens, **options):
    model, params = llama_weights.load(folder, dtype=jnp.float32, **options)
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    arguments = jnp.asarray(tokens), jnp.ones_like(positions), positions
    return np.asarray(jax.jit(model.apply)({"params": params}, *arguments)[0])


def reference_logits(folder, tokens):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


def relative(logits, expected):
    return np.abs(logits - expected).max() / np.abs(expected).max()


def test_logits_of_long_prompts(pair):
    hf, model_dir = pair
    tokens = np.random.default_rng(0).integers(0, 61, (1, 600))
    assert relative(logits_of(model_dir, tokens), reference_logits(hf, tokens)) < 1e-4


def test_there_and_back_is_bitwise(pair, tmp_path):
    hf, model_dir = pair
    export_llama(model_dir, tmp_path / "back", bos=1, eos=2)
    before, after = weights.open_folder(hf), weights.open_folder(tmp_path / "back")
    assert set(before) == set(after)
    for name in before:
        assert before[name].dtype == after[name].dtype, name
        assert np.array_equal(before[name], after[name]), name
    old, new = (json.loads((f / "config.json").read_text()) for f in (hf, tmp_path / "back"))
    assert (old["model_type"], old["architectures"]) == (new["model_type"], new["architectures"])
    tokens = np.random.default_rng(1).integers(0, 61, (1, 300))
    assert np.array_equal(reference_logits(hf, tokens), reference_logits(tmp_path / "back", tokens))
    convert_llama(tmp_path / "back", tmp_path / "again")
    texts = [(folder / "config.json").read_text() for folder in (model_dir, tmp_path / "again")]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_scan_cache_mesh_and_int8_have_the_same_parts(tmp_path):
    """Of Qwen3, whose norms of heads no other family has."""
    make("qwen3", head_dim=8, attention_bias=True).save_pretrained(tmp_path / "hf")
    convert_llama(tmp_path / "hf", tmp_path / "ours")
    tokens = np.random.default_rng(0).integers(0, 61, (2, 16))
    expected = logits_of(tmp_path / "ours", tokens)
    assert relative(logits_of(tmp_path / "ours", tokens, scan_layers=True), expected) < 1e-5
    mesh = sharding.make_mesh(1, 4, 2)
    with jax.set_mesh(mesh):
        sharded = logits_of(tmp_path / "ours", tokens, mesh=mesh, scan_layers=True)
    assert relative(sharded, expected) < 1e-5
    model, params = llama_weights.load(tmp_path / "ours")
    boxed = llama_weights.abstract_params(model, boxed=True)["layers"]["0"]
    assert boxed["q"]["bias"].names == ("heads", "head_dim")
    assert not isinstance(boxed["q_norm"]["scale"], nn.Partitioned)  # whole on every device
    cfg, rounded = llama_weights.quantize_weights(model.config, params)
    int8 = llama.Llama(cfg)
    assert jax.tree.structure(rounded) == jax.tree.structure(llama_weights.abstract_params(int8))
    cache = llama.init_cache(int8, 2, 16)
    positions = np.broadcast_to(np.arange(16), tokens.shape)
    step = jax.jit(int8.apply)
    logits, _ = step({"params": rounded}, tokens, np.ones_like(positions), positions, cache)
    assert relative(np.asarray(logits), expected) < 0.1


def test_scan_and_cache_know_layers_without_rotary_positions(tmp_path):
    make("smollm3", no_rope_layers=[0, 1]).save_pretrained(tmp_path / "hf")
    convert_llama(tmp_path / "hf", tmp_path / "ours")
    tokens = np.random.default_rng(0).integers(0, 61, (2, 16))
    expected = reference_logits(tmp_path / "hf", tokens)
    assert relative(logits_of(tmp_path / "ours", tokens, scan_layers=True), expected) < 1e-4
    model, params = llama_weights.load(tmp_path / "ours")
    cache, parts = llama.init_cache(model, 2, 16), []
    for start in (0, 8):
        positions = np.broadcast_to(np.arange(start, start + 8), (2, 8))
        part = tokens[:, start : start + 8]
        step = jax.jit(model.apply)
        logits, cache = step({"params": params}, part, np.ones_like(part), positions, cache)
        parts.append(logits)
    assert relative(np.concatenate(parts, axis=1), expected) < 1e-4


@pytest.mark.parametrize("family", llama_config.FAMILIES)
def test_defaults_are_those_of_transformers(family):
    defaults = llama_config.FAMILIES[family].defaults
    cls = transformers.models.auto.configuration_auto.CONFIG_MAPPING[family]
    fields = {field.name: field.default for field in cls.__dataclass_fields__.values()}
    for name, value in defaults.items():
        assert fields.get(name, None) == value, name
    assert cls.default_theta == llama_config.FAMILIES[family].theta


SLIDING = ["sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("model_type", "changes", "says"),
    [
        ("mistral", {"sliding_window": 512}, "last 512 tokens"),
        ("mistral", {"max_position_embeddings": 8192}, "last 4096 tokens"),  # the default
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}, None),  # as long as all
        (
            "qwen2",
            {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 64},
            "last 64 tokens",
        ),
        (
            "qwen2",
            {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 64},
            None,
        ),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 64, "layer_types": SLIDING},
            "last 64 tokens",
        ),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 64, "layer_types": SLIDING[1:] * 2},
            None,
        ),
        ("qwen3", {"layer_types": ["linear_attention"] * 2}, "linear_attention"),
        ("smollm3", {"no_rope_layers": [0, 1, 0]}, None),
        ("smollm3", {"no_rope_layers": [0]}, "no_rope_layers has 1 values for 2 layers"),
        (
            "smollm3",
            {"use_sliding_window": True, "sliding_window": 64, "no_rope_layer_interval": 2},
            "last 64 tokens",
        ),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 64}, None),  # all are rotated
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("qwen2", {"is_causal": False}, "is_causal"),
        ("mistral", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("qwen2_moe", {}, "qwen2_moe"),
        ("gemma", {}, "gemma"),
    ],
)
def test_what_would_change_the_network_is_refused(model_type, changes, says, tmp_path):
    values = {"model_type": model_type} | SIZES | changes
    (tmp_path / "config.json").write_text(json.dumps(values))
    if says is None:
        assert llama_config.read_config(tmp_path).family == model_type
        return
    with pytest.raises(InputError, match=says) as error:
        llama_config.read_config(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("model_type", "name", "says"),
    [
        ("qwen2", "self_attn.k_proj.bias", "k/bias"),
        ("qwen3", "self_attn.q_norm.weight", "q_norm/scale"),
        ("llama", "self_attn.k_proj.bias", "k/bias"),
        ("qwen2", "self_attn.o_proj.bias", "o/bias"),
        ("qwen2", "self_attn.q_norm.weight", "q_norm/scale"),
    ],
)
def test_tensors_of_another_family_are_refused(model_type, name, says, tmp_path):
    """A tensor that is missing or that the config does not have is named."""
    model, name = make(model_type), f"model.layers.1.{name}"
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    if state.pop(name, None) is None:
        state[name] = torch.ones(8)
    model.save_pretrained(tmp_path / "hf")
    from safetensors.torch import save_file

    save_file(state, tmp_path / "hf/model.safetensors")
    with pytest.raises(InputError, match=f"layers/1/{says}"):
        convert_llama(tmp_path / "hf", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_no_torch_is_needed(tmp_path):
    """Neither to convert safetensors nor to write them."""
    make("qwen2", torch.bfloat16).save_pretrained(tmp_path / "hf", max_shard_size="5KB")
    script = """
import sys
sys.modules["torch"] = None  # importing it fails
from pathlib import Path
from convert import export, llama
from spirit_jax.errors import InputError
folder = Path(sys.argv[1])
llama.convert_llama(folder / "hf", folder / "ours")
export.export_llama(folder / "ours", folder / "back", None, 2)
(folder / "bin").mkdir()
(folder / "bin/config.json").write_bytes((folder / "hf/config.json").read_bytes())
(folder / "bin/pytorch_model.bin").write_bytes(b"?")
try:
    llama.convert_llama(folder / "bin", folder / "no")
except InputError as error:
    assert "torch, which is not installed" in str(error), error
else:
    raise AssertionError("a pickle was read")
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    before, after = weights.open_folder(tmp_path / "hf"), weights.open_folder(tmp_path / "back")
    assert all(np.array_equal(before[name], after[name]) for name in before)
