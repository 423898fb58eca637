"""Finds the end of a FLAC stream by the checksums of its frames (RFC 9639)."""

import re
from collections.abc import Iterator

from spirit_jax.errors import InputError

_LONGEST = 1 << 20  # bytes of a frame; frames of speech have some thousands
_SYNC = re.compile(b"\xff[\xf8\xf9]")


def find_ends(data, start: int, end: int) -> list[int]:
    """Possible ends of the last frame, by its checksum.

    A frame does not contain its length, and its checksum has only 16 bits. So positions within the
    frame can look like its end; the right one is among those returned.

    Args:
      data: the bytes of the file.
      start: of the stream.
      end: position that the stream cannot exceed.

    Returns:
      The positions in order; only `end` if there is no frame.

    Raises:
      InputError: the last frame is incomplete.
    """
    last = next(_headers_from_end(data, start, end), None)
    if last is None:
        return [end]
    checksum, ends = 0, []
    for position, byte in enumerate(bytes(data[last : min(end, last + _LONGEST)]), last + 1):
        checksum = (checksum << 8 & 0xFFFF) ^ _TABLE_16[checksum >> 8 ^ byte]
        if checksum == 0:
            # If the second byte of the checksum is zero, the sum is zero already before that byte.
            # Libraries ignore a zero after the last frame, so one that follows is included.
            is_zero_next = position < end and data[position] == 0
            ends.append(position + is_zero_next)
    if not ends:
        raise InputError("is truncated or damaged: its last frame is incomplete.")
    return ends


def _headers_from_end(data, start: int, end: int) -> Iterator[int]:
    """The starts of frames, by the checksums of their headers, from last to first."""
    block = 1 << 16
    for low in range(max(start, end - block), start - block, -block):
        low = max(low, start)
        matches = _SYNC.finditer(data, low, min(end, low + block + 1))
        for position in reversed([match.start() for match in matches]):
            if _is_header(data, position, end):
                yield position


def _is_header(data, position: int, end: int) -> bool:
    if position + 6 > end or data[position + 2] >> 4 == 0 or data[position + 2] & 15 == 15:
        return False
    if data[position + 3] >> 4 > 10 or data[position + 3] & 1:
        return False
    first, size = data[position + 4], 5
    if first >= 0x80:
        size += max(0, 7 - (first ^ 0xFF).bit_length())
    size += {6: 1, 7: 2}.get(data[position + 2] >> 4, 0)
    size += {12: 1, 13: 2, 14: 2}.get(data[position + 2] & 15, 0)
    checksum = 0
    for byte in data[position : min(position + size + 1, end)]:
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
