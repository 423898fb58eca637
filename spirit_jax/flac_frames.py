"""Where a FLAC stream ends: its frames carry their numbers and checksums (RFC 9639)."""

import re
from collections.abc import Iterator

from spirit_jax.errors import InputError

_LONGEST = 1 << 20  # bytes of a frame; those of speech have some thousands
_SYNC = re.compile(b"\xff[\xf8\xf9]")


def find_ends(data, start: int, end: int) -> list[int]:
    """Where the last frame may end, by its checksum; what is behind it is no part of the stream.

    The checksum has 16 bits and a frame does not say how long it is, so a place within the frame
    can look like its end; the right one is among them.

    Args:
      data: the bytes of the file.
      start: of the stream in them.
      end: the place that the stream cannot go beyond.

    Returns:
      the places in order; `end` alone if there is no frame.

    Raises:
      InputError: the last frame is not whole.
    """
    last = next(_headers_from_end(data, start, end), None)
    if last is None:
        return [end]
    checksum, ends = 0, []
    for position, byte in enumerate(bytes(data[last : min(end, last + _LONGEST)]), last + 1):
        checksum = (checksum << 8 & 0xFFFF) ^ _TABLE_16[checksum >> 8 ^ byte]
        if checksum == 0:
            ends.append(position)
    if not ends:
        raise InputError("is cut short or damaged: its last frame is not whole.")
    return ends


def _headers_from_end(data, start: int, end: int) -> Iterator[int]:
    """Where frames begin, by the checksums of their headers, the last first."""
    block = 1 << 16
    for low in range(max(start, end - block), start - block, -block):
        low = max(low, start)
        places = [match.start() for match in _SYNC.finditer(data, low, min(end, low + block + 1))]
        for place in reversed(places):
            if _is_header(data, place, end):
                yield place


def _is_header(data, place: int, end: int) -> bool:
    if place + 6 > end or data[place + 2] >> 4 == 0 or data[place + 2] & 15 == 15:
        return False
    if data[place + 3] >> 4 > 10 or data[place + 3] & 1:
        return False
    first, size = data[place + 4], 5
    if first >= 0x80:
        size += max(0, 7 - (first ^ 0xFF).bit_length())
    size += {6: 1, 7: 2}.get(data[place + 2] >> 4, 0)
    size += {12: 1, 13: 2, 14: 2}.get(data[place + 2] & 15, 0)
    checksum = 0
    for byte in data[place : min(place + size + 1, end)]:
        checksum = _TABLE_8[checksum ^ byte]
    return checksum == 0


def _make_table(polynomial: int, bits: int) -> list[int]:
    table = []
    for value in range(256):
        value <<= bits - 8
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> (bits - 1) & 1 else 0)
        table.append(value & ((1 << bits) - 1))
    return table


_TABLE_8 = _make_table(0x107, 8)
_TABLE_16 = _make_table(0x18005, 16)
