"""The Llama decoder: scan, cache, causality, sharding, and that every config field acts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from marks import slow

from spirit_jax import checkpoint, sharding
from spirit_jax.errors import InputError
from spirit_jax.models import llama, llama_weights
from spirit_jax.models.attention import RopeScaling
from spirit_jax.models.llama import Llama
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.random_model import random_params

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=10_000.0,
    rope_scaling=RopeScaling(original_max_positions=16),
    max_positions=64,
    init_std=0.3,
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 24)), jnp.int32)
POSITIONS = jnp.broadcast_to(jnp.arange(24), TOKENS.shape)
ONES = jnp.ones_like(TOKENS)


@pytest.fixture(scope="module")
def params():
    return random_params(llama_weights.abstract_params(Llama(CONFIG)), np.random.default_rng(0))


def logits_of(config, params, **kwargs):
    model = Llama(config, **kwargs)
    return jax.jit(model.apply)({"params": params}, TOKENS, ONES, POSITIONS)[0]


@pytest.fixture(scope="module")
def logits(params):
    return logits_of(CONFIG, params)


@pytest.fixture(scope="module")
def folder(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llama"
    checkpoint.save_network(folder, CONFIG, params)
    return folder


def relative(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max()


def test_scanned_layers_give_the_same(folder, logits):
    model, params = llama_weights.load(folder, scan_layers=True)
    assert params["layers"]["q"]["kernel"].shape == (2, 16, 4, 8)
    scanned, _ = jax.jit(model.apply)({"params": params}, TOKENS, ONES, POSITIONS)
    assert relative(scanned, logits) < 1e-6


def test_decoding_with_a_cache_equals_the_full_forward(folder, logits):
    model, params = llama_weights.load(folder)
    step = jax.jit(model.apply)
    cache = llama.init_cache(model, batch=2, slots=32)
    out, cache = step({"params": params}, TOKENS[:, :9], ONES[:, :9], POSITIONS[:, :9], cache)
    parts = [out]
    for t in range(9, 24):
        column = (TOKENS[:, t, None], ONES[:, :1], POSITIONS[:, t, None])
        out, cache = step({"params": params}, *column, cache)
        parts.append(out)
    assert relative(jnp.concatenate(parts, axis=1), logits) < 1e-5


def test_causality_by_gradient_is_exact(params):
    """An output's derivative with respect to every later input is exactly zero."""
    model = Llama(CONFIG)
    embeddings = params["embed"]["embedding"][TOKENS[:1]]

    def output(offset_td, t):
        changed = dict(params, embed={"embedding": jnp.zeros((64, 16)).at[:24].set(offset_td)})
        rows = jnp.arange(24)[None]
        return model.apply({"params": changed}, rows, ONES[:1], POSITIONS[:1])[0][0, t].sum()

    gradient = jax.jit(jax.grad(output))
    for t in (0, 11, 23):
        gradient_td = np.asarray(gradient(embeddings[0], t))
        assert np.all(gradient_td[t + 1 :] == 0)
        assert np.all(np.abs(gradient_td[: t + 1]).sum(axis=1) > 0)


def test_segments_do_not_see_each_other(params, logits):
    """Two documents in one row give what each gives alone."""
    segments = jnp.where(jnp.arange(24) < 10, 1, 2)[None]
    positions = jnp.where(jnp.arange(24) < 10, jnp.arange(24), jnp.arange(24) - 10)[None]
    apply = jax.jit(Llama(CONFIG).apply)
    packed, _ = apply({"params": params}, TOKENS[:1], segments, positions)
    alone, _ = apply({"params": params}, TOKENS[:1, 10:], ONES[:1, :14], POSITIONS[:1, :14])
    assert relative(packed[:, 10:], alone) < 1e-5
    assert relative(packed[:, :10], logits[:1, :10]) < 1e-5


@pytest.mark.parametrize("shape", [slow((1, 8, 1)), (1, 4, 2), slow((1, 2, 4)), (2, 2, 2)])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_sharded_equals_single(folder, logits, shape, scan_layers):
    mesh = sharding.make_mesh(*shape)
    model, params = llama_weights.load(folder, mesh=mesh, scan_layers=scan_layers)
    kernel = (params["layers"] if scan_layers else params["layers"]["0"])["up"]["kernel"]
    shard_size = kernel.addressable_shards[0].data.size
    assert shard_size == kernel.size // (shape[1] * shape[2]), "not split over the mesh"
    with jax.set_mesh(mesh):
        sharded, _ = jax.jit(model.apply)({"params": params}, TOKENS, ONES, POSITIONS)
    assert relative(sharded, logits) < 1e-5


CHANGED_SHAPE = {
    "vocab_size": 65,
    "int8_weights": True,
    "family": "qwen3",
    "hidden_size": 20,
    "intermediate_size": 25,
    "num_layers": 3,
    "num_heads": 6,
    "num_kv_heads": 4,
    "head_dim": 10,
    "tie_embeddings": True,
    "attention_bias": True,
    "mlp_bias": True,
}
CHANGED_OUTPUT = {
    "rms_norm_eps": 1.0,
    "rope_theta": 100.0,
    "rope_scaling": None,
    "unrotated_layers": (0,),
}
CHANGED_SCALING = {
    "kind": "linear",
    "factor": 2.0,
    "low_freq_factor": 0.5,
    "high_freq_factor": 2.0,
    "original_max_positions": 32,
}


CHANGED_YARN = {"beta_fast": 8.0, "beta_slow": 0.1, "truncate": False, "attention_factor": 2.0}


@pytest.mark.slow
def test_every_config_field_acts(params):
    shapes = llama_weights.abstract_params(Llama(CONFIG))
    for field, value in CHANGED_SHAPE.items():
        changed = dataclasses.replace(CONFIG, **{field: value})
        assert llama_weights.abstract_params(Llama(changed)) != shapes, field
    shallow = dataclasses.replace(CONFIG, num_layers=1, family="smollm3")  # compiles quickly
    params = dict(params, layers={"0": params["layers"]["0"]})
    logits = logits_of(shallow, params)
    for field, value in CHANGED_OUTPUT.items():
        changed = dataclasses.replace(shallow, **{field: value})
        assert relative(logits_of(changed, params), logits) > 1e-4, field
    for field, value in CHANGED_SCALING.items():
        scaling = dataclasses.replace(CONFIG.rope_scaling, **{field: value})
        changed = dataclasses.replace(shallow, rope_scaling=scaling)
        assert relative(logits_of(changed, params), logits) > 1e-4, f"rope_scaling.{field}"
    yarn = RopeScaling("yarn", 8.0, original_max_positions=1024)
    logits = logits_of(dataclasses.replace(shallow, rope_scaling=yarn), params)
    for field, value in CHANGED_YARN.items():
        changed = dataclasses.replace(yarn, **{field: value})
        changed = dataclasses.replace(shallow, rope_scaling=changed)
        assert relative(logits_of(changed, params), logits) > 1e-4, f"rope_scaling.{field}"
    wide = dataclasses.replace(shallow, init_std=3.0)
    initial = jax.jit(Llama(wide).init)(jax.random.key(0), TOKENS, ONES, POSITIONS)["params"]
    assert np.std(nn.unbox(initial)["head"]) == pytest.approx(3.0, rel=0.1)
    # These act in generation: see test_generation.py and test_spiritlm.py.
    elsewhere = {"max_positions", "trained_positions"}
    tested = {*CHANGED_SHAPE, *CHANGED_OUTPUT, "init_std", *elsewhere}
    assert tested == {field.name for field in dataclasses.fields(LlamaConfig)}
    assert {*CHANGED_SCALING, *CHANGED_YARN} == {
        field.name for field in dataclasses.fields(RopeScaling)
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"num_heads": 4, "num_kv_heads": 3},
        {"unrotated_layers": (0,)},  # of a Llama
        {"family": "smollm3", "unrotated_layers": (1, 0)},
        {"family": "smollm3", "unrotated_layers": (32,)},
        {"rope_scaling": {"kind": "dynamic"}},
        {"family": "gemma"},
    ],
)
def test_impossible_configs_are_refused(fields, tmp_path):
    from spirit_jax import config

    with pytest.raises(InputError):
        config.from_dict(LlamaConfig, fields)


def test_a_half_copied_folder_is_refused(folder, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    data = copy / "model.safetensors"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(InputError, match="model.safetensors: is not a whole safetensors file"):
        llama_weights.load(copy)
    data.unlink()
    with pytest.raises(InputError, match="copy: is not a whole network folder"):
        llama_weights.load(copy)


def test_a_config_of_other_sizes_is_refused(folder, tmp_path):
    import shutil

    from spirit_jax import config

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config.write(dataclasses.replace(CONFIG, intermediate_size=32), copy / "config.json")
    with pytest.raises(InputError, match="up/kernel|gate/kernel|down/kernel"):
        llama_weights.load(copy)


def test_a_mesh_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="needs 6 devices, but there are 8"):
        sharding.make_mesh(1, 3, 2)
    with pytest.raises(InputError, match="'model'"):
        sharding.as_auto(jax.make_mesh((8,), ("model",)))
