"""The waveform trunk: exact batching, odd lengths, and that every setting acts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spirit_jax import config
from spirit_jax.errors import InputError
from spirit_jax.models.frames import split_frames
from spirit_jax.models.wav2vec2 import Trunk, TrunkConfig, frame_lengths

POST = TrunkConfig(
    input_norm_eps=0.1,
    conv_layers=((8, 10, 5), (8, 3, 2), (12, 2, 2)),
    conv_norm_eps=0.1,
    conv_pos=6,
    conv_pos_groups=4,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    ffn_size=24,
    norm_eps=0.1,
)
PRE = dataclasses.replace(
    POST,
    input_norm_eps=None,
    conv_norm="layer",
    conv_bias=True,
    conv_pos=5,
    norm_first=True,
    final_norm=False,
)
BARE = dataclasses.replace(
    POST,
    conv_layers=((8, 10, 5), (8, 3, 2), (16, 2, 2)),
    feature_norm=False,
    feature_projection=False,
    conv_activation="relu",
)
MODES = {"post": POST, "pre": PRE, "bare": BARE}
SAMPLES = 420


def random_params(cfg: TrunkConfig):
    """Parameters none of which is 0 or 1, so that a misplaced norm or bias is seen."""
    abstract = jax.eval_shape(
        Trunk(cfg).init, jax.random.key(0), jnp.zeros((1, 1)), jnp.zeros(1, jnp.int32)
    )["params"]
    leaves, tree = jax.tree.flatten(abstract)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(0.1, 0.4, leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(tree, arrays)


def random_wave(rows: int = 1, samples: int = SAMPLES) -> np.ndarray:
    return np.random.default_rng(1).normal(0.3, 0.5, (rows, samples)).astype(np.float32)


@pytest.fixture(scope="module", params=MODES)
def trunk(request):
    """(config, function of (wave_bt, lengths_b)) of one form."""
    cfg = MODES[request.param]
    params, apply = random_params(cfg), jax.jit(Trunk(cfg).apply)
    return cfg, lambda wave, lengths: apply({"params": params}, wave, np.int32(lengths))


def test_a_batch_gives_what_each_recording_alone_gives(trunk):
    cfg, encode = trunk
    lengths = [SAMPLES, 238, 91]
    wave = random_wave(3)
    wave[1, 238:], wave[2, 91:] = np.nan, 1e6  # padding may have any value
    hidden, frames = map(np.asarray, encode(wave, lengths))
    np.testing.assert_array_equal(frames, frame_lengths(np.array(lengths), cfg.conv_layers))
    whole, _ = encode(random_wave(3), [SAMPLES] * 3)
    np.testing.assert_allclose(hidden[0], whole[0], atol=2e-6 * np.abs(whole).max(), rtol=0)
    for row, length in list(enumerate(lengths))[1:]:
        alone, (n,) = encode(wave[row : row + 1, :length], [length])
        assert alone.shape[1] == n == frames[row]
        scale = np.abs(alone).max()
        np.testing.assert_allclose(hidden[row, :n], alone[0], atol=2e-6 * scale, rtol=0)
        assert not np.any(hidden[row, n:])


@pytest.mark.parametrize("samples", [0, 1, 7, POST.receptive_field - 1])
def test_audio_too_short_for_a_frame_gives_none(samples, trunk):
    _, encode = trunk
    wave = random_wave(3)
    wave[1, samples:] = np.nan
    hidden, frames = map(np.asarray, encode(wave, [SAMPLES, samples, SAMPLES]))
    assert frames[1] == 0
    assert not np.any(hidden[1])
    whole, _ = encode(random_wave(3), [SAMPLES] * 3)
    np.testing.assert_allclose(hidden[[0, 2]], np.asarray(whole)[[0, 2]], atol=1e-5)


def test_a_batch_shorter_than_a_frame_has_room_for_one_and_no_frame(trunk):
    cfg, encode = trunk
    hidden, frames = encode(random_wave(1, 5), [5])
    assert hidden.shape == (1, 1, cfg.hidden_size)
    assert frames.tolist() == [0]
    assert not np.any(hidden)


@given(
    st.integers(0, 5000),
    st.lists(st.tuples(st.just(1), st.integers(1, 12), st.integers(1, 6)), min_size=1, max_size=4),
)
def test_frame_lengths_counts_whole_windows(samples, layers):
    layers = tuple(layers)
    expected = samples
    for _, kernel, stride in layers:
        expected = len(range(0, expected - kernel + 1, stride))
    assert frame_lengths(samples, layers) == expected
    cfg = dataclasses.replace(BARE, conv_layers=(*layers[:-1], (16, *layers[-1][1:])))
    assert frame_lengths(cfg.receptive_field, layers) == 1
    assert frame_lengths(cfg.receptive_field - 1, layers) == 0
    assert frame_lengths(cfg.receptive_field + cfg.stride, layers) == 2


def test_frame_lengths_of_the_release():
    hubert = (*TrunkConfig().conv_layers, (512, 2, 2))
    lengths = [1279, 1280, 146160, 1_600_000]
    assert frame_lengths(np.array(lengths), hubert).tolist() == [1, 1, 228, 2499]
    assert frame_lengths(jnp.array(lengths), hubert).tolist() == [1, 1, 228, 2499]
    assert dataclasses.replace(TrunkConfig(), conv_layers=hubert).stride == 640


@pytest.mark.parametrize(("samples", "kernel", "stride"), [(53, 10, 5), (9, 3, 2), (8, 2, 3)])
def test_split_frames_gives_every_whole_window(samples, kernel, stride):
    wave = np.arange(2 * samples, dtype=np.float32).reshape(2, samples)
    starts = range(0, samples - kernel + 1, stride)
    expected = np.stack([wave[:, i : i + kernel] for i in starts], axis=1)
    np.testing.assert_array_equal(split_frames(wave, kernel, stride), expected)


CHANGES = {
    "input_norm_eps": 0.2,
    "conv_layers": [
        ((9, 10, 5), (8, 3, 2), (12, 2, 2)),
        ((8, 11, 5), (8, 3, 2), (12, 2, 2)),
        ((8, 10, 4), (8, 3, 2), (12, 2, 2)),
        ((8, 10, 5), (8, 3, 1), (12, 2, 2)),
    ],
    "conv_norm": "layer",
    "conv_bias": True,
    "conv_activation": "relu",
    "conv_norm_eps": 0.2,
    "feature_norm": False,
    "feature_projection": False,
    "conv_pos": 7,
    "conv_pos_groups": 2,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "ffn_size": 25,
    "activation": "gelu_tanh",
    "norm_first": True,
    "final_norm": False,
    "norm_eps": 0.2,
    "adapter_size": 3,  # for pre-norm only; test_ctc_parity.py has one
}


@pytest.mark.slow
def test_every_field_acts():
    """But `precision`, which the next test sees."""
    fields = {field.name for field in dataclasses.fields(TrunkConfig)}
    assert set(CHANGES) == fields - {"precision"}
    start = POST
    params, wave, lengths = random_params(start), random_wave(1, 120), np.int32([120])
    base, _ = jax.jit(Trunk(start).apply)({"params": params}, wave, lengths)
    shapes = jax.tree.map(np.shape, params)
    for name, values in CHANGES.items():
        for value in values if isinstance(values, list) else [values]:
            try:
                cfg = dataclasses.replace(start, **{name: value})
            except InputError:
                continue
            if jax.tree.map(np.shape, random_params(cfg)) == shapes:
                hidden, _ = jax.jit(Trunk(cfg).apply)({"params": params}, wave, lengths)
                same = hidden.shape == base.shape and np.allclose(hidden, base, atol=1e-6)
                assert not same, f"{name}={value} changes nothing"


@pytest.mark.parametrize("precision", ["highest", "default"])
@pytest.mark.parametrize("mode", MODES)
def test_precision_reaches_every_product(mode, precision):
    cfg = dataclasses.replace(MODES[mode], precision=precision)
    params = random_params(cfg)
    program = jax.make_jaxpr(Trunk(cfg).apply)({"params": params}, random_wave(), np.int32([99]))
    precisions = list(product_precisions(program.jaxpr))
    wanted = jax.lax.Precision(precision)
    assert len(precisions) >= 3 + 8 * cfg.num_layers
    assert all(set(p or (jax.lax.Precision.DEFAULT,)) == {wanted} for p in precisions)


def product_precisions(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation.params["precision"]
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from product_precisions(inner)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_heads": 3}, "3 heads"),
        ({"conv_norm": "batch"}, "batch"),
        ({"activation": "tanhh"}, "tanhh"),
        ({"conv_layers": ()}, "conv_layers"),
        ({"conv_layers": ((8, 10, 0),)}, "conv_layers"),
        ({"feature_projection": False}, "12 conv channels"),
        ({"final_norm": False}, "norm_first"),
    ],
)
def test_impossible_configs_are_refused(changes, named):
    with pytest.raises(InputError, match=named):
        dataclasses.replace(POST, **changes)


def test_config_survives_its_file(tmp_path):
    for cfg in MODES.values():
        config.write(cfg, tmp_path / "config.json")
        assert config.read(TrunkConfig, tmp_path / "config.json") == cfg
