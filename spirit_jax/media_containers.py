"""Finds recordings in containers of compressed audio, and checks that they are complete.

See `audio_containers`.
"""

import dataclasses
import struct

from spirit_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class FileSegment:
    """The bytes of a recording within a file.

    Attributes:
      start: first byte in the file.
      end: byte after the last.
      repairs: (position in the file, bytes) of header sizes that were never filled in.
      mpeg: (start, end) of MPEG audio in it; None if there is none.
      has_sound: whether the audio part is present; it may be empty.
    """

    start: int
    end: int
    repairs: tuple[tuple[int, bytes], ...] = ()
    mpeg: tuple[int, int] | None = None
    has_sound: bool = True


def check_size(present: int, promised: int) -> None:
    """Raises an `InputError` if fewer bytes are present than a header announces."""
    if present < promised:
        share = max(0, present) / promised
        raise InputError(
            f"is truncated: it has {max(0, present)} of {promised} bytes of audio ({share:.0%})."
        )


def find_ogg(data, start: int) -> FileSegment:
    """An Ogg link: pages of streams that begin together, until all have ended (RFC 3533)."""
    position, running, began = start, set(), False
    while (position := data.find(b"OggS", position)) >= 0 and position + 27 <= len(data):
        flags = data[position + 5]
        serial = bytes(data[position + 14 : position + 18])
        segments = data[position + 27 : position + 27 + data[position + 26]]
        end = position + 27 + data[position + 26] + sum(bytes(segments))
        if flags & 2 and began:  # another link
            break
        if end > len(data) or len(segments) < data[position + 26]:
            break
        began |= not flags & 2
        if flags & 2:
            running.add(serial)
        if flags & 4:
            running.discard(serial)
        position = end
        if not running and not data[position : position + 4] == b"OggS":
            return FileSegment(start, position)
    if running or not began:
        raise InputError(
            "is truncated: its last page does not end the recording (if it is complete, "
            "ffmpeg -i FILE -c copy NEW repairs it)."
        )
    return FileSegment(start, position if position >= 0 else len(data))


def find_mov(data, start: int) -> FileSegment:
    """MP4, M4A, MOV, 3GP: boxes."""
    position, names = start, []
    while position + 8 <= len(data):
        size, name = struct.unpack(">I4s", data[position : position + 8])
        if size == 1 and position + 16 <= len(data):
            (size,) = struct.unpack(">Q", data[position + 8 : position + 16])
        size = size or len(data) - position
        if size < 8 or (names and not name.isalnum() and not name.strip().isalnum()):
            break  # not a box: something was appended
        check_size(len(data) - position, size)
        names.append(name)
        position += size
    if b"moov" not in names:
        raise InputError("is truncated: its index (the box 'moov') is missing.")
    if names.count(b"moov") > 1:
        raise InputError("consists of several recordings; split the file.")
    return FileSegment(start, min(position, len(data)))


_EBML, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675


def find_matroska(data, start: int) -> FileSegment:
    """Matroska and WebM: elements. Live streams have segments and clusters of unknown size."""
    position, headers = start, 0
    while position < len(data):
        name, after = _read_vint(data, position, keep_marker=True)
        size, body = _read_vint(data, after) if after else (0, 0)
        if not body:
            if data[position] and len(data) - position < 12:
                raise InputError("is truncated: its last element is incomplete.")
            break  # not an element: something was appended
        headers += name == _EBML
        if size is not None:
            check_size(len(data) - body, size)
        position = body if name in (_SEGMENT, _CLUSTER) or size is None else body + size
    if headers > 1:
        raise InputError("consists of several recordings; split the file.")
    return FileSegment(start, min(position, len(data)))


def _read_vint(data, position: int, keep_marker: bool = False) -> tuple[int | None, int]:
    """(value, end) of an EBML number; the value None is "unknown", the end 0 means no number."""
    if position >= len(data) or not (first := data[position]):
        return 0, 0
    length = 9 - first.bit_length()
    value = int.from_bytes(data[position : position + length], "big")
    if position + length > len(data):
        return 0, 0
    if keep_marker:
        return value, position + length
    value &= (1 << 7 * length) - 1
    return None if value == (1 << 7 * length) - 1 else value, position + length


def find_asf(data, start: int) -> FileSegment:
    """ASF (WMA): objects with names of 16 bytes, and sizes of 8 bytes that include the header."""
    position = start
    while position + 24 <= len(data):
        (size,) = struct.unpack("<Q", data[position + 16 : position + 24])
        is_data = data[position : position + 4] == b"6&\xb2u"
        if size < 24 or (is_data and size <= 50):  # a live stream
            break
        if position > start and data[position : position + 4] == data[start : start + 4]:
            raise InputError("consists of several recordings; split the file.")
        check_size(len(data) - position, size)
        position += size
    return FileSegment(start, len(data))


def is_adts(head: bytes) -> bool:
    """Whether three bytes are the start of an AAC frame."""
    return len(head) == 3 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0 and head[2] >> 2 & 15 < 13


def find_adts(data, start: int) -> FileSegment:
    """AAC as ADTS frames, without a container."""
    position = start
    while position + 7 <= len(data) and is_adts(data[position : position + 3]):
        size = int.from_bytes(data[position + 3 : position + 6], "big") >> 5 & 0x1FFF
        check_size(len(data) - position, size)
        position += max(7, size)
    return FileSegment(start, position)


_AMR_BYTES = {
    b"#!AMR\n": (12, 13, 15, 17, 19, 20, 26, 31, 5, 6, 5, 5, 0, 0, 0, 0),
    b"#!AMR-WB\n": (17, 23, 32, 36, 40, 46, 50, 58, 60, 5, 0, 0, 0, 0, 0, 0),
}


def find_amr(data, start: int) -> FileSegment:
    for magic, sizes in _AMR_BYTES.items():
        if data[start : start + len(magic)] == magic:
            position = start + len(magic)
            while position < len(data) and data[position] != magic[0]:
                size = 1 + sizes[data[position] >> 3 & 15]
                check_size(len(data) - position, size)
                position += size
            if position < len(data):
                raise InputError("consists of several recordings; split the file.")
    return FileSegment(start, len(data))
