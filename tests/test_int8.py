"""Int8 weights and an int8 cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow

from corpora import grammar
from spirit_jax import checkpoint
from spirit_jax.errors import InputError
from spirit_jax.generation.config import GenerationConfig
from spirit_jax.generation.engine import Engine
from spirit_jax.generation.masks import Masks
from spirit_jax.generation.request import Request
from spirit_jax.generation.runner import Runner
from spirit_jax.models import attention, linear, llama, llama_weights
from spirit_jax.models.llama import Llama
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.quantize import quantize_model
from spirit_jax.random_model import random_params
from spirit_jax.spiritlm import SpiritLM
from spirit_jax.training.lm.config import LmRunConfig
from spirit_jax.training.lm.recipe import make_model

CONFIG = LlamaConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    attention_bias=True,
)
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 96, size).tolist() for size in (5, 40, 23)]
TOKENS = GenerationConfig(max_new_tokens=12)


@pytest.fixture(scope="module")
def params():
    drawn = random_params(llama_weights.abstract_params(Llama(CONFIG)), np.random.default_rng(0))
    return jax.tree.map(jnp.asarray, drawn)


def copied(params):
    return jax.tree.map(lambda leaf: leaf, params)


@pytest.mark.compat
@pytest.mark.parametrize("inputs", [1, 2])
def test_a_kernel_is_restored_within_half_a_step_of_each_output_channel(inputs):
    kernel = RNG.standard_normal((6, 10, 4)).astype(np.float32) * [1e-3, 1, 100, 0]
    rounded = linear.quantize(jnp.asarray(kernel), inputs)
    assert rounded["kernel"].dtype == jnp.int8
    assert rounded["scale"].shape == kernel.shape[inputs:]
    error = np.abs(np.asarray(rounded["kernel"]) * np.asarray(rounded["scale"]) - kernel)
    largest = np.abs(kernel).max(axis=tuple(range(inputs)))
    assert np.all(error <= 0.5001 * largest / 127)


@pytest.mark.compat
def test_only_the_matrices_of_layers_and_the_head_are_int8(params):
    cfg, rounded = llama_weights.quantize_weights(CONFIG, copied(params))
    shapes = llama_weights.abstract_params(Llama(cfg))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), rounded) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    flat = checkpoint.flatten(rounded)
    int8 = {path.split("/", 2)[-1] for path, leaf in flat.items() if leaf.dtype == jnp.int8}
    assert int8 == {f"{name}/kernel" for name in llama_weights.MATRICES} | {"head"}


def test_logits_are_those_of_the_restored_weights(params):
    """The network with int8 weights computes what the float network does with restored weights."""
    cfg, rounded = llama_weights.quantize_weights(CONFIG, copied(params))
    restored = copied(params)
    for i, layer in rounded["layers"].items():
        for name in llama_weights.MATRICES:
            product = layer[name]["kernel"].astype(jnp.float32) * layer[name]["scale"]
            restored["layers"][i][name]["kernel"] = product
    restored["head"] = rounded["head"].astype(jnp.float32) * rounded["head_scale"]
    tokens = np.array([PROMPTS[1]])
    inputs = tokens, np.ones_like(tokens), np.arange(tokens.size)[None]
    ours = jax.jit(Llama(cfg).apply)({"params": rounded}, *inputs)[0]
    wanted = jax.jit(Llama(CONFIG).apply)({"params": restored}, *inputs)[0]
    assert float(jnp.abs(ours - wanted).max()) < 1e-5 * float(jnp.abs(wanted).max())


@pytest.mark.parametrize("channels", [100, 5000])
def test_the_kernel_for_gpus_multiplies_a_row(channels):
    x_c = jnp.asarray(RNG.standard_normal(channels), jnp.bfloat16)
    kernel_oc = jnp.asarray(RNG.integers(-127, 128, (6, channels)), jnp.int8)
    wanted_o = np.asarray(kernel_oc, np.float64) @ np.asarray(x_c, np.float64)
    ours_o = linear.row_product(x_c, kernel_oc, interpret=True)
    assert np.abs(ours_o - wanted_o).max() < 1e-5 * np.abs(wanted_o).max()


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.float32])
@pytest.mark.parametrize("shape", [(1, 30, 7), (5, 4096, 40), (3, 97, 5000)])
def test_the_product_for_cpus_is_that_of_all_channels_at_once(shape, dtype):
    rows, channels, outputs = shape
    x_rc = jnp.asarray(RNG.standard_normal((rows, channels)), jnp.float32)
    kernel_oc = jnp.asarray(RNG.integers(-127, 128, (outputs, channels)), dtype)
    wanted_ro = np.asarray(x_rc, np.float64) @ np.asarray(kernel_oc, np.float64).T
    ours_ro = jax.jit(linear.product_of_outputs)(x_rc, kernel_oc)
    assert np.abs(ours_ro - wanted_ro).max() < 1e-5 * np.abs(wanted_ro).max()


def test_the_product_of_one_int8_row_for_cpus_is_that_of_all_channels_at_once():
    rng = np.random.default_rng(1)
    x_1c = jnp.asarray(rng.standard_normal((1, 2080)), jnp.float32)
    kernel_oc = jnp.asarray(rng.integers(-127, 128, (40, 2080)), jnp.int8)
    wanted_1o = np.asarray(x_1c, np.float64) @ np.asarray(kernel_oc, np.float64).T
    ours_1o = jax.jit(linear.product_of_outputs)(x_1c, kernel_oc)
    assert np.abs(ours_1o - wanted_1o).max() < 1e-5 * np.abs(wanted_1o).max()


@pytest.mark.parametrize(
    ("platform", "orders"),
    [
        ("gpu", {"q": (1, 2, 0), "o": (2, 0, 1), "gate": (1, 0)}),
        ("tpu", {"q": (1, 0, 2), "o": (0, 1, 2), "gate": (0, 1)}),
    ],
)
def test_a_layout_for_decoding_changes_no_value(params, platform, orders):
    cfg, rounded = llama_weights.quantize_weights(CONFIG, copied(params))
    model = Llama(cfg)
    same_model, laid_out = llama_weights.lay_out_for_decoding(model, copied(rounded), platform)
    assert same_model == model
    layer = laid_out["layers"]["1"]
    kept = {name: layer[name]["kernel"].format.layout.major_to_minor for name in orders}
    assert kept == orders
    assert jax.tree.all(jax.tree.map(np.array_equal, laid_out, rounded))


@pytest.mark.parametrize("length", [3, 200])
def test_attention_over_an_int8_cache_is_near_that_over_floats(length):
    """The error does not grow with the length, since each token has its own scale."""
    draw = lambda *shape: jnp.asarray(RNG.standard_normal(shape), jnp.float32)  # noqa: E731
    q_bthk, k_btgk, v_btgk = draw(2, 1, 4, 16), draw(2, length, 2, 16), draw(2, length, 2, 16)
    k_btgk *= jnp.exp(draw(1, length, 1, 1))
    new = attention.NewTokens(jnp.full((2, 1), length - 1), jnp.zeros(2, jnp.int32))
    zeros = jnp.zeros((2, 2, 256, 16))
    empty = {
        jnp.float32: attention.LayerCache(zeros, zeros),
        jnp.int8: attention.LayerCache(
            zeros.astype(jnp.int8), zeros.astype(jnp.int8), zeros[..., 0], zeros[..., 0]
        ),
    }
    results = []
    for cache in empty.values():
        cache = attention.write_cache(cache, k_btgk, v_btgk, new)
        results.append(attention.attend_cache(q_bthk, cache, new))
    assert float(jnp.abs(results[1] - results[0]).max()) < 0.05


@pytest.mark.parametrize("int8_weights", [slow(False), True])
def test_batches_and_shared_prefixes_change_nothing_with_an_int8_cache(params, int8_weights):
    cfg, used = CONFIG, params
    if int8_weights:
        cfg, used = llama_weights.quantize_weights(CONFIG, copied(params))
    model = Llama(cfg, int8_cache=True)
    runner = Runner(model, used, Masks(jnp.ones((1, 96), bool)), np.array([], np.int32))

    def generate(engine, prompts):
        return engine.generate([Request(prompt, 0, TOKENS) for prompt in prompts])

    def new_engine():
        return Engine(runner, 4, 128)  # always these shapes, so that few programs are compiled

    alone = [generate(new_engine(), [prompt])[0].ids for prompt in PROMPTS]
    assert [generation.ids for generation in generate(new_engine(), PROMPTS)] == alone
    engine = new_engine()
    generate(engine, [PROMPTS[1][:30] + PROMPTS[0]])
    (again,) = generate(engine, [PROMPTS[1]])
    assert again.reused >= 30
    assert again.ids == alone[1]


@pytest.fixture(scope="module")
def quantized(base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8") / "model"
    quantize_model(base_folder, folder)
    return folder


def test_a_quantized_folder_is_what_quantization_at_loading_gives(base_folder, quantized):
    prompts = ["[Text]the quick brown"]
    at_loading = SpiritLM.from_pretrained(base_folder, quantization="int8_weights")
    wanted = at_loading.generate_ids(prompts, "text", max_new_tokens=8)
    stored = SpiritLM.from_pretrained(quantized)
    assert stored.generate_ids(prompts, "text", max_new_tokens=8) == wanted
    np.testing.assert_array_equal(stored.logits(prompts[0]), at_loading.logits(prompts[0]))


def test_int8_weights_are_for_generation_only(quantized, tmp_path):
    with pytest.raises(InputError, match="has int8 weights, which are for generation only"):
        make_model(LmRunConfig(run_dir=str(tmp_path), model=str(quantized)))
    with pytest.raises(InputError, match="has int8 weights"):
        quantize_model(quantized, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_an_unknown_quantization_is_refused(base_folder):
    with pytest.raises(InputError, match="quantization is 'int4'; expected one of"):
        SpiritLM.from_pretrained(base_folder, quantization="int4")


@pytest.mark.slow
def test_perplexity_stays_within_one_percent():
    """Of the packaged Base on held-out sentences, with int8 weights, and with an int8 cache."""
    lm = SpiritLM.from_pretrained("spirit-tiny-base")
    strings = ["[Text]" + sentence.text for sentence in grammar.sentences("test", 200)]
    rows = [lm._prompts.encode(string) for string in strings]
    t = max(map(len, rows))
    tokens_bt, segments_bt = np.zeros((2, len(rows), t), np.int32)
    for i, row in enumerate(rows):
        tokens_bt[i, : len(row)], segments_bt[i, : len(row)] = row, 1
    positions_bt = np.broadcast_to(np.arange(t), tokens_bt.shape)
    weights_bt = segments_bt[:, 1:]

    def perplexity(quantization):
        lm = SpiritLM.from_pretrained("spirit-tiny-base", quantization=quantization)
        model, params = lm._model, lm._params

        @jax.jit
        def cross_entropy(params):
            cache = llama.init_cache(model, len(rows), t)
            logits_btv, _ = model.apply(
                {"params": params}, tokens_bt, segments_bt, positions_bt, cache
            )
            logs_btv = jax.nn.log_softmax(logits_btv[:, :-1])
            logs_bt = jnp.take_along_axis(logs_btv, tokens_bt[:, 1:, None], axis=-1)[..., 0]
            return -jnp.sum(logs_bt * weights_bt) / weights_bt.sum()

        return float(jnp.exp(cross_entropy(params)))

    wanted = perplexity(None)
    assert wanted < 50
    assert perplexity("int8_cache") == pytest.approx(wanted, rel=0.01)
    assert perplexity("int8_weights") == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize(
    ("tied", "int8"), [(True, True), slow(True, False), slow(False, True), slow(False, False)]
)
def test_output_channels_first_change_logits_by_rounding_only(params, tied, int8):
    """The form of the matrices on a CPU, for a batch and for a single token."""
    cfg, used = dataclasses.replace(CONFIG, tie_embeddings=tied), copied(params)
    if tied:
        del used["head"]
    if int8:
        cfg, used = llama_weights.quantize_weights(cfg, used)
    model, laid_out = llama_weights.lay_out_for_decoding(Llama(cfg), copied(used), "cpu")
    assert model.outputs_first
    shapes = jax.tree.map(jnp.shape, laid_out)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, llama_weights.abstract_params(model))
    for tokens in (np.array([PROMPTS[1][:23], PROMPTS[2]]), np.array([[5]])):
        inputs = tokens, np.ones_like(tokens), np.indices(tokens.shape)[1]
        ours = jax.jit(model.apply)({"params": laid_out}, *inputs)[0]
        wanted = jax.jit(Llama(cfg).apply)({"params": used}, *inputs)[0]
        assert float(jnp.abs(ours - wanted).max()) < 1e-5 * float(jnp.abs(wanted).max())
