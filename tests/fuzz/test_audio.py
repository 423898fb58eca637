"""Damaged audio files: valid samples or an `InputError`, never a silently shorter recording."""

import io

import numpy as np
import pytest
import soundfile

from fuzz.mutate import attempt, mutate_bytes, seeds
from spirit_jax.audio import load_audio

RATE = 16_000
SAMPLES = 4_000
FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("RF64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("W64", "PCM_16"),
    ("CAF", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
    ("MP4", "AAC"),
    ("WEBM", "OPUS"),
]


def encode(form, subtype):
    samples = 0.3 * np.sin(np.arange(SAMPLES) ** 1.2 / 9)
    if form in ("MP4", "WEBM"):
        from test_audio_files import encode_ffmpeg

        container, codec, rate = {
            "MP4": ("ipod", "aac", RATE),
            "WEBM": ("webm", "libopus", 48_000),
        }[form]
        return encode_ffmpeg(container, codec, samples, rate)
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=form, subtype=subtype)
    return file.getvalue()


@pytest.fixture(scope="module")
def files():
    return [encode(form, subtype) for form, subtype in FORMATS]


@seeds
def test_damaged_files_give_audio_or_an_input_error(seeds, files):
    for seed in seeds:
        mutant = mutate_bytes(files[seed % len(files)], seed)
        samples_t = attempt(lambda data=mutant: load_audio(data), seed)
        if samples_t is not None:
            assert samples_t.dtype == np.float32 and samples_t.ndim == 1
            assert np.isfinite(samples_t).all()


@seeds
def test_truncated_files_are_never_read_as_shorter_recordings(seeds, files):
    lengths = [len(load_audio(data)) for data in files]
    for seed in seeds:
        index = seed % len(files)
        data = files[index]
        cut = data[: np.random.default_rng(seed).integers(len(data))]
        samples_t = attempt(lambda data=cut: load_audio(data), seed)
        # In some formats the last bytes are padding or metadata, so no audio is lost.
        assert samples_t is None or len(samples_t) == lengths[index], (FORMATS[index], seed)
