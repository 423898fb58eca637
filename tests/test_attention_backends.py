"""Attention backends equal plain softmax attention within segments, also on a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow

from spirit_jax import sharding
from spirit_jax.errors import InputError
from spirit_jax.models import attention, cache_kernel
from spirit_jax.models.attention_backends import (
    attend_segments,
    choose_backend,
    fits_length_kernel,
)

LENGTH, HEADS, KV_HEADS, WIDTH = 128, 4, 2, 8
BACKENDS = ["reference", "splash_interpret"]
if jax.default_backend() == "gpu":
    BACKENDS.append("cudnn")


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, LENGTH, HEADS, WIDTH)).astype(np.float32)
    k, v = rng.standard_normal((2, 2, LENGTH, KV_HEADS, WIDTH)).astype(np.float32)
    segments = np.zeros((2, LENGTH), np.int32)
    segments[0, :50], segments[0, 50:110] = 1, 2  # then padding
    segments[1] = 1
    return q, k, v, segments


@functools.partial(jax.jit, static_argnums=4)
def outputs_and_gradients(q, k, v, segments, backend):
    """Outputs at the tokens, and gradients of a function of them."""
    is_token = jnp.asarray(segments > 0)[..., None, None]

    def loss(q, k, v):
        y = jnp.where(is_token, attend_segments(q, k, v, segments, backend), 0)
        return jnp.sum(jnp.sin(3 * y)), y

    grads, y = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return y, *grads


def assert_close(result, expected, tolerance=1e-5):
    for a, b in zip(result, expected, strict=True):
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.fixture(scope="module")
def expected_outputs(arrays):
    """Attention outputs from an explicit softmax, one segment and head at a time."""
    q, k, v, segments = arrays
    y = np.zeros_like(q)
    for row in range(2):
        for segment in range(1, segments[row].max() + 1):
            (positions,) = np.nonzero(segments[row] == segment)
            for head in range(HEADS):
                group = head * KV_HEADS // HEADS
                scores = q[row, positions, head] @ k[row, positions, group].T / np.sqrt(WIDTH)
                scores[np.triu_indices(len(positions), 1)] = -np.inf
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                y[row, positions, head] = (
                    weights / weights.sum(-1, keepdims=True) @ v[row, positions, group]
                )
    return y


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_computes_causal_attention_within_segments(arrays, expected_outputs, backend):
    y, *grads = outputs_and_gradients(*arrays, backend)
    assert_close([y], [expected_outputs])
    assert_close(grads, outputs_and_gradients(*arrays, "reference")[1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_rows_equal_single_sequences(arrays, backend):
    q, k, v, segments = arrays
    packed = outputs_and_gradients(*arrays, backend)
    for segment in (1, 2):
        (positions,) = np.nonzero(segments[0] == segment)
        single = [np.zeros_like(array[:1]) for array in (q, k, v)]
        for array, packed_array in zip(single, (q, k, v), strict=True):
            array[0, : len(positions)] = packed_array[0, positions]
        single_segments = np.zeros((1, LENGTH), np.int32)
        single_segments[0, : len(positions)] = 1
        unpacked = outputs_and_gradients(*single, single_segments, backend)
        assert_close([a[0, : len(positions)] for a in unpacked], [a[0, positions] for a in packed])


@pytest.mark.parametrize("backend", BACKENDS)
# Four devices split the query heads, but not the two key and value heads.
@pytest.mark.parametrize("shape", [slow((2, 2, 2)), (1, 2, 4)])
def test_a_mesh_gives_the_same_outputs_and_gradients(arrays, backend, shape):
    devices = jax.devices()[: int(np.prod(shape))]
    if len(devices) < np.prod(shape):
        pytest.skip("needs eight devices")
    expected = outputs_and_gradients(*arrays, backend)
    q, k, v, segments = (np.concatenate([a, a]) for a in arrays)
    with jax.set_mesh(sharding.make_mesh(*shape, devices=devices)):
        on_mesh = outputs_and_gradients(q, k, v, segments, backend)
    assert_close([np.asarray(a)[:2] for a in on_mesh], [np.asarray(a) for a in expected])


def test_unsupported_backends_are_rejected():
    with pytest.raises(InputError, match="attention is 'flash'"):
        choose_backend("flash", jnp.float32, 64, 128)
    with pytest.raises(InputError, match="multiple of 128, not 100"):
        choose_backend("splash", jnp.float32, 64, 100)
    with pytest.raises(InputError, match="bfloat16"):
        choose_backend("cudnn", jnp.float32, 64, 128)
    assert choose_backend("splash", jnp.bfloat16, 64, 256) == "splash"
    if jax.default_backend() == "cpu":
        assert choose_backend("auto", jnp.bfloat16, 64, 128) == "reference"


def filled_cache(slots: int, int8: bool) -> attention.LayerCache:
    """Three rows of two heads of width 8."""
    draws = np.random.default_rng(0)
    shape = (3, 2, slots, 8)
    k, v = (jnp.asarray(draws.standard_normal(shape), jnp.float32) for _ in range(2))
    if not int8:
        return attention.LayerCache(k, v)
    (k, k_scale), (v, v_scale) = attention.to_int8(k), attention.to_int8(v)
    return attention.LayerCache(k, v, k_scale, v_scale)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("rows", [None, [2, 0]])
# One block that is not full, several of which the last one overlaps, and only whole ones.
@pytest.mark.parametrize("slots", [16, 150, 128])
def test_attention_by_blocks_equals_the_plain_form(int8, rows, slots):
    cache, draws = filled_cache(slots, int8), np.random.default_rng(1)
    rows_b = None if rows is None else jnp.array(rows)
    plain_rows = slice(2) if rows is None else rows_b
    q_bgnk = jnp.asarray(draws.standard_normal((2, 2, 3, 8)), jnp.float32)
    part = jax.tree.map(lambda stored: stored[plain_rows], cache)
    blocks = jax.jit(attention._attend_blocks)
    for last in (0, 1, slots // 2, slots - 1):
        last_bn = jnp.array([[last, 0, last // 2], [last // 3, last, 0]])
        plain = attention._attend_slots(q_bgnk, part, last_bn)
        np.testing.assert_allclose(
            blocks(q_bgnk, cache, last_bn, rows_b), plain, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(("last", "reads_all"), [(5, False), (99, False), (100, True), (140, True)])
def test_few_slots_are_read_as_a_whole_if_half_of_them_are_filled(monkeypatch, last, reads_all):
    monkeypatch.setattr(attention, "LARGE_BLOCK", 0)
    cache, draws = filled_cache(200, int8=False), np.random.default_rng(1)
    q_bthk = jnp.asarray(draws.standard_normal((3, 1, 6, 8)), jnp.float32)
    new = attention.NewTokens(jnp.full((3, 1), last), jnp.full(3, last))
    attend = jax.jit(attention.attend_cache)
    plain = attention._attend_slots(q_bthk.reshape(3, 2, 3, 8), cache, jnp.full((3, 3), last))
    y_bthk = attend(q_bthk, cache, new)
    np.testing.assert_allclose(y_bthk.reshape(plain.shape), plain, rtol=1e-5, atol=1e-6)
    # A value that is not a number changes the result if it is read, also with a weight of 0.
    spoilt = cache.replace(v=cache.v.at[:, :, -1].set(jnp.nan))
    assert bool(jnp.isnan(attend(q_bthk, spoilt, new)).any()) == reads_all


@pytest.mark.parametrize(("block_bytes", "slots"), [(attention.BLOCK_BYTES, 64), (0, 16)])
@pytest.mark.parametrize("int8", [False, True])
def test_attention_by_blocks_never_reads_blocks_that_no_query_attends_to(
    monkeypatch, int8, block_bytes, slots
):
    """One compiled function reads as many slots as are filled, whatever the cache holds beyond."""
    monkeypatch.setattr(attention, "BLOCK_BYTES", block_bytes)
    cache = filled_cache(256, int8)
    q_bgnk, last_bn = jnp.ones((3, 2, 1, 8)), jnp.array([[slots - 1], [5], [0]])
    expected = attention._attend_blocks(q_bgnk, cache, last_bn, None)
    # A value that is not a number changes the result if it is read, also with a weight of 0.
    name = "v_scale_bgs" if int8 else "v"
    spoilt = getattr(cache, name).at[:, :, slots:].set(jnp.nan)
    cache = cache.replace(**{name: spoilt})
    np.testing.assert_array_equal(attention._attend_blocks(q_bgnk, cache, last_bn, None), expected)


@pytest.mark.parametrize("int8", [False, True])
def test_new_tokens_are_written_to_the_rows_that_are_named(int8):
    cache, draws = filled_cache(24, int8), np.random.default_rng(1)
    k_btgk, v_btgk = (
        jnp.asarray(draws.standard_normal((2, 4, 2, 8)), jnp.float32) for _ in range(2)
    )
    starts_b, rows = jnp.array([20, 3]), [2, 0]
    new = attention.NewTokens(starts_b[:, None] + jnp.arange(4), starts_b, jnp.array(rows))
    written = attention.write_cache(cache, k_btgk, v_btgk, new)
    expected = np.array(cache.v)
    values, _ = attention.to_int8(v_btgk) if int8 else (v_btgk, None)
    for row, start, row_values in zip(rows, starts_b, values, strict=True):
        expected[row, :, start : start + 4] = row_values.swapaxes(0, 1)
    np.testing.assert_array_equal(written.v, expected)


@pytest.mark.parametrize("int8", [False, True])
def test_rows_of_zeros_for_a_tpu_change_nothing(int8):
    cache = filled_cache(16, int8)
    q_bgnk = jnp.asarray(np.random.default_rng(1).standard_normal((3, 2, 3, 8)), jnp.float32)
    last_bn = jnp.array([[4, 4, 4], [15, 15, 15], [0, 0, 0]])
    padded = attention._with_more_rows(attention._attend_slots)(q_bgnk, cache, last_bn)
    plain = attention._attend_slots(q_bgnk, cache, last_bn)
    np.testing.assert_allclose(padded, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "dtype", "parts", "fits"),
    [
        ((4, 8, 64, 128), jnp.bfloat16, 1, True),
        ((4, 8, 64, 128), jnp.bfloat16, 8, True),
        ((4, 8, 64, 128), jnp.bfloat16, 3, False),  # the mesh splits no key-value heads
        ((4, 2, 64, 128), jnp.bfloat16, 8, False),
        ((4, 8, 64, 128), jnp.float32, 1, False),
        ((4, 8, 64, 128), jnp.int8, 1, False),
        ((4, 8, 64, 256), jnp.bfloat16, 1, False),
    ],
)
def test_which_caches_the_kernel_with_lengths_takes(shape, dtype, parts, fits):
    keys = jax.ShapeDtypeStruct(shape, dtype)
    cache = attention.LayerCache(keys, keys)
    assert fits_length_kernel(cache, parts) == fits


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8])
@pytest.mark.parametrize("slots", [16, 80])  # the last block of 80 is not full
def test_the_kernel_of_a_tpu_writes_the_token_of_each_row(dtype, slots):
    draws, starts_b = np.random.default_rng(0), np.array([0, slots - 1, slots // 2 + 3])
    shapes = ((3, 2, slots, 128), (3, 2, slots))  # of keys or values, and of their scales
    for shape, kind in zip(shapes, (dtype, jnp.float32), strict=True):
        stored = jnp.asarray(draws.integers(-99, 99, shape), kind)
        new = jnp.asarray(draws.integers(-99, 99, (*shape[:2], 1, *shape[3:])), kind)
        expected = attention._write_rows(stored, new, jnp.asarray(starts_b))
        assert cache_kernel.fits(stored, new)
        written = cache_kernel.write_newest(stored, new, jnp.asarray(starts_b), interpret=True)
        np.testing.assert_array_equal(written, expected)
