"""Audio files as real programs write them: read completely or rejected, whatever headers say."""

import io
import struct
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from spirit_jax import audio
from spirit_jax.audio import load_audio
from spirit_jax.audio_containers import find_format
from spirit_jax.audio_decoding import decode
from spirit_jax.errors import InputError

RATE = 16_000
CASES = Path(__file__).parents[2] / "shared" / "cases" / "audio"

rng = np.random.default_rng(0)
NOISE = np.convolve(rng.standard_normal(RATE), np.ones(4) / 8, "same").clip(-1, 1)

FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "ULAW"),
    ("WAV", "IMA_ADPCM"),
    ("WAVEX", "FLOAT"),
    ("RF64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("W64", "PCM_16"),
    ("CAF", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]
HEADER_ONLY = [
    ("SVX", "PCM_16"),
    ("NIST", "PCM_16"),
    ("VOC", "PCM_16"),
    ("VOC", "PCM_U8"),
    ("AVR", "PCM_16"),
    ("HTK", "PCM_16"),
    ("SDS", "PCM_16"),
    ("WVE", "ALAW"),
    ("MPC2K", "PCM_16"),
    ("MAT4", "PCM_16"),
    ("MAT4", "DOUBLE"),
]


def encode(form, subtype, samples=NOISE, rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


def read_with_libsndfile(data):
    """The samples that libsndfile reads from a complete file."""
    prefix = (
        b"ID3\4\0\0\0\0\0\x0a" + bytes(10) if data[0] == 0xFF else b""
    )  # it recognises MP3 in memory only with an ID3 tag
    with soundfile.SoundFile(io.BytesIO(prefix + data)) as file:
        return file.read(dtype="float64", always_2d=True)


def encode_ffmpeg(container, codec, samples=NOISE, rate=RATE):
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.codec_context.layout = "mono"
        resampler = av.AudioResampler(stream.codec_context.format or "fltp", "mono", rate)
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        fifo = av.AudioFifo()
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            fifo.write(piece)
        size = stream.codec_context.frame_size or 1024
        while (piece := fifo.read(size, partial=True)) is not None:
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return file.getvalue()


def without_header_frame(mp3):
    """MP3 as recorders write it: frames without a header frame."""
    start = mp3.index(b"\xff", 1 + mp3.index(b"LAME"))
    while mp3[start + 1] != mp3[1]:
        start = mp3.index(b"\xff", start + 1)
    return mp3[start:]


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("speech.vbr_noxing.mp3", 86_733 / 16_000),
        ("speech.cbr_noxing.mp3", 86_733 / 16_000),
        ("joined3.mp3", 86_733 / 16_000),
        ("joined3.ogg", 86_733 / 16_000),
        ("data0.wav", 1.0),
    ],
)
def test_files_of_real_tools_have_the_recorded_length(name, seconds):
    if not CASES.is_dir():
        pytest.skip("the shared cases are missing")
    frame = 576 if name.endswith("noxing.mp3") else 0
    assert abs(len(load_audio(CASES / name)) - seconds * RATE) <= frame


@pytest.mark.parametrize(("form", "subtype"), FORMATS)
def test_complete_files_are_read_as_by_libsndfile(form, subtype):
    data = encode(form, subtype)
    for complete in (data, data + bytes(9) if form not in ("W64", "WAV") else data):
        name, samples_tc, rate = decode(complete)
        assert rate == RATE
        np.testing.assert_array_equal(samples_tc, read_with_libsndfile(data))
    assert abs(len(samples_tc) - RATE) < 1024  # block codecs pad the last block


@pytest.mark.parametrize(("form", "subtype"), HEADER_ONLY)
@pytest.mark.parametrize("samples", [NOISE, NOISE[:8001], NOISE[:0]], ids=len)
def test_complete_files_of_rare_formats_are_read_as_by_libsndfile(form, subtype, samples):
    data = encode(form, subtype, samples)
    try:
        expected = read_with_libsndfile(data)
    except soundfile.LibsndfileError:  # libsndfile cannot read everything that it writes
        pytest.skip("libsndfile cannot read it")
    np.testing.assert_array_equal(decode(data)[1], expected)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.97])
@pytest.mark.parametrize(("form", "subtype"), FORMATS + HEADER_ONLY)
def test_truncated_files_are_rejected(tmp_path, form, subtype, part):
    data = encode(form, subtype)
    path = tmp_path / "cut.audio"
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(InputError, match="cut.audio.*truncated"):
        load_audio(path)


@pytest.mark.parametrize(("form", "subtype"), FORMATS)
def test_concatenated_files_are_read_completely(form, subtype):
    first, second = encode(form, subtype), encode(form, subtype, NOISE[::-1][:9_000])
    joined = decode(first + second + first)[1]
    parts = [read_with_libsndfile(data) for data in (first, second, first)]
    np.testing.assert_array_equal(joined, np.concatenate(parts))


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_concatenated_files_of_two_rates_are_rejected(form):
    data = encode(form, None) + encode(form, None, rate=24_000)
    with pytest.raises(InputError, match="2 recordings.*rates"):
        load_audio(data)


def with_size(data, place, size, order="<I"):
    return data[:place] + struct.pack(order, size) + data[place + struct.calcsize(order) :]


@pytest.mark.parametrize(
    ("form", "mark", "size", "order"),
    [
        ("WAV", b"data", 0, "<I"),
        ("WAV", b"data", 0xFFFFFFFF, "<I"),
        ("WAV", b"data", 0x7FFFF000, "<I"),
        ("WAV", b"data", 0x80000000, "<I"),
        ("RF64", b"ds64\x1c\0\0\0........", 0, "<Q"),
        ("RF64", b"ds64\x1c\0\0\0........", 2**64 - 1, "<Q"),
        ("AIFF", b"SSND", 0, ">I"),
        ("AIFF", b"SSND", 8, ">I"),
        ("AU", b".snd....", 0, ">I"),
        ("AU", b".snd....", 0xFFFFFFFF, ">I"),
        ("CAF", b"data", -1, ">q"),
        ("W64", b"data............", 0, "<Q"),
    ],
)
def test_placeholder_sizes_in_headers_are_ignored(form, mark, size, order):
    complete = encode(form, "PCM_16")
    place = complete.index(mark.rstrip(b".")) + len(mark)
    samples_tc = decode(with_size(complete, place, size, order))[1]
    samples_tc = samples_tc[: len(NOISE)]  # with a CAF size of -1, the padding is read as audio
    np.testing.assert_array_equal(samples_tc, read_with_libsndfile(complete))


def test_flac_without_a_length_in_its_header_is_read():
    complete = encode("FLAC", "PCM_16")
    streamed = complete[:21] + bytes([complete[21] & 0xF0]) + bytes(4) + complete[26:]
    np.testing.assert_array_equal(decode(streamed)[1], read_with_libsndfile(complete))
    with pytest.raises(InputError):
        decode(streamed[:-500])


def test_flac_whose_last_byte_is_zero_is_read_completely():
    """The checksum of a frame is then zero already before that byte: of one file in 256."""
    encoded = ((n, encode("FLAC", "PCM_16", NOISE[:n])) for n in range(200, 3000))
    size, data = next((n, data) for n, data in encoded if data[-1] == 0)
    for copies, file in (
        (1, data),
        (1, data + bytes(3)),
        (1, data + b"TAG" + bytes(125)),
        (2, data * 2),
    ):
        _, samples_tc, _ = decode(file)
        assert len(samples_tc) == copies * size


def test_an_empty_recording_with_trailing_metadata_is_empty():
    empty = encode("WAV", "PCM_16", NOISE[:0]) + b"LIST\x04\0\0\0INFO"
    assert load_audio(empty).shape == (0,)


def test_trailing_metadata_and_padding_are_not_read_as_audio():
    complete = encode("WAV", "PCM_16")
    for trailer in (b"LIST\x05\0\0\0INFOa\0", b"\0" * 100, b"TAG" + bytes(125)):
        np.testing.assert_array_equal(decode(complete + trailer)[1], read_with_libsndfile(complete))


# MP3.


@pytest.fixture(scope="module")
def mp3():
    return encode("MP3", "MPEG_LAYER_III")


def test_mp3_without_a_header_frame_is_read_completely(mp3):
    samples_t = load_audio(without_header_frame(mp3))
    assert 0 <= len(samples_t) - RATE <= 576
    np.testing.assert_allclose(samples_t[:RATE], load_audio(mp3), atol=1e-5)


def test_mp3_is_recognised_by_content_and_not_by_suffix(tmp_path, mp3):
    path = tmp_path / "a.wav"
    path.write_bytes(mp3)
    np.testing.assert_array_equal(load_audio(path), load_audio(mp3))


def test_tags_and_padding_of_mp3_are_not_read_as_audio(mp3):
    cover = b"APIC" + mp3[:3000]  # a picture may contain bytes that look like frames
    size = bytes([0, 0, len(cover) >> 7, len(cover) & 127])
    id3 = b"ID3\4\0\0" + size + cover
    end = b"TAG" + bytes(125)
    expected = load_audio(mp3)
    for complete in (id3 + mp3, id3 + id3 + mp3 + end, mp3 + bytes(1000)):
        np.testing.assert_array_equal(load_audio(complete), expected)
    middle = load_audio(id3 + mp3 + end + id3 + mp3 + end)
    np.testing.assert_array_equal(middle, np.concatenate([expected, expected]))


def test_garbage_between_mp3_frames_loses_no_frame(mp3):
    plain = without_header_frame(mp3)
    place = plain.index(plain[:2], len(plain) // 2)
    damaged = plain[:place] + bytes(range(7)) * 11 + plain[place:]
    assert abs(len(load_audio(damaged)) - len(load_audio(plain))) <= 576


def test_an_mp3_shorter_than_its_header_frame_says_is_rejected(mp3):
    frame = len(mp3) - len(without_header_frame(mp3))
    with pytest.raises(InputError, match="truncated"):
        load_audio(mp3[: frame + (len(mp3) - frame) // 2])


def test_mp3_in_wav_is_read(mp3):
    body = without_header_frame(mp3)
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 4000, 1, 0, 12, 1, 2, 144, 1, 1393)
    chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form
    chunks += b"data" + struct.pack("<I", len(body)) + body
    samples_t = load_audio(b"RIFF" + struct.pack("<I", len(chunks)) + chunks)
    np.testing.assert_array_equal(samples_t, load_audio(body))


def test_libraries_print_nothing(mp3, capfd):
    load_audio(mp3 + mp3)
    cuts = [mp3[:size] for size in range(1, 3000, 7)]
    for data in (
        *cuts,
        mp3 + encode("WAV", "PCM_16"),
        mp3[: len(mp3) // 2],
        encode_ffmpeg("mp4", "aac")[:-50],
    ):
        with pytest.raises(InputError):
            load_audio(data)
    assert capfd.readouterr() == ("", "")


# Formats that only FFmpeg reads.


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [
        ("ipod", "aac", 16_000),
        ("mp4", "aac", 44_100),
        ("ipod", "alac", 16_000),
        ("webm", "libopus", 48_000),
        ("matroska", "aac", 16_000),
        ("adts", "aac", 16_000),
        ("caf", "alac", 16_000),
    ],
)
def test_recordings_of_phones_and_browsers_are_read(container, codec, rate):
    data = encode_ffmpeg(container, codec, rate=rate)
    samples_t = load_audio(data)
    assert abs(len(samples_t) - RATE) <= 2 * 1024 * RATE / rate
    if container != "adts":  # which does not state its delay
        near = samples_t[2000:14_000], NOISE[2000:14_000]
        assert np.corrcoef(*near)[0, 1] > (0.99 if codec == "alac" else 0.7)
    for part in (0.4, 0.9):
        with pytest.raises(InputError):
            load_audio(data[: int(part * len(data)) + 1])


def with_codec_delay(webm, nanoseconds):
    """WebM with another CodecDelay; FFmpeg 5 writes a wrong one for rates other than 48 kHz."""
    start = webm.index(b"\x56\xaa\x83") + 3
    return webm[:start] + nanoseconds.to_bytes(3, "big") + webm[start + 3 :]


@pytest.mark.parametrize(
    ("container", "nanoseconds"),
    [("webm", None), ("webm", 6_500_000), ("webm", 3_250_000), ("webm", 0), ("mp4", None)],
)
def test_opus_has_the_same_samples_in_every_container(container, nanoseconds):
    data = encode_ffmpeg(container, "libopus", rate=24_000)
    if nanoseconds is not None:
        data = with_codec_delay(data, nanoseconds)
    samples_t, ogg_t = load_audio(data), load_audio(encode_ffmpeg("ogg", "libopus", rate=24_000))
    assert len(samples_t) >= len(ogg_t) == RATE  # in MP4 the end of the last frame is kept
    np.testing.assert_allclose(samples_t[: RATE - 200], ogg_t[: RATE - 200], atol=0.02)


def test_concatenated_files_that_cannot_be_separated_are_rejected():
    data = encode_ffmpeg("ipod", "aac")
    with pytest.raises(InputError, match="several recordings"):
        load_audio(data + data)


@pytest.mark.parametrize(
    ("form", "name"),
    [("WAV", b"data"), ("AIFF", b"SSND"), ("SVX", b"BODY"), ("CAF", b"data"), ("W64", b"data")],
)
def test_files_with_several_audio_chunks_are_rejected(form, name):
    data = encode(form, "PCM_16")
    data += data[data.index(name) :]
    if form == "W64":  # its header states where the file ends
        data = data[:16] + struct.pack("<Q", len(data)) + data[24:]
    with pytest.raises(InputError, match="several chunks of audio"):
        load_audio(data)


def test_telephone_codecs_in_wav_are_read():
    samples_t = load_audio(encode("WAV", "GSM610"))
    assert RATE <= len(samples_t) < RATE + 320


# Values and lengths.


@pytest.mark.parametrize("form", ["array", "file", "other rate"])
def test_values_too_large_for_float32_are_rejected(form):
    samples = NOISE.copy()
    samples[5] = 1e300
    given = {
        "array": samples,
        "file": encode("WAV", "DOUBLE", samples),
        "other rate": (samples, 8_000),
    }[form]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=r"1e\+300"):
            load_audio(given)


@pytest.mark.parametrize("form", ["array", "file"])
def test_floats_in_the_range_of_integers_are_rejected(form):
    unscaled = 32_768 * NOISE
    with pytest.raises(InputError, match="expected -1..1"):
        load_audio(unscaled if form == "array" else encode("WAV", "FLOAT", unscaled))
    assert np.abs(load_audio(4 * NOISE)).max() > 1  # loud floats are kept


def test_seconds_are_those_of_the_decoded_audio(tmp_path, mp3):
    path = tmp_path / "a.mp3"
    path.write_bytes(mp3 + mp3)
    assert audio.seconds(path) == 2.0


def test_suffixes_are_those_of_readable_formats():
    assert {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".webm"} <= set(audio.SUFFIXES)
    assert ".raw" not in audio.SUFFIXES and ".txt" not in audio.SUFFIXES


def with_picture(mp3):
    """An MP3 with an ID3 tag much larger than its audio, as with a cover picture."""
    size = 4 * len(mp3)
    digits = bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + digits + bytes(size) + mp3


def test_mp3_with_a_large_picture_has_the_same_length(mp3):
    once = len(load_audio(mp3))
    assert len(load_audio(with_picture(mp3))) == once
    assert len(load_audio(2 * with_picture(mp3))) == 2 * once
    bare = with_picture(without_header_frame(mp3))
    assert len(load_audio(bare)) == len(load_audio(without_header_frame(mp3)))
    with pytest.raises(InputError, match="truncated"):
        load_audio(with_picture(mp3)[: -len(mp3) // 2])


@pytest.mark.parametrize("form", ["AVR", "AIFF"])
def test_samples_that_look_like_mpeg_frames_are_read_as_samples(form):
    frame = b"\xff\xfb\x10\xc4" + bytes(100)  # 32 kbit/s at 44.1 kHz, 104 bytes
    samples = np.frombuffer(150 * frame, np.int8).astype(np.int16)
    data = encode(form, "PCM_S8", samples << 8)
    assert find_format(data)
    assert len(load_audio(data)) == len(load_audio((samples, RATE)))


@pytest.mark.parametrize(("form", "header"), [("AVR", 128), ("MPC2K", 42)])
def test_truncated_headers_are_not_read_as_empty_recordings(form, header):
    data = encode(form, "PCM_16", np.stack([NOISE, NOISE], 1))
    for size in (header - 1, len(data) // 2, len(data) - 4):
        with pytest.raises(InputError, match="truncated"):
            load_audio(data[:size])


JOINED = [
    "WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "W64", "CAF", "RF64", "NIST", "AVR", "WVE",
    "MPC2K", "MAT4", "VOC",
]  # fmt: skip


@pytest.mark.parametrize("first", JOINED)
def test_content_after_a_recording_is_never_silently_dropped(first):
    subtypes = {"WVE": "ALAW", "MP3": None, "OGG": "VORBIS"}
    data = {form: encode(form, subtypes.get(form, "PCM_16")) for form in JOINED}
    for second in JOINED:
        if second != first and {first, second} != {"WAV", "RF64"}:  # which are the same format
            with pytest.raises(InputError, match="several recordings|after its audio|not audio"):
                load_audio(data[first] + data[second])
    with pytest.raises(InputError, match="after its audio"):
        load_audio(data[first] + b"rubbish of a downloader")


@pytest.mark.parametrize("form", ["PAF", "PVF", "IRCAM", "XI", "MAT5"])
def test_formats_without_a_stored_length_are_rejected_by_name(form):
    with pytest.raises(InputError, match=f"format {form}"):
        load_audio(encode(form, "DPCM_16" if form == "XI" else "PCM_16"))


@pytest.mark.parametrize("channel", ["0", 0.0, True])
def test_channels_that_are_not_integers_are_rejected(channel):
    with pytest.raises(InputError, match="channel"):
        load_audio(encode("WAV", "PCM_16"), channel)
