"""The vocoder in streaming form: the same samples as offline, layer by layer and as a whole."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from marks import slow

from spirit_jax import SpeechTokenizer, units
from spirit_jax.models import harmonic_source, hifigan, hifigan_stream
from spirit_jax.models.conv import Conv1d
from spirit_jax.models.hifigan import HifiGan, HifiGanConfig
from spirit_jax.models.hifigan_stream import Layers, Signal, most_frames
from spirit_jax.models.vocoder_stream import VocoderStream
from spirit_jax.random_model import random_params

BASE = HifiGanConfig(
    num_codes=11,
    num_speakers=3,
    num_style_ids=2,
    default_style=0,
    embedding_dim=4,
    upsample_rates=(5, 4),
    upsample_kernels=(11, 8),
    initial_channels=12,
    resblock_kernels=(3, 5),
    resblock_dilations=((1, 2), (1, 3)),
    duration_hidden=6,
    code_hop=20,
)
EXPRESSIVE = dataclasses.replace(BASE, num_pitch=5, num_style=4, num_style_ids=0)
CONFIGS = {
    "base": BASE,
    "expressive": EXPRESSIVE,
    "harmonics": dataclasses.replace(EXPRESSIVE, source_harmonics=2, frame_blocks=1),
    "late source": dataclasses.replace(BASE, source_harmonics=2),
    "small": dataclasses.replace(
        BASE, upsample_rates=(20,), upsample_kernels=(30,), duration_kernel=2
    ),
}
FRAMES = 1000  # to which the offline form pads
TOLERANCE = 1e-5  # of the standard deviation


class Offline:
    """A vocoder with random weights, its offline form and its streaming form."""

    def __init__(self, config):
        self.config, self.model = config, HifiGan(config)
        self.params = random_params(hifigan.abstract_params(self.model), np.random.default_rng(0))
        self.params["duration"]["out"]["bias"] += 1.5
        self.stream = VocoderStream(self.model, self.params)
        rng, counts = np.random.default_rng(1), list(config.channels.values())
        self.ids_uc = rng.integers(0, counts, (40, len(counts))).astype(np.int32)
        self._apply = {
            method: jax.jit(functools.partial(self.model.apply, method=method))
            for method in (None, "log_durations", "predict_f0")
        }

    def run(self, method, *inputs):
        """Runs a network on arrays that are padded to one length, so that it is compiled once."""
        count = len(inputs[0])
        arrays = [np.zeros((1, FRAMES, *array.shape[1:]), array.dtype) for array in inputs]
        for padded, array in zip(arrays, inputs, strict=True):
            padded[0, :count] = array
        inputs = (arrays[0], np.array([count]), *arrays[1:])
        values = np.asarray(self._apply[method]({"params": self.params}, *inputs)[0][0])
        return values[: count * len(values) // FRAMES]

    def frames(self, ids_uc):
        return hifigan.to_frames(self.run("log_durations", ids_uc[:, 0]))

    def wave(self, ids_uc):
        ids_tc = np.repeat(ids_uc, self.frames(ids_uc), axis=0)
        if not self.config.source_harmonics:
            return self.run(None, ids_tc)
        f0_tk = harmonic_source.to_f0(self.run("predict_f0", ids_tc))
        return self.run(None, ids_tc, harmonic_source.excite(f0_tk, self.config.code_hop))


@functools.cache
def offline(name):
    return Offline(CONFIGS[name])


def speak(stream, parts, context=None):
    """All samples of a stream of these parts."""
    state, waves = stream.start(context), []
    for part in parts:
        state, wave = stream.step(state, part)
        waves.append(wave)
    return np.concatenate([*waves, stream.finish(state)])


def random_split(rng, ids_uc):
    """1 to 6 parts, some of them empty."""
    return np.split(ids_uc, np.sort(rng.integers(0, len(ids_uc) + 1, rng.integers(0, 6))))


def assert_same(wave, expected):
    assert wave.dtype == np.float32 and wave.shape == expected.shape
    assert np.abs(wave - expected).max() <= TOLERANCE * expected.std()


def run_layers(function, x_tc, config=BASE):
    """The values of layers in streaming form, in chunks of 4 and 1 frames, with a final flush."""

    @jax.jit
    def step(state, chunk_tc, frames_left):
        layers = Layers(config, state, frames_left)
        signal = function(layers, Signal(chunk_tc[None]))
        return layers.next_state(len(chunk_tc)), signal

    state, outputs, start, total = None, [], 0, len(x_tc)
    for size in (4, 1, 4, 1, 4, *[4] * 8):
        chunk_tc = np.full((size, x_tc.shape[1]), 7.0, np.float32)  # to be ignored after the end
        chunk_tc[: max(0, total - start)] = x_tc[start : start + size]
        left = most_frames(config) if start < total else total - start
        state, signal = step(state, chunk_tc, left)
        start += size
        outputs.append(np.asarray(signal.x_btc[0]))
    output = np.concatenate(outputs)[signal.delay :]
    return output[: total * signal.rate + signal.longer], signal


def params_of(module, *inputs):
    """Random parameters, with biases that are not 0."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), shapes)


LAYERS = {
    "conv": (Conv1d(5, 7), lambda layers, p, x: layers.conv(p, x)),
    "dilated conv": (Conv1d(5, 3, 5), lambda layers, p, x: layers.conv(p, x, 5)),
    "even conv": (Conv1d(5, 4, 3), lambda layers, p, x: layers.conv(p, x, 3)),
    "upsample": (
        hifigan.Upsample(5, 4, 8, "highest"),
        lambda layers, p, x: layers.upsample(p, x, 4),
    ),
    "upsample with a long kernel": (
        hifigan.Upsample(5, 5, 11, "highest"),
        lambda layers, p, x: layers.upsample(p, x, 5),
    ),
    "upsample without overlap": (
        hifigan.Upsample(5, 3, 3, "highest"),
        lambda layers, p, x: layers.upsample(p, x, 3),
    ),
    "residual block": (
        hifigan.ResBlock(5, (1, 3, 5), "highest"),
        lambda layers, p, x: hifigan_stream.res_block(layers, p, x, (1, 3, 5)),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_gives_its_offline_values(name):
    module, function = LAYERS[name]
    x_tc = np.random.default_rng(2).normal(0, 1, (14, 4)).astype(np.float32)
    inputs = (x_tc[None], np.ones((1, 14, 1))) if name == "residual block" else (x_tc[None],)
    params = params_of(module, *inputs)
    expected = np.asarray(jax.jit(module.apply)({"params": params}, *inputs)[0])
    output, _ = run_layers(lambda layers, x: function(layers, params, x), x_tc)
    np.testing.assert_allclose(output, expected, atol=1e-5)


@pytest.mark.parametrize("name", [slow("base"), slow("small")])
def test_the_generator_and_the_durations_give_their_offline_values(name):
    vocoder = offline(name)
    config, params = vocoder.config, vocoder.params
    x_tc = np.random.default_rng(2).normal(0, 1, (14, 12)).astype(np.float32)
    length = np.array([14])
    module, inner = hifigan.Generator(config), params["generator"]
    expected = np.asarray(jax.jit(module.apply)({"params": inner}, x_tc[None], length)[0])
    function = functools.partial(_in_order, hifigan_stream.generator, inner, config)
    output, signal = run_layers(function, x_tc, config)
    np.testing.assert_allclose(output[:, 0], expected, atol=1e-5)
    assert signal.delay == vocoder.stream.look_ahead
    module, inner = hifigan.DurationPredictor(config), params["duration"]
    expected = np.asarray(jax.jit(module.apply)({"params": inner}, x_tc[None, :, :4], length)[0])
    function = functools.partial(_in_order, hifigan_stream.duration_predictor, inner, config)
    output, signal = run_layers(function, x_tc[:, :4], config)
    np.testing.assert_allclose(output[:, 0], expected, atol=1e-5)
    assert signal.delay == vocoder.stream.unit_look_ahead == config.duration_kernel - 1


def _in_order(function, params, config, layers, x):
    return function(layers, params, config, x)


@pytest.mark.parametrize("name", [name if name == "harmonics" else slow(name) for name in CONFIGS])
def test_any_split_gives_the_offline_samples(name):
    vocoder, rng = offline(name), np.random.default_rng(0)
    ids_uc = vocoder.ids_uc
    expected = vocoder.wave(ids_uc)
    assert len(set(vocoder.frames(ids_uc))) > 2
    for _ in range(2):
        assert_same(speak(vocoder.stream, random_split(rng, ids_uc)), expected)
    assert_same(speak(vocoder.stream, np.split(ids_uc, len(ids_uc))), expected)
    context, rest = np.split(ids_uc, [25])
    wanted = expected[vocoder.frames(ids_uc)[:25].sum() * vocoder.config.code_hop :]
    assert_same(speak(vocoder.stream, random_split(rng, rest), context), wanted)


@pytest.mark.parametrize("name", ["expressive", "harmonics"])
def test_few_units(name):
    vocoder = offline(name)
    assert speak(vocoder.stream, []).shape == (0,)
    assert speak(vocoder.stream, [vocoder.ids_uc[:0]], vocoder.ids_uc[:3]).shape == (0,)
    for count in (1, 2, 3):
        ids_uc = vocoder.ids_uc[:count]
        assert_same(speak(vocoder.stream, [ids_uc]), vocoder.wave(ids_uc))
    same = np.repeat(vocoder.ids_uc[:1], 6, axis=0)
    assert_same(speak(vocoder.stream, np.split(same, 6)), vocoder.wave(same))


def test_the_look_ahead_is_that_of_the_config_and_no_longer():
    """A frame changes no sample earlier than the look-ahead says, and one soon after that.

    The very first change may be smaller than the rounding of the sums.
    """
    for name in ("base", "harmonics"):
        vocoder = offline(name)
        stream, hop = vocoder.stream, vocoder.config.code_hop
        changed = vocoder.ids_uc.copy()
        changed[30] = (changed[30] + 1) % 3
        waves = []
        for ids_uc in (vocoder.ids_uc, changed):
            state = stream.start(predict_durations=False)
            state, wave = stream.step(state, ids_uc)
            assert len(wave) == len(ids_uc) * hop - stream.look_ahead
            waves.append(np.concatenate([wave, stream.finish(state)]))
        first = np.flatnonzero(waves[0] != waves[1])[0]
        assert 0 <= first - (30 * hop - stream.look_ahead) <= hop // 2
        assert stream.look_ahead <= vocoder.config.receptive_frames * hop


def test_the_look_ahead_of_the_packaged_and_the_published_vocoder():
    """In seconds; docs/generate.md has these numbers."""
    published = HifiGan(HifiGanConfig())
    streams = (
        VocoderStream(published, hifigan.abstract_params(published)),
        SpeechTokenizer.from_pretrained("spirit-tiny-base").vocoder_stream,
    )
    assert [round(stream.look_ahead / 16_000, 2) for stream in streams] == [0.79, 0.58]
    assert [stream.unit_look_ahead for stream in streams] == [2, 2]


def test_a_step_leaves_its_state_and_other_streams_as_they_were():
    vocoder = offline("harmonics")
    stream, parts = vocoder.stream, np.split(vocoder.ids_uc, 4)
    states, waves = [stream.start(), stream.start(parts[0])], [[], []]
    for part in parts:
        for number, state in enumerate(states):
            again = stream.step(state, part)[1]
            states[number], wave = stream.step(state, part)
            np.testing.assert_array_equal(wave, again)
            waves[number].append(wave)
    for number, context in enumerate((None, parts[0])):
        wave = np.concatenate([*waves[number], stream.finish(states[number])])
        np.testing.assert_array_equal(wave, speak(stream, parts, context))


def test_nothing_is_compiled_after_the_warm_up():
    compiled = []
    name = "/jax/core/compile/backend_compile_duration"
    listen = lambda event, *_, **__: compiled.append(event) if event == name else None  # noqa: E731
    stream = offline("harmonics").stream
    stream.warm_up()
    jax.monitoring.register_event_duration_secs_listener(listen)
    speak(stream, random_split(np.random.default_rng(5), offline("harmonics").ids_uc))
    jax.monitoring.clear_event_listeners()
    assert compiled == []


@pytest.mark.parametrize("seconds", [slow(20), slow(600)])
def test_long_speech_of_the_packaged_model_has_no_gap_drift_or_click(seconds):
    tokenizer = SpeechTokenizer.from_pretrained("spirit-tiny-base")
    stream, rng = tokenizer.vocoder_stream, np.random.default_rng(0)
    ids_uc = tokenizer.vocoder_ids(units.Units(rng.integers(0, 99, 22 * seconds), timed=False))
    state, waves, sizes = stream.start(), [], set()
    for start in range(0, len(ids_uc), 15):
        state, wave = stream.step(state, ids_uc[start : start + 15])
        waves.append(wave)
        sizes.add(sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(vars(state))))
    waves.append(stream.finish(state))
    wave = np.concatenate(waves)
    assert len(wave) % 640 == 0 and len(wave) >= 16_000 * seconds
    expected = tokenizer.decode(units.Units(ids_uc[:, 0], timed=False))
    assert_same(wave, expected)
    steps = np.abs(np.diff(wave))
    joins = np.cumsum([len(part) for part in waves if len(part)])[:-1] - 1
    inside = np.delete(steps, joins)
    assert steps[joins].max() <= inside.max()
    assert steps[joins].mean() <= 1.5 * inside.mean()
    assert max(sizes) < 3e6 and max(sizes) - min(sizes) < 1e5  # bytes of a state
