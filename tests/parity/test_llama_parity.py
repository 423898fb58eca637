"""The Llama decoder gives Hugging Face's logits; conversion and export keep all weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from convert import torch_files, weights  # noqa: E402
from convert.export import export_llama  # noqa: E402
from convert.llama import convert_llama  # noqa: E402
from spirit_jax.errors import InputError  # noqa: E402
from spirit_jax.models import llama_weights  # noqa: E402

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def hf_model(**changes):
    torch.manual_seed(0)
    settings = dict(
        vocab_size=199,
        hidden_size=32,
        intermediate_size=72,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        rope_theta=10_000.0,
        initializer_range=0.2,
    )
    config = transformers.LlamaConfig(**(settings | changes))
    return transformers.LlamaForCausalLM(config).eval()


VARIANTS = {
    "plain": {},
    "one_kv_head": {"num_key_value_heads": 1},
    "two_kv_heads_tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "llama3_scaling": {"rope_scaling": LLAMA3, "rope_theta": 500_000.0},
    "linear_scaling": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "wide_heads_biases": {"head_dim": 16, "attention_bias": True, "mlp_bias": True},
}


QUICK = "two_kv_heads_tied", "llama3_scaling", "wide_heads_biases"  # have all parts


@pytest.fixture(scope="module", params=[name if name in QUICK else slow(name) for name in VARIANTS])
def pair(request, tmp_path_factory):
    """(HF model, HF folder, our network folder) of one variant."""
    folder = tmp_path_factory.mktemp(request.param)
    model = hf_model(**VARIANTS[request.param])
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value, std=0.1)
    model.save_pretrained(folder / "hf")
    convert_llama(folder / "hf", folder / "ours")
    return model, folder / "hf", folder / "ours"


@pytest.mark.parametrize("scan_layers", [False, slow(True)])
def test_logits_of_long_prompts(pair, scan_layers):
    """600 tokens, since a wrong rotary angle hardly shows in a short prompt."""
    model, _, model_dir = pair
    tokens = np.random.default_rng(0).integers(0, 199, (2, 600))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    jax_model, params = llama_weights.load(model_dir, scan_layers=scan_layers)
    positions = np.broadcast_to(np.arange(600), tokens.shape)
    logits, _ = jax.jit(jax_model.apply)(
        {"params": params}, jnp.asarray(tokens), jnp.ones_like(positions), positions
    )
    difference = np.abs(np.asarray(logits) - expected).max() / np.abs(expected).max()
    assert difference < 1e-4


def test_there_and_back_is_bitwise(pair, tmp_path):
    model, hf, model_dir = pair
    export_llama(model_dir, tmp_path / "back", bos=1, eos=2)
    before, after = weights.open_folder(hf), weights.open_folder(tmp_path / "back")
    assert set(before) == set(after)
    for name in before:
        assert np.array_equal(before[name], after[name]), name
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "back").eval()
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, again(tokens).logits)


def test_bfloat16_stays_bfloat16(tmp_path):
    model = hf_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "hf")
    convert_llama(tmp_path / "hf", tmp_path / "ours")
    _, params = llama_weights.load(tmp_path / "ours")
    kernel = params["layers"]["1"]["up"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    expected = torch_files.to_numpy(model.model.layers[1].mlp.up_proj.weight).T
    assert np.array_equal(np.asarray(kernel), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_are_stored_in_the_dtype_asked_for(tmp_path, dtype):
    model = hf_model()
    model.save_pretrained(tmp_path / "hf")
    convert_llama(tmp_path / "hf", tmp_path / "ours", new_vocab_size=1024, dtype=dtype)
    _, params = llama_weights.load(tmp_path / "ours")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    expected = model.model.layers[1].mlp.up_proj.weight.detach().to(getattr(torch, dtype))
    kernel = np.asarray(params["layers"]["1"]["up"]["kernel"])
    assert np.array_equal(kernel, torch_files.to_numpy(expected).T)


def test_a_parameter_too_large_for_bfloat16_is_named(tmp_path):
    model = hf_model()
    with torch.no_grad():
        model.model.norm.weight[0] = 3.4e38  # rounds to infinity in bfloat16
    model.save_pretrained(tmp_path / "hf")
    with pytest.raises(InputError, match="'final_norm/scale' has a number that is too large for"):
        convert_llama(tmp_path / "hf", tmp_path / "ours", dtype="bfloat16")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("form", ["safetensors_shards", "bin", "bin_shards"])
def test_every_form_of_weights_is_read(tmp_path, form):
    model = hf_model()
    hf, state = tmp_path / "hf", model.state_dict()
    if form == "safetensors_shards":
        model.save_pretrained(hf, max_shard_size="20KB")
    else:
        model.config.save_pretrained(hf)
        names = list(state)
        halves = [names] if form == "bin" else [names[:9], names[9:]]
        files = ["pytorch_model.bin"]
        if form == "bin_shards":
            files = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
            index = {n: f for half, f in zip(halves, files, strict=True) for n in half}
            (hf / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
        for half, file in zip(halves, files, strict=True):
            torch.save({n: state[n].clone() for n in half}, hf / file)
    convert_llama(hf, tmp_path / "ours")
    _, params = llama_weights.load(tmp_path / "ours")
    expected = state["model.layers.2.self_attn.o_proj.weight"].numpy().T.reshape(4, 8, 32)
    assert np.array_equal(np.asarray(params["layers"]["2"]["o"]["kernel"]), expected)


def save_bin(folder, state):
    hf_model().config.save_pretrained(folder)
    torch.save(state, folder / "pytorch_model.bin")


@pytest.mark.parametrize("fault", ["unknown", "missing", "shape"])
def test_a_key_that_does_not_fit_is_named(tmp_path, fault):
    state = dict(hf_model().state_dict())
    if fault == "unknown":
        state["model.layers.0.self_attn.surprise"] = torch.zeros(3)
        name = "surprise"
    elif fault == "missing":
        del state["model.layers.1.mlp.up_proj.weight"]
        name = "layers/1/up/kernel"
    else:
        state["model.layers.1.mlp.up_proj.weight"] = torch.zeros(71, 32)
        name = "up_proj"
    save_bin(tmp_path / "hf", state)
    with pytest.raises(InputError, match=name):
        convert_llama(tmp_path / "hf", tmp_path / "ours")
    assert not list(tmp_path.glob("ours*/*")), "something half-written stays"


def test_new_rows_are_like_the_old_ones(tmp_path):
    model = hf_model(initializer_range=0.05)
    model.save_pretrained(tmp_path / "hf")
    cfg = convert_llama(tmp_path / "hf", tmp_path / "ours", new_vocab_size=1024)
    assert cfg.vocab_size == 1024
    _, params = llama_weights.load(tmp_path / "ours")
    embedding = np.asarray(params["embed"]["embedding"])
    assert np.array_equal(embedding[:199], model.model.embed_tokens.weight.detach().numpy())
    assert 0.9 < embedding[199:].std() / embedding[:199].std() < 1.1
    head = np.asarray(params["head"])
    assert np.array_equal(head[:, :199], model.lm_head.weight.detach().numpy().T)
    assert 0.9 < head[:, 199:].std() / head[:, :199].std() < 1.1
