"""Batched generation: exact whatever the batch-mates, and the sampling rules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import linen as nn
from marks import slow

from spirit_jax import sharding
from spirit_jax.errors import InputError
from spirit_jax.generation.config import GenerationConfig
from spirit_jax.generation.engine import continue_prompts
from spirit_jax.generation.sampling import (
    Sampling,
    keep_top_k,
    keep_top_p,
    next_tokens,
    penalise_repetition,
)
from spirit_jax.models.llama import Llama
from spirit_jax.models.llama_config import LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=96,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    max_positions=64,
    init_std=0.5,
)
MODEL = Llama(CONFIG)
EOS = (2,)
ALLOWED = np.arange(96) < 90
GREEDY = GenerationConfig(max_new_tokens=12)


@pytest.fixture(scope="module")
def params():
    ones = jnp.ones((1, 4), jnp.int32)
    return nn.unbox(jax.jit(MODEL.init)(jax.random.key(1), ones, ones, ones)["params"])


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(3, 90, n).tolist() for n in (5, 16, 9, 2, 11)]


def run(params, prompts, config=GREEDY, allowed=ALLOWED, eos=EOS, **kwargs):
    results = continue_prompts(MODEL, params, prompts, allowed, eos, config, **kwargs)
    return [result.ids for result in results]


def plain_greedy(params, prompt, allowed, eos, steps):
    """A full forward for every token: what the engine must give."""
    tokens = list(prompt)
    for _ in range(steps):
        padded = jnp.asarray([tokens + [0] * (32 - len(tokens))])
        segments = (jnp.arange(32) < len(tokens)).astype(jnp.int32)[None]
        logits, _ = APPLY({"params": params}, padded, segments, jnp.arange(32)[None])
        tokens.append(int(np.where(allowed, logits[0, len(tokens) - 1], -np.inf).argmax()))
        if tokens[-1] in eos:
            break
    return tokens[len(prompt) :]


APPLY = jax.jit(MODEL.apply)


def test_greedy_equals_a_full_forward_for_every_token(params, prompts):
    expected = [plain_greedy(params, prompt, ALLOWED, EOS, 12) for prompt in prompts]
    assert run(params, prompts) == expected


def test_batch_mates_do_not_matter(params, prompts):
    together = run(params, prompts)
    assert together == [run(params, [prompt])[0] for prompt in prompts]


@pytest.mark.parametrize("shape", [(1, 4, 2), slow((1, 8, 1)), slow((1, 2, 4))])
def test_sharded_generation_is_the_same(params, prompts, shape):
    mesh = sharding.make_mesh(*shape)
    tokens = jnp.ones((1, 1), jnp.int32)
    boxed = jax.eval_shape(MODEL.init, jax.random.key(0), tokens, tokens, tokens)["params"]
    placed = jax.device_put(params, sharding.param_shardings(boxed, mesh))
    assert run(placed, prompts, mesh=mesh) == run(params, prompts)


def test_a_row_that_ends_does_no_harm(params, prompts):
    """Its EOS is its last id, and the other rows continue as before."""
    free = run(params, prompts)
    ending = free[0][3]
    expected = [ids[: ids.index(ending) + 1] if ending in ids else ids for ids in free]
    ended = run(params, prompts, eos=(ending,))
    assert ended == expected
    assert len(ended[0]) < 12


def test_forbidden_tokens_are_never_generated(params, prompts):
    allowed = (np.arange(96) >= 40) & (np.arange(96) < 60)
    sampling = GenerationConfig(max_new_tokens=16, do_sample=True, temperature=50.0)
    for config in (GREEDY, sampling):
        generated = np.concatenate(run(params, prompts, config, allowed))
        assert generated.min() >= 40 and generated.max() < 60


def test_seeds_decide_the_draws(params, prompts):
    config = GenerationConfig(max_new_tokens=12, do_sample=True, temperature=2.0, top_p=0.9)
    first = run(params, prompts, config)
    assert run(params, prompts, config) == first
    assert run(params, prompts, dataclasses.replace(config, seed=1)) != first
    assert run(params, prompts[:2], config) == first[:2], "a row's draws depend on other rows"
    assert len({tuple(ids) for ids in run(params, [prompts[0]] * 4, config)}) > 1


def test_top_k_of_one_and_tiny_top_p_are_greedy(params, prompts):
    for limits in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        config = GenerationConfig(max_new_tokens=12, do_sample=True, **limits)
        assert run(params, prompts, config) == run(params, prompts), limits


def test_a_repetition_penalty_stops_repeating(params):
    greedy = run(params, [[5, 5, 5]], GenerationConfig(max_new_tokens=40))[0]
    config = GenerationConfig(max_new_tokens=40, repetition_penalty=1e6)
    varied = run(params, [[5, 5, 5]], config)[0]
    assert len(set(varied)) == len(varied) and 5 not in varied
    assert len(set(greedy)) < len(greedy)


@pytest.mark.compat
def test_top_k_and_top_p_keep_what_sorting_keeps():
    logits = np.random.default_rng(0).normal(size=(7, 300)).astype(np.float32) * 3
    probs = np.exp(logits.astype(np.float64))
    probs /= probs.sum(axis=1, keepdims=True)
    order = np.argsort(-probs, axis=1)
    ranked = np.take_along_axis(probs, order, axis=1)
    before = np.cumsum(ranked, axis=1) - ranked
    for p in (0.1, 0.5, 0.95, 0.999):
        kept = np.isfinite(np.asarray(jax.jit(keep_top_p)(logits, p)))
        sure = np.abs(before - p) > 1e-6  # the rest is within rounding of the sum
        kept_in_order = np.take_along_axis(kept, order, axis=1)
        assert np.array_equal(kept_in_order[sure], (before < p)[sure])
    for k in (1, 10, 300):
        kept = np.isfinite(np.asarray(jax.jit(keep_top_k)(logits, k)))
        expected = np.zeros_like(kept)
        np.put_along_axis(expected, order, np.arange(300)[None] < k, axis=1)
        assert np.array_equal(kept, expected)


SAMPLERS = {
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "penalty": {"repetition_penalty": 1.5},
    "all": {"temperature": 1.5, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
    "top_p of many": {"temperature": 2.0, "top_p": 0.95, "repetition_penalty": 1.2},
}


def exact_distribution(logits_v, seen_v, config):
    """The distribution that a config samples from, in float64, by sorting."""
    logits_v = np.where(seen_v & (logits_v > 0), logits_v / config.repetition_penalty, logits_v)
    logits_v = np.where(seen_v & (logits_v < 0), logits_v * config.repetition_penalty, logits_v)
    order = np.argsort(-logits_v, kind="stable")
    probs = np.exp((logits_v / config.temperature - logits_v.max() / config.temperature)[order])
    probs[config.top_k or len(probs) :] = 0
    probs /= probs.sum()
    probs[np.cumsum(probs) - probs >= config.top_p] = 0
    probs[probs < config.min_p * probs[0]] = 0
    exact_v = np.zeros(len(probs))
    exact_v[order] = probs / probs.sum()
    return exact_v


@pytest.mark.parametrize(
    "name", [name if name in ("all", "top_p of many") else slow(name) for name in SAMPLERS]
)
def test_draws_follow_the_exact_truncated_distribution(name):
    """A chi-square test of 20,000 draws, with a thin tail of 300 tokens."""
    rng, draws = np.random.default_rng(3), 20_000
    config = GenerationConfig(do_sample=True, **SAMPLERS[name])
    logits_v = rng.normal(size=300).astype(np.float32) * 2
    seen_v = rng.random(300) < 0.3
    settings = (config.temperature, config.top_k, config.top_p, config.min_p)
    columns = [np.full(draws, x) for x in (*settings, config.repetition_penalty)]
    sampling = Sampling(
        *(x.astype(np.int32 if i == 1 else np.float32) for i, x in enumerate(columns))
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(draws))
    logits_bv, seen_bv = (jnp.broadcast_to(x, (draws, 300)) for x in (logits_v, seen_v))
    tokens = np.asarray(jax.jit(next_tokens)(logits_bv, logits_bv > -99, seen_bv, keys, sampling))
    expected_v = exact_distribution(logits_v.astype(np.float64), seen_v, config) * draws
    observed_v = np.bincount(tokens, minlength=300)
    assert not observed_v[expected_v == 0].any()
    is_rare = (expected_v > 0) & (expected_v < 5)  # counted together
    groups = [(observed_v[is_rare].sum(), expected_v[is_rare].sum())] if is_rare.any() else []
    groups += list(zip(observed_v[expected_v >= 5], expected_v[expected_v >= 5], strict=True))
    observed, expected = np.array(groups).T
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3


def test_rows_of_a_batch_have_their_own_settings():
    rng = np.random.default_rng(0)
    logits_bv = jnp.asarray(rng.normal(size=(6, 50)), jnp.float32)
    seen_bv = jnp.asarray(rng.random((6, 50)) < 0.5)
    keys = jax.random.split(jax.random.key(0), 6)
    sampling = Sampling(
        temperature_b=np.array([0, 1, 2, 0.5, 0, 1], np.float32),
        top_k_b=np.array([0, 5, 0, 0, 0, 9], np.int32),
        top_p_b=np.array([1, 1, 0.7, 1, 1, 0.9], np.float32),
        min_p_b=np.array([0, 0, 0, 0.2, 0, 0.01], np.float32),
        penalty_b=np.array([1, 1, 1, 1, 2, 1.5], np.float32),
    )
    allowed_bv = jnp.ones((6, 50), bool)
    together = next_tokens(logits_bv, allowed_bv, seen_bv, keys, sampling)
    for i in range(6):
        arguments = jax.tree.map(
            lambda x, i=i: x[i : i + 1], (logits_bv, allowed_bv, seen_bv, keys, sampling)
        )
        assert next_tokens(*arguments)[0] == together[i]


def test_the_penalty_follows_its_formula():
    logits = jnp.asarray([[2.0, -2.0, 3.0]])
    seen = jnp.asarray([[True, True, False]])
    assert penalise_repetition(logits, seen, 2.0).tolist() == [[1.0, -4.0, 3.0]]


def test_a_long_batch_mate_does_not_cut_a_row_short(params, prompts):
    config = GenerationConfig(max_new_tokens=20)
    together = run(params, [[7] * 60, prompts[0]], config, eos=(95,))
    assert [len(row) for row in together] == [4, 20]
    assert together[1] == run(params, [prompts[0]], config, eos=(95,))[0]


def test_generation_stops_at_the_last_position(params):
    assert len(run(params, [[7] * 60], GenerationConfig(max_new_tokens=50), eos=(95,))[0]) == 4
    with pytest.raises(InputError, match="no room"):
        run(params, [[7] * 64])


@pytest.mark.parametrize(
    ("prompts", "message"), [([[]], "no tokens"), ([[3], [96]], "Prompt 1 has the token 96")]
)
def test_bad_prompts_are_named(params, prompts, message):
    with pytest.raises(InputError, match=message):
        run(params, prompts)


NAN = float("nan")


@pytest.mark.parametrize(
    "field",
    [
        *({"max_new_tokens": value} for value in (0, -3, 1.5, 2.0, True, "9", None, 10**30, NAN)),
        *({"temperature": value} for value in (0.0, -1, NAN, np.inf, 1e-30, "1", None, True)),
        *({"top_p": value} for value in (0.0, 1.5, -0.1, NAN, "1", True)),
        *({"min_p": value} for value in (-0.1, 1.5, NAN, "1", True)),
        *({"top_k": value} for value in (-1, 0.5, 2**31, True, "3")),
        *({"repetition_penalty": value} for value in (0.0, -1.0, NAN, 1e30, "2")),
        *({"seed": value} for value in (-1, 2**32, 2**70, 0.5, True, "0", None)),
        *({"do_sample": value} for value in (1, "yes", None)),
    ],
    ids=str,
)
def test_settings_of_another_type_or_outside_their_range_are_named(field):
    with pytest.raises(InputError, match=next(iter(field))):
        GenerationConfig(**{"do_sample": True} | field)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"temperature": 0.5}, "temperature"),
        ({"top_p": 0.9, "top_k": 3}, "top_p and top_k"),
        ({"temperature": 0.5, "do_sample": False}, "temperature"),
    ],
)
def test_sampling_options_without_sampling_are_named(options, names):
    with pytest.raises(InputError, match=f"^{names} would change nothing.*do_sample=True"):
        GenerationConfig(**options)


def test_numbers_of_numpy_are_numbers():
    config = GenerationConfig(np.int64(3), np.bool_(True), np.float32(0.5), seed=np.uint32(7))
    assert config == GenerationConfig(3, True, 0.5, seed=7)
    assert GenerationConfig(temperature=1.0, top_k=0, seed=4).seed == 4  # nothing is ignored
