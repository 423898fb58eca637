"""Finds and decodes the frames of MPEG audio (MP3, MP2, MP1).

An MP3 file is a sequence of frames. Only some files give their number, in a Xing, Info or VBRI
header frame, and concatenated files have several sequences. So the frames are counted.
Source: ISO/IEC 11172-3 and 13818-3; the header frames as LAME writes them.
"""

import dataclasses
import functools
import re
import struct
from collections.abc import Iterator

import numpy as np

from spirit_jax import files
from spirit_jax.errors import InputError

# Delays of the codec in samples: an MP3 begins with that much silence.
DECODER_DELAY = 529
ENCODER_DELAY = 576  # default of files without this number; LAME's, which most programs use
MAX_LEADING = 4096  # bytes of other data before the first frame

_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_HEADER_MARK = re.compile(b"Xing|Info|VBRI")
_KILOBITS = {  # (MPEG 1, layer): by index
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_KILOBITS[False, 3] = _KILOBITS[False, 2]


@dataclasses.dataclass(frozen=True)
class Header:
    """The header of a frame, its first four bytes.

    Attributes:
      mpeg1: True for MPEG 1, False for MPEG 2 and 2.5.
      layer: 1, 2 or 3.
      rate: in Hz.
      channels: 1 or 2.
      size: of the frame in bytes; 0 if it is not given (free format).
      padding: padding bytes, included in the size.
    """

    mpeg1: bool
    layer: int
    rate: int
    channels: int
    size: int
    padding: int

    @functools.cached_property
    def kind(self) -> tuple:
        """The properties that all frames of a stream share."""
        return self.mpeg1, self.layer, self.rate, self.channels

    @property
    def samples(self) -> int:
        """Samples per channel of a frame."""
        return {1: 384, 2: 1152, 3: 1152 if self.mpeg1 else 576}[self.layer]

    @property
    def side_bytes(self) -> int:
        """Bytes of a layer 3 frame's side information."""
        return ((17, 32) if self.mpeg1 else (9, 17))[self.channels - 1]


@dataclasses.dataclass
class MpegStream:
    """A sequence of frames from one encoder.

    Attributes:
      header: of its first frame.
      start: position in the file, including its header frame.
      frames: (start, end) positions of the frames in the file, without the header frame.
      delay: samples at the start that the codec added.
      padding: samples at the end that the codec added.
      promised: number of frames in the header frame; 0 if unknown.
      promised_bytes: number of bytes in the header frame, which includes itself; 0 if unknown.
      header_bytes: size of the header frame; 0 without one.
      free: whether it is in free format, which FFmpeg does not decode.
    """

    header: Header
    start: int
    frames: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    delay: int = 0
    padding: int = 0
    promised: int = 0
    promised_bytes: int = 0
    header_bytes: int = 0
    free: bool = False

    @property
    def coded(self) -> int:
        """Samples that a decoder returns."""
        return len(self.frames) * self.header.samples

    @property
    def samples(self) -> int:
        """Samples of the recording."""
        return max(0, self.coded - self.delay - self.padding)

    @property
    def is_whole(self) -> bool:
        """Whether all frames or bytes that the header frame announces are present."""
        counted = self.header_bytes + sum(end - start for start, end in self.frames)
        return len(self.frames) >= self.promised or 0 < self.promised_bytes <= counted

    def trim(self, samples_tc: np.ndarray) -> np.ndarray:
        """Decoded samples without delay and padding."""
        return samples_tc[self.delay : self.delay + self.samples]


def find_streams(data) -> list[MpegStream]:
    """The streams of a file, in order; empty if it is not MPEG audio.

    Args:
      data: the bytes of the file.

    Raises:
      InputError: a frame is incomplete, or frames are missing.
    """
    streams: list[MpegStream] = []
    covered = 0
    for position, end, header, is_free in _frames(data):
        covered += end - position
        if header is None:  # a tag; with a picture it may be larger than the audio
            continue
        if end > len(data):  # the last frame is incomplete
            if streams and streams[-1].promised and streams[-1].is_whole:
                break
            raise InputError(
                f"is truncated: its last frame has {len(data) - position} of "
                f"{end - position} bytes."
            )
        stream = _read_header_frame(data, position, header)
        if stream is not None:
            streams.append(stream)
            continue
        if not streams or streams[-1].header.kind != header.kind or _is_complete(streams[-1]):
            delay = _default_delay(data[position:end], header)
            streams.append(MpegStream(header, position, delay=delay))
        streams[-1].free |= is_free
        streams[-1].frames.append((position, end))
    for stream in streams:
        if not stream.is_whole:
            raise InputError(
                f"is truncated: it has {len(stream.frames)} of {stream.promised} frames."
            )
    return [stream for stream in streams if stream.frames] if 2 * covered > len(data) else []


def decode(data, stream: MpegStream) -> np.ndarray:
    """The samples of a stream, float64 (t, channels); damaged frames become silence."""
    if stream.free:
        raise InputError("is MP3 in free format, which is not supported; convert it to WAV.")
    import av  # slow to import

    codec = av.CodecContext.create(f"mp{stream.header.layer}float", "r")
    shape = stream.header.samples, stream.header.channels
    blocks = []
    for start, end in stream.frames:
        try:
            decoded = codec.decode(av.Packet(bytes(data[start:end])))
        except av.FFmpegError as error:  # such as a frame that needs bits of a missing frame
            if files.find_resource_error(error):
                raise files.unreadable("a frame", error, "is damaged.") from error
            decoded = []
        arrays = [frame.to_ndarray().T for frame in decoded]
        block_tc = arrays[0] if len(arrays) == 1 else np.zeros(shape)
        blocks.append(block_tc if block_tc.shape == shape else np.zeros(shape))
    return stream.trim(np.concatenate(blocks).astype(np.float64))


def _is_complete(stream: MpegStream) -> bool:
    """Whether the next frame belongs to another stream."""
    # Some encoders count the header frame and some do not, so one more frame is accepted.
    return 0 < stream.promised < len(stream.frames)


def _frames(data) -> Iterator[tuple[int, int, Header | None, bool]]:
    """(start, end, header, is free format) of every frame; the last may exceed the file.

    Tags are included, with None as header.
    """
    position, kind, free_size, in_step = 0, None, 0, False
    while 0 <= position <= len(data) - 4:
        if size := tag_size(data, position):
            yield position, min(position + size, len(data)), None, False
            position += size
            continue
        header = _parse_header(data, position)
        is_free = header is not None and not header.size
        if header is not None:
            if is_free:
                free_size = free_size or _measure_free(data, position, header)
                header = dataclasses.replace(header, size=free_size + header.padding)
            known = in_step and header.kind == kind
            if header.size > 4 and (known or _is_followed(data, position, header)):
                yield position, position + header.size, header, is_free
                position += header.size
                kind, in_step = header.kind, True
                continue
        if kind is None and position > MAX_LEADING + 4:
            return
        position, in_step = data.find(b"\xff", position + 1), False


def tag_size(data, position: int) -> int:
    """Size of the ID3, APE or Lyrics3 tag at a position of a file; 0 if there is none."""
    if data[position] not in b"IATL":
        return 0
    start = bytes(data[position : position + 32])
    if start.startswith(b"ID3") and len(start) >= 10 and max(start[6:10]) < 128:
        size = sum(byte << shift for byte, shift in zip(start[6:10], (21, 14, 7, 0), strict=True))
        return 10 + size + (10 if start[5] & 0x10 else 0)
    if start.startswith(b"APETAGEX") and len(start) == 32:
        size, _, flags = struct.unpack("<III", start[12:24])
        return 32 + (size if flags & 0x20000000 else 0)  # of a footer, the tag is before it
    if start.startswith(b"TAG") and position + 128 <= len(data):
        return 128
    if start.startswith(b"LYRICSBEGIN"):
        end = max(data.find(word, position) for word in (b"LYRICS200", b"LYRICSEND"))
        return end + 9 - position if end > 0 else 0
    return 0


def _parse_header(data, position: int) -> Header | None:
    return _parse_word(int.from_bytes(data[position : position + 4], "big"))


@functools.lru_cache(4096)  # a file has few different headers
def _parse_word(word: int) -> Header | None:
    version, layer = word >> 19 & 3, 4 - (word >> 17 & 3)
    bit_rate, rate, mode = word >> 12 & 15, word >> 10 & 3, word >> 6 & 3
    if word >> 21 != 0x7FF or version == 1 or layer == 4 or bit_rate == 15 or rate == 3:
        return None
    mpeg1, hz = version == 3, _RATES[version][rate]
    bits = 1000 * _KILOBITS[mpeg1, layer][bit_rate]
    padding = (word >> 9 & 1) * (4 if layer == 1 else 1)
    if layer == 1:
        size = 12 * bits // hz * 4
    else:
        size = (144 if mpeg1 or layer == 2 else 72) * bits // hz
    channels = 1 if mode == 3 else 2
    return Header(mpeg1, layer, hz, channels, size + padding if bits else 0, padding)


def _is_followed(data, position: int, header: Header) -> bool:
    """Whether another frame, a tag or the end of the file follows a frame."""
    end = position + header.size
    if end >= len(data) - 4:
        return end == len(data)
    following = _parse_header(data, end)
    same = following is not None and following.kind == header.kind
    return same or tag_size(data, end) > 0


def _measure_free(data, position: int, header: Header) -> int:
    """Size of a frame in free format without padding: the distance to the next such header."""
    place = position
    while 0 < (place := data.find(data[position : position + 2], place + 4)) < position + 16_384:
        following = _parse_header(data, place)
        if following is not None and following.kind == header.kind and not following.size:
            return place - position - header.padding
    return 0


def _read_header_frame(data, position: int, header: Header) -> MpegStream | None:
    """The stream that a header frame describes; None if the frame has audio."""
    if header.layer != 3 or not _HEADER_MARK.search(data, position + 13, position + 42):
        return None
    frame = bytes(data[position : position + header.size])
    delay = ENCODER_DELAY + DECODER_DELAY
    stream = MpegStream(header, position, delay=delay, header_bytes=len(frame))
    if frame[36:40] == b"VBRI" and len(frame) >= 54:
        stream.promised_bytes, stream.promised = struct.unpack(">II", frame[46:54])
        return stream
    for place in (4 + header.side_bytes, 6 + header.side_bytes):  # the second with a checksum
        if frame[place : place + 4] in (b"Xing", b"Info"):
            break
    else:
        return None
    flags = int.from_bytes(frame[place + 4 : place + 8], "big")
    place += 8
    for bit, size in ((1, 4), (2, 4), (4, 100), (8, 4)):
        if flags & bit:
            value = int.from_bytes(frame[place : place + 4], "big")
            stream.promised = value if bit == 1 else stream.promised
            stream.promised_bytes = value if bit == 2 else stream.promised_bytes
            place += size
    if frame[place : place + 4].strip(b"\0") and len(frame) >= place + 24:  # LAME's, Lavf's, ...
        both = int.from_bytes(frame[place + 21 : place + 24], "big")
        stream.delay = (both >> 12) + DECODER_DELAY
        stream.padding = max(0, (both & 0xFFF) - DECODER_DELAY)
    return stream


def _default_delay(frame, header: Header) -> int:
    """The delay of a stream without a header frame; 0 if it begins within a recording."""
    if header.layer != 3:
        return 0
    frame = bytes(frame)
    place = 4 if frame[1] & 1 else 6
    earlier = int.from_bytes(frame[place : place + 2], "big") >> (7 if header.mpeg1 else 8)
    return 0 if earlier else ENCODER_DELAY + DECODER_DELAY
