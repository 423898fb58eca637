"""Reading and writing audio: files, bytes and arrays; invalid audio is rejected."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from spirit_jax import audio
from spirit_jax.audio import MIN_SAMPLES, SAMPLE_RATE, load_audio, write_wav
from spirit_jax.errors import InputError

HALF_STEP = 1.01 / 2**15  # the rounding of 16-bit samples


def tone(rate, seconds=1.0, hertz=440.0, peak=0.5):
    times = np.arange(round(rate * seconds)) / rate
    return peak * np.sin(2 * np.pi * hertz * times)


def encode(samples, rate, form="WAV", subtype="PCM_16"):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


def loudest_hertz(samples):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return np.argmax(spectrum) * SAMPLE_RATE / len(samples)


# Forms of audio.


@pytest.mark.parametrize(
    ("form", "subtype"), [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16")]
)
def test_paths_and_bytes_give_the_samples(tmp_path, form, subtype):
    path = tmp_path / f"a.{form.lower()}"
    path.write_bytes(encode(tone(SAMPLE_RATE), SAMPLE_RATE, form, subtype))
    from_path = load_audio(path)
    assert from_path.dtype == np.float32 and from_path.shape == (SAMPLE_RATE,)
    np.testing.assert_allclose(from_path, tone(SAMPLE_RATE), atol=HALF_STEP)
    np.testing.assert_array_equal(load_audio(str(path)), from_path)
    np.testing.assert_array_equal(load_audio(path.read_bytes()), from_path)


@pytest.mark.parametrize(("form", "subtype"), [("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_lossy_files_are_read(form, subtype):
    samples = load_audio(encode(tone(SAMPLE_RATE), SAMPLE_RATE, form, subtype))
    assert len(samples) == SAMPLE_RATE
    assert abs(loudest_hertz(samples) - 440) <= 1


def test_an_array_is_read_as_16_khz_and_not_modified():
    samples = tone(SAMPLE_RATE).astype(np.float32)
    original = samples.copy()
    np.testing.assert_array_equal(load_audio(samples), original)
    np.testing.assert_array_equal(load_audio((samples, SAMPLE_RATE)), original)
    np.testing.assert_array_equal(samples, original)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 11_025.0])
@pytest.mark.parametrize("form", ["array", "bytes"])
def test_resampling_keeps_pitch_loudness_and_duration(rate, form):
    samples = tone(rate, seconds=1.5)
    given = (samples, rate) if form == "array" else encode(samples, int(rate))
    result = load_audio(given)
    assert abs(len(result) - 1.5 * SAMPLE_RATE) <= 1
    assert abs(loudest_hertz(result) - 440) <= 1
    middle = slice(1_000, len(result) - 1_000)
    np.testing.assert_allclose(
        result[middle], tone(SAMPLE_RATE, 1.5)[: len(result)][middle], atol=1e-3
    )


def test_frequencies_above_8_khz_are_removed():
    high = tone(44_100, hertz=11_000.0)
    assert np.abs(load_audio((high, 44_100))[1_000:-1_000]).max() < 1e-3


# Channels.


@pytest.fixture(scope="module")
def three_channels():
    return np.stack([tone(SAMPLE_RATE, hertz=100.0 * (i + 1)) for i in range(3)], axis=1)


@pytest.mark.parametrize("form", ["bytes", "time first", "time last", "with rate"])
def test_channels_are_averaged_or_picked(three_channels, form):
    given = {
        "bytes": encode(three_channels, SAMPLE_RATE, subtype="FLOAT"),
        "time first": three_channels,
        "time last": three_channels.T,
        "with rate": (three_channels, SAMPLE_RATE),
    }[form]
    np.testing.assert_allclose(load_audio(given), three_channels.mean(axis=1), atol=1e-6)
    for channel in range(3):
        picked = load_audio(given, channel=channel)
        np.testing.assert_allclose(picked, three_channels[:, channel], atol=1e-6)


@pytest.mark.parametrize("channel", [3, -1])
def test_a_missing_channel_is_rejected(three_channels, channel):
    with pytest.raises(InputError, match=f"the array.*3 channels.*no channel {channel}"):
        load_audio(three_channels, channel=channel)


# Numbers.


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([-(2**15), 0, 2**14], np.int16, [-1, 0, 0.5]),
        ([-(2**31), 0, 2**30], np.int32, [-1, 0, 0.5]),
        ([-128, 0, 64], np.int8, [-1, 0, 0.5]),
        ([0, 128, 192], np.uint8, [-1, 0, 0.5]),
        ([-1, 0, 0.5], np.float16, [-1, 0, 0.5]),
        ([-1, 0, 0.5], np.float64, [-1, 0, 0.5]),
    ],
)
def test_integers_are_scaled_by_their_range_and_floats_are_not(values, dtype, expected):
    samples = load_audio(np.array(values, dtype))
    assert samples.dtype == np.float32
    assert samples.tolist() == expected


def test_silence_stays_silent():
    assert not load_audio((np.zeros(8_000), 8_000)).any()
    assert len(load_audio((np.zeros(8_000), 8_000))) == SAMPLE_RATE


@pytest.mark.parametrize("shape", [(0,), (0, 1), (0, 2), (2, 0), (0, 0)])
@pytest.mark.parametrize("rate", [SAMPLE_RATE, 44_100])
def test_arrays_without_samples_give_no_samples(shape, rate):
    assert load_audio((np.zeros(shape), rate)).shape == (0,)


def test_a_file_without_samples_is_empty():
    assert load_audio(encode(np.zeros(0), SAMPLE_RATE)).shape == (0,)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_rejected(tmp_path, value):
    samples = tone(SAMPLE_RATE)
    samples[7] = value
    with pytest.raises(InputError, match="the array.*NaN or infinite"):
        load_audio(samples)
    path = tmp_path / "bad.wav"
    path.write_bytes(encode(samples, SAMPLE_RATE, subtype="FLOAT"))
    with pytest.raises(InputError, match="bad.wav.*NaN or infinite"):
        load_audio(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 4)), r"\(4, 4, 4\)"),
        (np.zeros((100, 100)), r"\(100, 100\)"),
        (np.float32(0.5), r"\(\)"),
        (np.array(["a"]), "type"),
        (np.zeros(9, bool), "bool"),
        (np.zeros(9, complex), "complex"),
        (None, "object"),
        ([[0.5], [0.5, 0.5]], "unequal"),
        ((np.zeros(9), 16_000, 2), "tuple of 3"),
    ],
)
def test_arrays_of_other_shapes_and_types_are_rejected(array, message):
    with pytest.raises(InputError, match=message):
        load_audio(array)


@pytest.mark.parametrize("rate", [0, -16_000, np.nan, np.inf, 1e9, 100.0, "fast", None])
def test_invalid_sampling_rates_are_rejected(rate):
    with pytest.raises(InputError, match=f"sampling rate of {rate}"):
        load_audio((np.zeros(9), rate))


# Files that are not audio.


@pytest.mark.parametrize("content", [b"", b"no audio", b"RIFF\x00\x00\x00\x00WAVE", b"\0" * 4_096])
def test_content_that_is_not_audio_is_rejected(tmp_path, content):
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(InputError, match="bad.wav"):
        load_audio(path)
    with pytest.raises(InputError, match="the bytes given"):
        load_audio(content)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.95])
@pytest.mark.parametrize(("form", "subtype"), [("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III")])
def test_a_truncated_file_is_rejected(tmp_path, form, subtype, part):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, SAMPLE_RATE)
    complete = encode(noise, SAMPLE_RATE, form, subtype)
    path = tmp_path / "cut.audio"
    path.write_bytes(complete[: int(part * len(complete))])
    with pytest.raises(InputError, match="cut.audio.*truncated"):
        load_audio(path)


def test_missing_files_are_rejected(tmp_path):
    for path in (tmp_path / "none.wav", str(tmp_path / "none.wav"), tmp_path, "", "x" * 5_000):
        with pytest.raises(InputError, match="there is no such file") as error:
            load_audio(path)
        assert str(path) in str(error.value)


@settings(deadline=None)
@given(st.binary(max_size=64), st.integers(0, 400))
def test_damaged_files_give_audio_or_an_input_error(damage, place):
    complete = encode(tone(SAMPLE_RATE, 0.05), SAMPLE_RATE, "FLAC")
    try:
        samples = load_audio(complete[:place] + damage + complete[place + len(damage) :])
    except InputError:
        return
    assert samples.ndim == 1 and np.isfinite(samples).all()


# Chunks.


@pytest.mark.parametrize(
    ("samples", "sizes"),
    [
        (0, []),
        (MIN_SAMPLES - 1, []),
        (MIN_SAMPLES, [MIN_SAMPLES]),
        (1_600_000, [1_600_000]),
        (1_600_000 + MIN_SAMPLES - 1, [1_600_000]),
        (1_600_000 + MIN_SAMPLES, [1_600_000, MIN_SAMPLES]),
        (4_000_000, [1_600_000, 1_600_000, 800_000]),
    ],
)
def test_audio_is_split_every_100_s_and_a_short_remainder_is_dropped(samples, sizes):
    wave = np.arange(samples, dtype=np.float32)
    pieces = list(audio.chunks(wave))
    assert [len(piece) for piece in pieces] == sizes
    np.testing.assert_array_equal(np.concatenate([wave[:0], *pieces]), wave[: sum(sizes)])


def test_chunks_of_another_length():
    assert [len(piece) for piece in audio.chunks(np.zeros(SAMPLE_RATE), 0.4)] == [
        6_400,
        6_400,
        3_200,
    ]


@pytest.mark.parametrize("seconds", [0, -1, 0.05])
def test_chunks_too_short_for_a_unit_are_rejected(seconds):
    with pytest.raises(InputError, match=f"{seconds} s"):
        list(audio.chunks(np.zeros(SAMPLE_RATE), seconds))


# Audio out.


def test_written_audio_reads_back(tmp_path):
    path = tmp_path / "deep" / "down" / "a.wav"
    samples = tone(SAMPLE_RATE, peak=0.9)
    write_wav(path, samples)
    assert soundfile.info(path).samplerate == SAMPLE_RATE
    assert soundfile.info(path).subtype == "PCM_16"
    np.testing.assert_allclose(load_audio(path), samples, atol=HALF_STEP)
    assert [p.name for p in path.parent.iterdir()] == ["a.wav"]


def test_loud_samples_are_clipped_and_do_not_wrap(tmp_path):
    write_wav(tmp_path / "a.wav", np.array([2.0, -2.0, 1.0, -1.0], np.float32))
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav"), [1, -1, 1, -1], atol=HALF_STEP)


def test_a_failed_write_keeps_the_previous_file(tmp_path, monkeypatch):
    write_wav(tmp_path / "a.wav", tone(SAMPLE_RATE))
    original = (tmp_path / "a.wav").read_bytes()

    def fail_halfway(path, data):
        with open(path, "wb") as file:
            file.write(data[:4])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", fail_halfway)
    with pytest.raises(InputError, match="a.wav.*disk is full"):
        write_wav(tmp_path / "a.wav", np.zeros(9))
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]
    assert (tmp_path / "a.wav").read_bytes() == original


def test_paths_that_cannot_be_written_are_rejected(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a.wav", tmp_path / "folder", "/"):
        with pytest.raises(InputError, match=f"{path}'?: "):
            write_wav(path, np.zeros(9))
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder"}
    assert not list((tmp_path / "folder").iterdir())


def test_a_segment_of_a_recording_has_its_samples(tmp_path):
    samples = tone(SAMPLE_RATE).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE, subtype="FLOAT")
    for start, seconds, first, last in (
        (0.0, 0.5, 0, 8000),
        (0.5, 0.5, 8000, 16000),
        (0.5, 0.53, 8000, 16000),
        (0.25, None, 4000, 16000),
        (0.0, 0.97, 0, 16000),
    ):
        piece = audio.AudioPiece(tmp_path / "a.wav", start, seconds)
        np.testing.assert_array_equal(load_audio(piece), samples[first:last])
    load_audio(piece)[:] = 0  # a copy: the next read is not affected
    np.testing.assert_array_equal(load_audio(piece), samples)
    for start, seconds in ((0.5, 0.6), (1.0, None), (2.0, 1.0), (-0.1, 0.5), (0.1, 0.0)):
        with pytest.raises(InputError, match="a.wav: has 1.00 s; there is no segment"):
            load_audio(audio.AudioPiece(tmp_path / "a.wav", start, seconds))
    for start, seconds in ((float("nan"), 0.5), (0.0, float("nan")), (0.0, float("inf"))):
        with pytest.raises(InputError, match="no segment"):
            load_audio(audio.AudioPiece(tmp_path / "a.wav", start, seconds))
    for name in ("missing.wav", "a\0.wav"):
        with pytest.raises(InputError, match="no such file"):
            load_audio(audio.AudioPiece(str(tmp_path / name)))
