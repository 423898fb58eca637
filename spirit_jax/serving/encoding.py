"""Encodes speech as it comes: one encoder for each response."""

import io
import struct
from collections.abc import Callable
from typing import Protocol

import numpy as np
import soundfile

from spirit_jax.audio import SAMPLE_RATE
from spirit_jax.errors import InputError

PCM_TYPE = f"audio/pcm; rate={SAMPLE_RATE}; channels=1; bits=16; endian=little"
# Of a WAV file of 16-bit mono samples whose length is not known yet: its sizes are the largest.
WAV_HEADER = struct.pack(
    "<4sI4s4sIHHIIHH4sI",
    *(b"RIFF", 0xFFFFFFFF, b"WAVE"),
    *(b"fmt ", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16),
    *(b"data", 0xFFFFFFFF),
)


class Encoder(Protocol):
    """Encodes the samples of one file."""

    def encode(self, wave: np.ndarray) -> bytes:
        """The bytes that are known after further samples, int16 mono at 16 kHz."""

    def finish(self) -> bytes:
        """The last bytes."""


class PcmEncoder:
    """Samples without a header, int16 in little-endian order."""

    def encode(self, wave: np.ndarray) -> bytes:
        """See `Encoder`."""
        return wave.astype("<i2").tobytes()

    def finish(self) -> bytes:
        """See `Encoder`."""
        return b""


class WavEncoder(PcmEncoder):
    """One header, which says that the file is as long as can be, and the samples."""

    def __init__(self):
        self._header = WAV_HEADER

    def encode(self, wave: np.ndarray) -> bytes:
        """See `Encoder`."""
        header, self._header = self._header, b""
        return header + super().encode(wave)

    def finish(self) -> bytes:
        """See `Encoder`."""
        return self._header


class FfmpegEncoder:
    """A format of FFmpeg's libraries."""

    def __init__(self, container: str, codec: str, **options: str):
        import av  # slow to import

        self._output = _Output()
        self._file = av.open(self._output, "w", container, options=options)
        self._stream = self._file.add_stream(codec, rate=SAMPLE_RATE)
        self._stream.codec_context.layout = "mono"
        self._samples = 0

    def encode(self, wave: np.ndarray) -> bytes:
        """See `Encoder`."""
        import av

        if len(wave):
            frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, self._samples
            self._samples += len(wave)
            self._file.mux(self._stream.encode(frame))
        return self._output.take()

    def finish(self) -> bytes:
        """See `Encoder`."""
        self._file.mux(self._stream.encode(None))
        self._file.close()
        return self._output.take()


class _Output:
    """A file that can only be written; what was written is taken out of it."""

    def __init__(self):
        self._data = io.BytesIO()

    def write(self, data: bytes) -> int:
        return self._data.write(data)

    def take(self) -> bytes:
        data, self._data = self._data.getvalue(), io.BytesIO()
        return data


class WholeEncoder:
    """A file whose header has its length; all of it is known at the end."""

    def __init__(self, container: str):
        self._container, self._parts = container, [np.zeros(0, np.int16)]

    def encode(self, wave: np.ndarray) -> bytes:
        """See `Encoder`."""
        self._parts.append(wave)
        return b""

    def finish(self) -> bytes:
        """See `Encoder`."""
        data = io.BytesIO()
        samples_t = np.concatenate(self._parts)
        soundfile.write(data, samples_t, SAMPLE_RATE, "PCM_16", format=self._container)
        return data.getvalue()


# (content type, encoder) by the names of OpenAI's response_format.
FORMATS: dict[str, tuple[str, Callable[[], Encoder]]] = {
    # Without a Xing header, which is written at the start after the end.
    "mp3": ("audio/mpeg", lambda: FfmpegEncoder("mp3", "libmp3lame", write_xing="0")),
    "opus": ("audio/ogg", lambda: FfmpegEncoder("ogg", "libopus", page_duration="20000")),
    "aac": ("audio/aac", lambda: FfmpegEncoder("adts", "aac")),
    "flac": ("audio/flac", lambda: FfmpegEncoder("flac", "flac")),
    "wav": ("audio/wav", WavEncoder),
    "pcm": (PCM_TYPE, PcmEncoder),
}
# Many readers need the length in the header, so these are sent in parts only on request.
WITH_LENGTH = ("flac", "wav")


def find_format(name: str, is_streamed: bool | None) -> tuple[str, Callable[[], Encoder]]:
    """The content type of a format, and a function that creates its encoder.

    Args:
      name: one of `FORMATS`.
      is_streamed: whether the bytes are sent while they are generated; by default, those of all
        formats but `WITH_LENGTH` are.

    Raises:
      InputError: the format is unknown.
    """
    if name not in FORMATS:
        raise InputError(f"'{name[:40]}' is not a format; known are {', '.join(FORMATS)}.")
    content_type, make = FORMATS[name]
    if name in WITH_LENGTH and not is_streamed:
        return content_type, lambda: WholeEncoder(name.upper())
    return content_type, make


def to_int16(wave: np.ndarray) -> np.ndarray:
    """Samples in -1..1 as int16; louder ones are clipped."""
    return np.clip(np.round(wave * 32768), -32768, 32767).astype(np.int16)
