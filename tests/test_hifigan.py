"""The vocoder: exact batching, receptive field, durations, speaker ids, and every config field."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from spirit_jax.errors import InputError
from spirit_jax.models import harmonic_source, hifigan
from spirit_jax.models.hifigan import HifiGan, HifiGanConfig
from spirit_jax.random_model import random_params

CONFIG = HifiGanConfig(
    num_codes=11,
    num_pitch=5,
    num_style=4,
    num_speakers=3,
    num_style_ids=0,
    speakers=("ann", "bob", "7"),
    embedding_dim=4,
    upsample_rates=(5, 2),
    upsample_kernels=(11, 4),
    initial_channels=12,
    resblock_kernels=(3, 5),
    resblock_dilations=((1, 2), (1, 3)),
    duration_hidden=6,
    code_hop=10,
    pitch_hop=20,
    style_hop=250,
)


@pytest.fixture(scope="module")
def vocoder():
    """(speak, durations), jitted, on random parameters that are not small."""
    model = HifiGan(CONFIG)
    params = random_params(hifigan.abstract_params(model), np.random.default_rng(0))
    params["duration"]["out"]["bias"] += 1.5
    speak = jax.jit(lambda ids, n: model.apply({"params": params}, ids, n))
    durations = jax.jit(
        lambda codes, n: model.apply({"params": params}, codes, n, method="log_durations")
    )
    return speak, durations


def random_ids(rows, frames):
    rng = np.random.default_rng(0)
    counts = list(CONFIG.channels.values())
    return rng.integers(0, counts, (rows, frames, len(counts))).astype(np.int32)


def test_a_batch_gives_the_waveform_of_each_row_alone(vocoder):
    speak, durations = vocoder
    ids, lengths = random_ids(3, 14), np.array([14, 9, 0], np.int32)
    wave, samples = speak(ids, lengths)
    log_frames, _ = durations(ids[..., 0], lengths)
    assert samples.tolist() == [140, 90, 0]
    assert len(set(hifigan.to_frames(np.asarray(log_frames[0])).tolist())) > 1
    for row, length in ((0, 14), (1, 9)):
        single, _ = speak(ids[row : row + 1, :length], np.array([length]))
        np.testing.assert_allclose(wave[row, : 10 * length], single[0], atol=1e-6)
        single, _ = durations(ids[row : row + 1, :length, 0], np.array([length]))
        np.testing.assert_allclose(log_frames[row, :length], single[0], atol=1e-6)
    assert not np.asarray(wave[1, 90:]).any() and not np.asarray(wave[2]).any()


def test_every_input_channel_changes_the_waveform(vocoder):
    speak, _ = vocoder
    ids, length = random_ids(1, 14), np.array([14])
    wave, _ = speak(ids, length)
    assert list(CONFIG.channels) == ["code", "pitch", "style", "speaker"]
    for channel, count in enumerate(CONFIG.channels.values()):
        other = ids.copy()
        other[..., channel] = (other[..., channel] + 1) % count
        assert np.abs(speak(other, length)[0] - wave).max() > 1e-4


@pytest.mark.parametrize("blocks", [0, 2])
def test_receptive_frames_bounds_the_influence_of_a_unit(blocks):
    config = dataclasses.replace(CONFIG, frame_blocks=blocks)
    model = HifiGan(config)
    params = random_params(hifigan.abstract_params(model), np.random.default_rng(0))
    speak = jax.jit(lambda ids, n: model.apply({"params": params}, ids, n))
    reach, frames = config.receptive_frames, 60
    ids, length = random_ids(1, frames), np.array([frames])
    other = ids.copy()
    other[:, 30] = (other[:, 30] + 1) % 3
    changed = np.flatnonzero(np.abs(np.asarray(speak(other, length)[0] - speak(ids, length)[0]))[0])
    first, last = changed[0] // 10, changed[-1] // 10
    assert 30 - reach <= first and last <= 30 + reach
    assert 30 - first > reach / 2  # and the bound is not far too large


def test_durations_are_at_least_one_frame_and_round_half_to_even():
    log_frames = np.log1p(np.array([-0.9, 0.2, 2.4, 2.6, 1e9])).astype(np.float32)
    assert hifigan.to_frames(log_frames).tolist() == [1, 1, 2, 3, hifigan.MAX_DURATION]
    # exp of this float32 is 46.4999979, which as float32 is just below the half.
    assert hifigan.to_frames(np.float32([3.8394522666931152])).tolist() == [45]


def test_expand_stream():
    stream = np.array([3, 1, 2])
    expand = hifigan.expand_stream
    assert expand(stream, 1280, 640, 5).tolist() == [3, 3, 1, 1, 2]
    assert expand(stream, 1280, 640, 8).tolist() == [3, 3, 1, 1, 2, 2, 2, 2]
    assert expand(stream, 16000, 640, 26).tolist() == [3] * 25 + [1]


def test_speakers_are_found_by_name_and_by_number():
    config = dataclasses.replace(CONFIG, default_speaker=1)

    def find_speaker(speaker):
        return config.find_voice(speaker, None)["speaker"]

    assert [find_speaker(w) for w in ("bob", 0, "0", None, "7")] == [1, 0, 0, 1, 2]
    for unknown in ("carl", 3, -1, "", "²"):
        with pytest.raises(InputError, match=f"no speaker '{unknown}'; known are 0 to 2 or ann"):
            find_speaker(unknown)


@pytest.mark.slow
def test_every_config_field_changes_the_model():
    """A change of a number changes the program or its shapes, or is an error.

    Exceptions are names, defaults and hops of streams: the speech tokenizer reads and tests them.
    """
    # one residual conv after each upsampling, since tracing takes time
    small = dataclasses.replace(CONFIG, resblock_kernels=(3,), resblock_dilations=((2,),))
    lengths = jax.ShapeDtypeStruct((1,), int)

    def outputs(model, ids_btc, lengths_b, source_bte):
        parts = [model(ids_btc, lengths_b, source_bte)]
        if model.config.source_harmonics:
            parts.append(model.predict_f0(ids_btc, lengths_b))
        if model.config.duration_hidden:
            parts.append(model.log_durations(ids_btc[..., 0], lengths_b))
        return parts

    def program(change):
        try:
            model = HifiGan(dataclasses.replace(small, **change))
        except InputError as error:
            return str(error)
        ids = jax.ShapeDtypeStruct((1, 6, len(model.config.channels)), int)
        source = jax.ShapeDtypeStruct((1, 6, harmonic_source.PARTS + 1), np.float32)
        params = {"params": hifigan.abstract_params(model)}
        return str(jax.make_jaxpr(nn.apply(outputs, model))(params, ids, lengths, source))

    matching_hop = {"upsample_rates": (5, 4), "upsample_kernels": (11, 8), "code_hop": 20}
    changes = [
        {"num_codes": 12},
        {"num_pitch": 6},
        {"num_pitch": 0},
        {"num_style": 5},
        {"num_speakers": 4},
        {"num_style_ids": 9},
        {"embedding_dim": 5},
        {"upsample_rates": (2, 5), "upsample_kernels": (4, 11)},
        {"upsample_kernels": (11, 6)},
        {"upsample_kernels": (11, 5)},
        {"initial_channels": 16},
        {"initial_channels": 2},
        {"frame_blocks": 1},
        {"frame_blocks": -1},
        {"resblock_kernels": (7,)},
        {"resblock_kernels": (4,)},
        {"resblock_dilations": ((4,),)},
        {"resblock_dilations": ((2, 1),)},
        {"resblock_dilations": ((2,), (2,))},
        {"duration_hidden": 0},
        {"duration_hidden": 7},
        {"duration_kernel": 2},
        {"duration_kernel": 5},
        {"code_hop": 20},
        {"source_harmonics": -1},
        {"source_harmonics": 2, **matching_hop},
        {"source_harmonics": 3, **matching_hop},
        {"source_harmonics": 2, "f0_hidden": 7, **matching_hop},
        {"default_speaker": 3},
        {"precision": "default"},
    ]
    programs = [program(change) for change in ({}, *changes)]
    assert len(set(programs)) == len(programs)
    read_by_the_tokenizer = {
        "speakers",
        "styles",
        "default_style",
        "common_style",
        "pitch_hop",
        "style_hop",
    }
    touched = {name for change in changes for name in change} | read_by_the_tokenizer
    assert touched == {field.name for field in dataclasses.fields(HifiGanConfig)}


def test_a_duration_kernel_of_two_gives_one_duration_per_unit():
    model = HifiGan(dataclasses.replace(CONFIG, duration_kernel=2))
    codes = random_ids(2, 7)[..., 0]
    lengths = jnp.array([7, 4])
    params = random_params(hifigan.abstract_params(model), np.random.default_rng(0))
    durations = jax.jit(lambda c, n: model.apply({"params": params}, c, n, method="log_durations"))
    batched, _ = durations(codes, lengths)
    single, _ = durations(codes[1:, :4], lengths[1:])
    assert batched.shape == (2, 7)
    np.testing.assert_allclose(batched[1, :4], single[0], atol=1e-6)
