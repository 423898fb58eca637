"""Waveforms to units and back: batches, chunks, windows, voices, mismatched networks."""

import json
import shutil

import jax
import numpy as np
import pytest
from marks import slow

from spirit_jax import InputError, SpeechTokenizer, Units, model_folder, speech_tokenizer
from spirit_jax import units as units_lib
from spirit_jax.random_model import write_random_model

RATE = 16_000


@pytest.fixture(scope="module")
def base(base_folder):
    return SpeechTokenizer.from_pretrained(base_folder)


@pytest.fixture(scope="module")
def expressive(expressive_folder):
    return SpeechTokenizer.from_pretrained(expressive_folder)


def noise(seconds, seed=0):
    """A gliding tone in noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    wave = 0.3 * np.sin(2 * np.pi * (120 + 40 * np.sin(3 * time)) * time)
    return (wave + 0.1 * rng.standard_normal(len(time))).astype(np.float32)


def random_units(frames):
    """Random units of all streams; no encoder is compiled for them."""
    rng = np.random.default_rng(0)
    counts = frames, -(-frames // 2), -(-frames // 25)
    return Units(
        *(rng.integers(0, high, n) for high, n in zip((500, 64, 100), counts, strict=True))
    )


def edit_config(folder, target, **changes):
    """A copy of a model's speech tokenizer with other settings."""
    shutil.copytree(folder / "speech_tokenizer", target)
    path = target / "speech_tokenizer.json"
    (target / "checksums.json").unlink()  # it is edited by hand
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


def test_streams_have_their_rates(expressive):
    units = expressive.encode(noise(2.6))
    assert (len(units.hubert), len(units.pitch), len(units.style)) == (64, 32, 3)
    assert len(set(units.hubert.tolist())) > 5
    assert 0 <= units.pitch.min() and units.pitch.max() < 64


def test_units_do_not_depend_on_batch_mates_or_buckets(base, expressive, monkeypatch):
    waves = [noise(seconds, seed) for seed, seconds in enumerate((0.4, 1.4, 1.6))]
    alone = [expressive.encode(wave) for wave in waves]
    assert expressive.encode_batch(waves) == alone
    assert [u.hubert.tolist() for u in base.encode_batch(waves)] == [
        base.encode(wave).hubert.tolist() for wave in waves
    ]
    # In rows, as on an accelerator, and padded much further.
    monkeypatch.setattr(expressive, "_batch_seconds", 20)
    monkeypatch.setattr(speech_tokenizer, "BUCKET_SECONDS", (5,))
    assert expressive.encode_batch(waves) == alone
    strings = [expressive.to_string(units) for units in alone]
    decoded = expressive.decode_batch([*alone, *strings])
    monkeypatch.undo()
    for together, item in zip(decoded, [*alone, *strings], strict=True):
        np.testing.assert_allclose(together, expressive.decode(item), atol=1e-5)


@pytest.mark.slow
def test_devices_share_a_batch(expressive_folder, expressive, monkeypatch):
    """Each computes as many rows, and the units are those of one device."""
    waves = [noise(1.3, seed) for seed in range(4)]
    shared = SpeechTokenizer.from_pretrained(expressive_folder, devices=jax.devices()[:4])
    batches = []

    def watch(*args):
        values, lengths = apply(*args)
        batches.append([shard.device.id for shard in values.addressable_shards])
        assert {shard.data.shape[0] for shard in values.addressable_shards} == {1}
        return values, lengths

    apply = shared._hubert._function
    monkeypatch.setattr(shared._hubert, "_function", watch)
    assert shared.encode_batch(waves) == expressive.encode_batch(waves)
    assert shared.devices == 4 and batches == [[0, 1, 2, 3]]


def test_long_audio_is_cut_and_each_piece_encoded_alone(expressive_folder, expressive, tmp_path):
    tokenizer = SpeechTokenizer.from_pretrained(
        edit_config(expressive_folder, tmp_path / "short", chunk_seconds=1.0)
    )
    wave = noise(2.05)  # the last piece is 50 ms, too short for units
    whole = tokenizer.encode(wave)
    pieces = [expressive.encode(wave[start : start + RATE]) for start in (0, RATE)]
    for name in ("hubert", "pitch", "style"):
        expected = np.concatenate([getattr(piece, name) for piece in pieces])
        np.testing.assert_array_equal(getattr(whole, name), expected)


@pytest.mark.slow
def test_over_a_hundred_seconds(base):
    wave = noise(230.03)
    units = base.encode(wave)
    pieces = [base.encode(wave[start : start + 100 * RATE]) for start in (0, 1600000, 3200000)]
    np.testing.assert_array_equal(units.hubert, np.concatenate([p.hubert for p in pieces]))
    assert len(base.decode(units)) == 640 * len(units.hubert)


@pytest.mark.parametrize("seconds", [0, 0.01, 0.0799])
def test_audio_under_80_ms_has_no_units(expressive, seconds):
    units = expressive.encode(noise(seconds))
    assert units == Units([], [], [])
    assert expressive.encode_string(noise(seconds)) == ""
    assert expressive.decode(units).shape == (0,)
    assert expressive.decode("").shape == (0,)


def test_silence_has_units_of_every_stream(expressive):
    units = expressive.encode(np.zeros(RATE, np.float32))
    assert (len(units.hubert), len(units.pitch), len(units.style)) == (24, 12, 1)
    assert np.isfinite(expressive.decode(units)).all()


def test_windows_give_the_audio_of_a_single_piece(expressive, monkeypatch):
    units = random_units(136)
    string = expressive.to_string(units)
    whole = [expressive.decode(units), expressive.decode(string)]
    monkeypatch.setattr(speech_tokenizer, "WINDOW_FRAMES", 75)
    for wave, item in zip(whole, (units, string), strict=True):
        np.testing.assert_allclose(expressive.decode(item), wave, atol=1e-5)


def test_units_keep_their_timing_and_strings_get_predicted_durations(base):
    units = base.encode(noise(1.3))
    string = base.to_string(units)
    count = string.count("[Hu")
    assert len(base.decode(units)) == 640 * len(units.hubert)
    assert len(base.decode(string, predict_durations=False)) == 640 * count
    predicted = base.decode(string)
    assert len(predicted) % 640 == 0 and len(predicted) >= 640 * count
    np.testing.assert_array_equal(base.decode(units, predict_durations=True), predicted)


def test_durations_of_a_recording_of_two_units_are_predicted_as_for_its_string(expressive):
    """Streams of equal length that are timed: lengths do not say whether units are of a string."""
    units = Units([5, 5], [3, 4], [1, 2])
    predicted = expressive.decode(units, predict_durations=True)
    np.testing.assert_array_equal(predicted, expressive.decode(expressive.to_string(units)))


def test_the_shortest_recording_with_units_is_decoded(expressive):
    units = expressive.encode(noise(0.08))  # one unit of 40 ms
    assert (len(units.hubert), units.timed) == (1, True)
    string = expressive.to_string(units)
    predicted = expressive.decode(units, predict_durations=True)
    np.testing.assert_array_equal(predicted, expressive.decode(string))


def test_units_of_a_string_are_decoded_as_the_string(expressive):
    string = "[St1][Pi3][Hu5][Hu6][Hu7][Pi4][Hu8]"
    units = units_lib.from_string(string)
    for predict in (None, True, False):
        wave = expressive.decode(string, predict_durations=predict)
        np.testing.assert_array_equal(expressive.decode(units, predict_durations=predict), wave)


def test_speakers_and_styles(base, expressive):
    units = base.encode(noise(0.5))
    default = base.decode(units)
    np.testing.assert_array_equal(default, base.decode(units, speaker_id=2, style_id=8))
    np.testing.assert_array_equal(default, base.decode(units, speaker_id="ex03"))
    for other in ({"speaker_id": "ex01"}, {"style_id": 9}):
        assert np.abs(base.decode(units, **other) - default).max() > 1e-4
    with pytest.raises(InputError, match="There is no speaker 'anna'; known are 0 to 3 or ex01"):
        base.decode(units, speaker_id="anna")
    with pytest.raises(InputError, match="There is no style '26'"):
        base.decode(units, style_id=26)
    with pytest.raises(InputError, match="no style to choose"):
        expressive.decode(expressive.encode(noise(0.5)), style_id=1)


def test_units_that_cannot_be_decoded_are_named(base, expressive):
    with pytest.raises(InputError, match="no code unit 501; known are 0 to 500"):
        base.decode("[Hu501]")
    with pytest.raises(InputError, match="no pitch unit 64"):
        expressive.decode(Units([1, 2], [64], [3]))
    with pytest.raises(InputError, match="needs pitch units"):
        expressive.decode("[Hu5]")
    with pytest.raises(InputError, match="'hello' is not a unit"):
        base.decode("[Hu5]hello")


def test_units_below_zero_are_left_out(base):
    np.testing.assert_allclose(
        base.decode(Units([3, -1, 4, -1])), base.decode(Units([3, 4])), atol=1e-6
    )


def test_a_base_model_writes_phonetic_units_alone(base):
    assert base.to_string(Units([5, 5, 6], [1, 2], [3])) == "[Hu5][Hu6]"


@pytest.mark.parametrize(
    "network", ["hubert", slow("quantizer"), slow("hifigan"), slow("pitch"), slow("style")]
)
def test_a_network_of_another_set_is_refused(expressive_folder, tmp_path, network):
    write_random_model(tmp_path / "other", "expressive", seed=1)
    mixed = tmp_path / "mixed"
    shutil.copytree(expressive_folder / "speech_tokenizer", mixed)
    shutil.rmtree(mixed / network)
    shutil.copytree(tmp_path / "other" / "speech_tokenizer" / network, mixed / network)
    with pytest.raises(
        InputError, match=f"'{network}' is not the one that this speech tokenizer was written"
    ):
        SpeechTokenizer.from_pretrained(mixed)


def test_half_copied_folders_are_named(base_folder, tmp_path):
    folder = tmp_path / "half"
    shutil.copytree(base_folder / "speech_tokenizer", folder)
    shutil.rmtree(folder / "hifigan")
    with pytest.raises(InputError, match="'hifigan' is missing"):
        SpeechTokenizer.from_pretrained(folder)
    (folder / "hifigan" / "params").mkdir(parents=True)
    with pytest.raises(InputError, match="hifigan"):
        SpeechTokenizer.from_pretrained(folder)
    with pytest.raises(InputError, match="has no speech tokenizer"):
        SpeechTokenizer.from_pretrained(tmp_path)


def test_without_a_vocoder_it_encodes_and_does_not_decode(base_folder, tmp_path):
    folder = tmp_path / "mute"
    shutil.copytree(base_folder / "speech_tokenizer", folder)
    shutil.rmtree(folder / "hifigan")
    model_folder.write_speech_tokenizer(folder, "base")
    mute = SpeechTokenizer.from_pretrained(folder)
    assert len(mute.encode(noise(0.5))) == 12
    with pytest.raises(InputError, match="has no vocoder"):
        mute.decode("[Hu5]")


def test_without_its_f0_network_the_error_names_its_conversion(expressive_folder):
    tokenizer = SpeechTokenizer.from_pretrained(expressive_folder, f0_method="fcpe")
    with pytest.raises(InputError, match="spirit-jax convert fcpe --weights"):
        tokenizer.encode(noise(0.5))
    with pytest.raises(InputError, match="f0_method is 'yin'"):
        SpeechTokenizer.from_pretrained(expressive_folder, f0_method="yin")


@pytest.mark.slow
def test_a_hundred_recordings_compile_at_most_eight_times_a_network(base_folder):
    tokenizer = SpeechTokenizer.from_pretrained(base_folder)
    lengths = [*np.geomspace(0.1, 16, 90), *np.geomspace(17, 100, 10)]
    for number, seconds in enumerate(lengths):
        units = tokenizer.encode(np.zeros(int(seconds * RATE), np.float32))
        if number % 5 == 0:
            tokenizer.decode(units)
            tokenizer.decode(tokenizer.to_string(units))
    for network in ("_hubert", "_vocode", "_durations"):
        assert getattr(tokenizer, network).func._cache_size() <= 8


def test_hops_defaults_and_chunks_act(expressive_folder, expressive, tmp_path):
    """Fields of the vocoder and the tokenizer that only the speech tokenizer reads."""
    units = random_units(49)
    wave = expressive.decode(units)
    for change in ({"pitch_hop": 640}, {"style_hop": 3200}, {"default_speaker": 0}):
        folder = tmp_path / next(iter(change))
        shutil.copytree(expressive_folder / "speech_tokenizer", folder)
        path = folder / "hifigan" / "config.json"
        (path.parent / "checksums.json").unlink()  # it is edited by hand
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        other = SpeechTokenizer.from_pretrained(folder).decode(units)
        assert np.abs(other - wave).max() > 1e-4
    with pytest.raises(InputError, match="chunk_seconds is 0"):
        SpeechTokenizer.from_pretrained(
            edit_config(expressive_folder, tmp_path / "bad", chunk_seconds=0)
        )
