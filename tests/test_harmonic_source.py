"""The harmonic source: sines follow F0 through frames, windows, batches and padding."""

import dataclasses

import jax
import numpy as np
import pytest

from spirit_jax import SpeechTokenizer, checkpoint, speech_tokenizer
from spirit_jax.errors import InputError
from spirit_jax.models import harmonic_source as source
from spirit_jax.models import hifigan
from spirit_jax.models.hifigan import HifiGan
from spirit_jax.new_model import pack
from spirit_jax.random_model import random_params
from spirit_jax.units import Units


@pytest.fixture(scope="module")
def tokenizer(base_folder, tmp_path_factory):
    """A Base tokenizer whose vocoder has a harmonic source, with random weights."""
    folder = tmp_path_factory.mktemp("source")
    before, _ = hifigan.load(base_folder / "speech_tokenizer" / "hifigan")
    config = dataclasses.replace(before.config, source_harmonics=3, f0_hidden=8)
    params = random_params(hifigan.abstract_params(HifiGan(config)), np.random.default_rng(0))
    params["f0"]["out"]["kernel"] *= 0.1  # a voice's F0, some 150 Hz
    params["f0"]["out"]["bias"][source.PARTS :] += 0.3  # most of it voiced
    checkpoint.save_network(folder / "vocoder", config, params)
    pack(folder / "set", base_folder, vocoder=folder / "vocoder")
    return SpeechTokenizer.from_pretrained(folder / "set")


def random_units(frames):
    return Units(np.random.default_rng(frames).integers(0, 500, frames))


def test_sines_follow_f0_with_continuous_phase_and_are_zero_where_unvoiced():
    f0_tk = np.random.default_rng(0).uniform(80, 300, (9, source.PARTS))
    f0_tk[3], f0_tk[7, 2:] = 0, 3000  # its third harmonic is too high
    sines_sh = np.asarray(source.sines(source.excite(f0_tk, 640)[None], 640, 3))[0]
    f0_s = np.repeat(f0_tk.ravel(), 160)
    cycles_s = np.cumsum(f0_s / 16_000)
    for number, sine_s in enumerate(sines_sh.T, start=1):
        audible_s = (f0_s > 0) & (number * f0_s < 8000)
        expected_s = source.AMPLITUDE * np.sin(2 * np.pi * number * cycles_s) * audible_s
        np.testing.assert_allclose(sine_s, expected_s, atol=1e-4)


def test_f0_is_predicted_where_the_voicing_score_is_positive():
    predicted_te = np.float32([[np.log(100), np.log(200), 99, 1, 0.1, 2, 1, -0.1]])
    np.testing.assert_allclose(
        source.to_f0(predicted_te), [[100, 200, source.MAX_F0, 0]], rtol=1e-5
    )


def test_f0_loss_counts_only_valid_frames_and_voiced_parts():
    f0_tk = np.float32([[100, 200, 0, 150], [120, 0, 0, 0], [500, 500, 500, 500]])
    predicted_te = np.concatenate(
        [np.log(np.maximum(f0_tk, 1)), np.where(f0_tk > 0, 20, -20)], axis=1
    )
    mask_bt = np.array([[True, True, False]])
    excitation = source.excite(f0_tk, 640)[None]
    assert float(source.f0_loss(predicted_te[None], excitation, mask_bt)) == pytest.approx(
        0, abs=1e-5
    )
    predicted_te[0, 0] += 0.2  # one of four voiced parts
    predicted_te[1, 1] += 5.0  # unvoiced
    predicted_te[2] = 7  # after the end
    loss = float(source.f0_loss(predicted_te[None], excitation, mask_bt))
    assert loss == pytest.approx(0.04 / 4, rel=1e-3)


def test_decoding_in_windows_and_batches_equals_decoding_at_once(tokenizer, monkeypatch):
    short, long = random_units(20), random_units(150)
    expected_waves = [tokenizer.decode(short), tokenizer.decode(long)]
    unvoiced = source.to_f0(np.zeros((1, 2 * source.PARTS)))
    assert not unvoiced.any() and np.abs(expected_waves[1]).max() > 1e-3
    for wave, expected in zip(tokenizer.decode_batch([short, long]), expected_waves, strict=True):
        np.testing.assert_allclose(wave, expected, atol=1e-5)
    monkeypatch.setattr(speech_tokenizer, "WINDOW_FRAMES", 75)
    # The phase adds up the rounding of F0, which differs with the window and the processor: to a
    # ten-thousandth of the amplitude (see `source.excite`).
    largest = np.abs(expected_waves[1]).max()
    np.testing.assert_allclose(
        tokenizer.decode(long), expected_waves[1], rtol=0, atol=1e-4 * largest
    )
    assert len(tokenizer.decode(random_units(0))) == 0


def test_the_waveform_depends_on_f0(tokenizer):
    model, params = hifigan.load(tokenizer._folder / "hifigan")
    ids_btc = np.zeros((1, 10, len(model.config.channels)), np.int32)
    speak = jax.jit(lambda *given: model.apply({"params": params}, *given)[0])
    waves = [
        speak(ids_btc, np.array([10]), source.excite(np.full((10, 4), f0), 640)[None])
        for f0 in (0.0, 100.0, 200.0)
    ]
    assert np.abs(waves[0] - waves[1]).max() > 1e-4 < np.abs(waves[1] - waves[2]).max()


def test_a_hop_that_4_does_not_divide_is_rejected():
    with pytest.raises(InputError, match="code_hop that 4 divides"):
        hifigan.HifiGanConfig(
            upsample_rates=(5, 2), upsample_kernels=(5, 2), code_hop=10, source_harmonics=1
        )
