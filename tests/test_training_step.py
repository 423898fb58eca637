"""A training step: accumulation, chunks, remat, scan, packing and meshes change nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from marks import slow

from spirit_jax import sharding
from spirit_jax.errors import InputError
from spirit_jax.models import llama, llama_weights
from spirit_jax.models.llama import Llama
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.random_model import random_params
from spirit_jax.training.configs import StepConfig
from spirit_jax.training.lm.loss import Objective, Targets, chunked_losses, next_tokens
from spirit_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from spirit_jax.training.step import Gradients, TrainState, train_step
from spirit_jax.vocab import Vocab

VOCAB = Vocab.make("base", 40)  # 543 tokens in 640 rows
CONFIG = LlamaConfig(
    vocab_size=VOCAB.padded_size,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    max_positions=64,
)
MODEL = Llama(CONFIG)
PLAIN = StepConfig(loss_chunk=0)


@pytest.fixture(scope="module")
def params():
    return random_params(llama_weights.abstract_params(MODEL), np.random.default_rng(0))


def stack(params):
    """The same parameters in the form of a scan."""
    layers = [params["layers"][str(i)] for i in range(CONFIG.num_layers)]
    return params | {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}


@pytest.fixture(scope="module")
def batch():
    """Four rows of 24 with two or three segments each, and padding."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(3, VOCAB.size, (4, 24)).astype(np.int32)
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    for row, lengths in enumerate(((10, 9), (24,), (5, 6, 7), (12, 12))):
        start = 0
        for segment, length in enumerate(lengths, 1):
            segments[row, start : start + length] = segment
            positions[row, start : start + length] = np.arange(length)
            start += length
    weights = ((segments > 0) & (positions > 0)).astype(np.float32)
    tokens[segments == 0] = 0
    return {
        "tokens": tokens,
        "segments": segments,
        "positions": positions,
        "weights": weights,
        "sources": (segments + 1) % 2,
    }


@functools.partial(jax.jit, static_argnums=(0, 3))
def loss_and_gradient(model, params, batch, config):
    objective = Objective(model, VOCAB, config, ("odd", "even"))
    grads, sums = objective.gradients(params, batch)
    return sums, grads


def assert_close(result, expected, tolerance=1e-5):
    def check(a, b):
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-8)

    jax.tree.map(check, *map(jax.device_get, (result, expected)))  # NumPy has nothing to compile


@pytest.fixture(scope="module")
def plain(params, batch):
    return loss_and_gradient(MODEL, params, batch, PLAIN)


@pytest.mark.compat
def test_the_loss_is_the_cross_entropy_of_each_token_from_those_before(params, batch, plain):
    apply = jax.jit(MODEL.apply)
    total = count = 0
    for row in range(4):
        for segment in range(1, batch["segments"][row].max() + 1):
            selected = batch["segments"][row] == segment
            tokens = np.zeros(24, np.int32)
            n = selected.sum()
            tokens[:n] = batch["tokens"][row][selected]
            here = (np.arange(24) < n).astype(np.int32)
            logits, _ = apply({"params": params}, tokens[None], here[None], np.arange(24)[None])
            logs = scipy.special.log_softmax(np.asarray(logits)[0, :, : VOCAB.size], axis=-1)
            total -= logs[np.arange(n - 1), tokens[1:n]].sum()
            count += n - 1
    sums, _ = plain
    assert float(sums.count) == count
    np.testing.assert_allclose(float(sums.loss), total, rtol=1e-6)
    parts = sums.parts.sum((0, 1))
    np.testing.assert_allclose(float(parts[0]), total, rtol=1e-6)
    assert float(parts[2]) == count


@pytest.mark.parametrize(
    ("model", "config"),
    [
        pytest.param(MODEL, StepConfig(loss_chunk=7), marks=pytest.mark.slow),
        pytest.param(MODEL, StepConfig(loss_chunk=1000), marks=pytest.mark.slow),
        pytest.param(MODEL, StepConfig(loss_chunk=0, accumulate=2), marks=pytest.mark.slow),
        (MODEL, StepConfig(loss_chunk=7, accumulate=4)),
        (Llama(CONFIG, remat="block"), PLAIN),
    ],
)
def test_ways_of_computing_change_nothing(params, batch, plain, model, config):
    sums, grads = loss_and_gradient(model, params, batch, config)
    expected_sums, expected_grads = plain
    np.testing.assert_allclose(sums.loss, expected_sums.loss, rtol=1e-6)
    assert_close(grads, expected_grads)


@pytest.mark.parametrize(
    "remat",
    [name if name == "offload" else slow(name) for name in llama.REMAT_SAVES],
)
def test_a_scan_changes_nothing(params, batch, plain, remat):
    model = Llama(CONFIG, scan_layers=True, remat=remat)
    sums, grads = loss_and_gradient(model, stack(params), batch, StepConfig(loss_chunk=7))
    np.testing.assert_allclose(sums.loss, plain[0].loss, rtol=1e-6)
    assert_close(grads, stack(plain[1]))


@pytest.mark.compat
@pytest.mark.parametrize("shape", [(2, 2, 2), slow((8, 1, 1)), slow((1, 4, 2))])
def test_a_mesh_changes_nothing(params, batch, plain, shape):
    mesh = sharding.make_mesh(*shape)
    boxed = llama_weights.abstract_params(MODEL, boxed=True)
    placed = jax.device_put(params, sharding.param_shardings(boxed, mesh))
    twice = {name: np.concatenate([a, a]) for name, a in batch.items()}  # eight rows
    with jax.set_mesh(mesh):
        rows = {name: sharding.place_batch(array, mesh) for name, array in twice.items()}
        sums, grads = loss_and_gradient(MODEL, placed, rows, StepConfig(loss_chunk=16))
    np.testing.assert_allclose(sums.loss, 2 * plain[0].loss, rtol=1e-6)
    assert_close(grads, plain[1])


@pytest.mark.parametrize("devices", [1, 8])
def test_the_gradient_of_the_head_is_exact_over_many_chunks_in_bfloat16(devices):
    """The relative error against float32 is below 0.3 %; with sums in bfloat16 it was 4 %."""
    rng = np.random.default_rng(0)
    tokens = 8 * 256 * 4
    x_nd = jnp.asarray(rng.normal(size=(tokens, 16)), jnp.bfloat16)
    head_dv = jnp.asarray(rng.normal(size=(16, VOCAB.padded_size)) / 4, jnp.bfloat16)
    targets = Targets(
        jnp.asarray(rng.integers(0, VOCAB.size, tokens), jnp.int32),
        jnp.ones(tokens),
        jnp.zeros(tokens, jnp.int32),
    )

    def gradient(dtype):
        def loss(master_dv):
            def sums_of(x_nd, targets, heads):
                return chunked_losses(x_nd, *heads, targets, VOCAB, 1, 0.0, tokens // 256)

            heads = jax.lax.stop_gradient(master_dv.astype(dtype)), master_dv
            rows = (x_nd.astype(dtype), targets)
            return sharding.sum_over_rows(sums_of, rows, heads).loss

        return jax.jit(jax.grad(loss))(head_dv.astype(jnp.float32))

    exact = gradient(jnp.float32)
    if devices == 1:
        result = gradient(jnp.bfloat16)
    else:
        with jax.set_mesh(sharding.make_mesh(fsdp=devices)):
            result = gradient(jnp.bfloat16)
    assert result.dtype == jnp.float32
    error = jnp.linalg.norm(result - exact) / jnp.linalg.norm(exact)
    assert error < 0.003


def test_a_tied_head_learns(params, batch):
    """As a head, the embedding also has gradients of tokens that are not in the batch."""
    model = Llama(dataclasses.replace(CONFIG, num_layers=1, tie_embeddings=True))
    tied = {"layers": {"0": params["layers"]["0"]}}
    tied |= {name: params[name] for name in ("embed", "final_norm")}
    _, grads = loss_and_gradient(model, tied, batch, StepConfig(loss_chunk=16))
    absent = np.setdiff1d(np.arange(VOCAB.size), batch["tokens"])
    assert np.all(np.abs(grads["embed"]["embedding"])[absent].max(axis=1) > 0)


def test_the_first_token_of_a_document_is_not_predicted(batch):
    targets = next_tokens({n: jnp.asarray(a) for n, a in batch.items()})
    assert targets.weights[0].tolist() == [1] * 9 + [0] + [1] * 8 + [0] * 6
    np.testing.assert_array_equal(targets.tokens[0, :9], batch["tokens"][0, 1:10])
    np.testing.assert_array_equal(targets.sources[0, :18], [0] * 9 + [1] * 9)


def test_losses_by_source_and_by_modality_make_up_the_whole(plain, batch):
    sums, _ = plain
    assert sums.parts[:, :, 2].sum(1).tolist() == [9 + 23 + 4 + 6 + 11, 8 + 5 + 11]
    metrics = Objective(MODEL, VOCAB, PLAIN, ("odd", "even")).metrics(sums)
    odd, even = (
        float(metrics[f"share_{name}"] * metrics[f"loss_{name}"]) for name in ("odd", "even")
    )
    np.testing.assert_allclose(odd + even, float(metrics["loss"]), rtol=1e-6)


def test_z_loss_is_added(params, batch, plain):
    objective = Objective(MODEL, VOCAB, StepConfig(loss_chunk=7, z_loss=0.1), ("odd", "even"))
    sums = jax.jit(objective.losses)(params, batch)
    assert float(sums.loss) > float(plain[0].loss) + 1
    np.testing.assert_allclose(sums.parts, plain[0].parts, rtol=1e-6)


@pytest.mark.slow  # test_training_run.py holds that the loss falls
def test_a_model_overfits_one_batch(params, batch):
    settings = OptimizerConfig(learning_rate=1e-2, clip_norm=1.0)
    schedule = make_schedule(settings, 50)
    optimizer = make_optimizer(settings, schedule)
    gradients = Objective(MODEL, VOCAB, StepConfig(loss_chunk=32)).step_gradients
    step = jax.jit(functools.partial(train_step, gradients, optimizer, schedule))
    state = jax.jit(lambda params: TrainState.create(params, optimizer))(params)
    losses = []
    for _ in range(50):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.3 * losses[0]
    assert int(state.step) == 50 and int(metrics["skipped"]) == 0
    assert 0 <= float(metrics["accuracy_speech"]) <= 1


@pytest.mark.parametrize("gradient", [2.0, np.nan, np.inf])
def test_a_step_with_a_too_large_or_non_finite_gradient_is_skipped(gradient):
    settings = OptimizerConfig(learning_rate=1e-2)
    schedule = make_schedule(settings, 50)
    optimizer = make_optimizer(settings, schedule)
    state = TrainState.create({"kernel": np.ones(3, np.float32)}, optimizer, extra=np.zeros(3))

    def gradients(state, batch):
        return Gradients({"kernel": batch}, {"loss": batch.sum()}, state.extra + 1)

    step = jax.jit(functools.partial(train_step, gradients, optimizer, schedule, skip_norm=1.5))
    accepted, metrics = step(state, np.array([1, 0, 0], np.float32))
    assert int(metrics["skipped"]) == 0 and np.all(np.asarray(accepted.extra) == 1)
    assert not np.array_equal(accepted.params["kernel"], state.params["kernel"])
    skipped, metrics = step(accepted, np.array([gradient, 0, 0], np.float32))
    assert int(metrics["skipped"]) == 1 and int(skipped.step) == 2
    for part in ("params", "opt_state", "extra"):
        unchanged = getattr(skipped, part), getattr(accepted, part)
        jax.tree.map(np.testing.assert_array_equal, *unchanged)


@pytest.mark.compat
def test_schedules():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, final_share=0.1)
    for name, middle, end in (("constant", 1, 1), ("linear", 0.55, 0.1), ("cosine", 0.55, 0.1)):
        rate = make_schedule(dataclasses.replace(config, schedule=name), 110)
        rates = [float(rate(step)) for step in (0, 5, 10, 60, 110)]
        np.testing.assert_allclose(rates, [0, 0.5, 1, middle, end], atol=1e-6)


def test_vectors_do_not_decay_and_the_rest_does(params):
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.5), lambda step: 0.1)
    for tree in (params, stack(params)):
        zeros = jax.tree.map(np.zeros_like, tree)
        updates = jax.jit(lambda z, t: optimizer.update(z, optimizer.init(t), t)[0])(zeros, tree)
        flat = jax.tree_util.tree_leaves_with_path(updates)
        for path, update in flat:
            decays = path[-1].key not in ("scale", "bias")
            assert np.any(update) == decays, path


def test_large_gradients_are_clipped(params):
    optimizer = make_optimizer(OptimizerConfig(clip_norm=1.0, weight_decay=0.0), lambda step: 3e-5)
    grads = jax.tree.map(lambda p: np.full_like(p, 1e3), params)
    state = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[1])(grads, params)
    moments = jax.tree.leaves(jax.device_get(optax.tree.get(state, "mu")))
    np.testing.assert_allclose(np.sqrt(sum(np.sum(m**2) for m in moments)), 0.1, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepConfig(accumulate=0), "accumulate"),
        (lambda: OptimizerConfig(schedule="step"), "schedule is 'step'"),
        (lambda: OptimizerConfig(learning_rate=0), "learning_rate"),
        (lambda: llama_weights.abstract_params(Llama(CONFIG, remat="all")), "remat is 'all'"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_padding_rows_of_the_vocabulary_are_impossible(params, batch, plain):
    """Their logits change nothing, so they are neither learned nor sampled."""
    loud = params | {"head": params["head"].copy()}
    loud["head"][:, VOCAB.size :] += 5.0
    sums, _ = loss_and_gradient(MODEL, loud, batch, PLAIN)
    assert float(sums.loss) == float(plain[0].loss)
