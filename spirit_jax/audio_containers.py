"""Finds the recordings in an audio file, and checks that they are complete.

Libraries read a truncated file as a shorter recording, and of concatenated files only the first.
So the sizes in each container's headers are compared with the file before anything is decoded.
"""

import re
import struct
from collections.abc import Callable, Iterator

from spirit_jax import flac_frames, media_containers, mpeg_audio
from spirit_jax.errors import InputError
from spirit_jax.media_containers import FileSegment, check_size


def find_format(data) -> str:
    """FFmpeg's name of a file's container, from its first bytes; "" if unknown."""
    head = bytes(data[:32])
    for name, (offset, magic, starts) in _MAGIC.items():
        if head[offset:].startswith(magic) and head.startswith(starts):
            return name
    if head[4:8] in _MP4_BOXES:
        return "mov"
    return "aac" if media_containers.is_adts(head[:3]) else ""


def find_pieces(data, name: str) -> list[FileSegment]:
    """The recordings of a file, in order: one, or several if files were concatenated.

    Args:
      data: the bytes of the file.
      name: of its container; see `find_format`.

    Raises:
      InputError: the file is truncated, or has several recordings that cannot be separated.
    """
    find_piece = _FINDERS.get(name)
    if find_piece is None:
        return [FileSegment(0, len(data))]
    pieces, start = [], 0
    while start < len(data) and (start == 0 or find_format(data[start : start + 32]) == name):
        pieces.append(find_piece(data, start))
        start = skip_padding(data, pieces[-1].end)
    check_rest(data, start, name)
    return pieces


def skip_padding(data, position: int) -> int:
    """The position after zeros and tags (ID3, APE, Lyrics3) at a position of a file."""
    while position < len(data):
        size = _ZEROS.match(data, position).end() - position
        size = size or mpeg_audio.tag_size(data, position)
        if not size:
            break
        position += size
    return min(position, len(data))


def check_rest(data, position: int, name: str) -> None:
    """Raises an `InputError` if the file has anything after its recordings.

    Args:
      data: the bytes of the file.
      position: end of the recordings.
      name: of their container.
    """
    if position >= len(data):
        return
    other = find_format(data[position : position + 32])
    if not other and mpeg_audio.find_streams(data[position:]):
        other = "mp3"
    if other:
        raise InputError(
            f"consists of several recordings, {name} and then {other}; split the file."
        )
    raise InputError(
        f"has {len(data) - position} bytes after its audio (is the size in its header right?); "
        "convert it, or cut them off."
    )


_ONE_BY_ONE = b"\1\0\0\0" * 2  # the size of the first array of MAT4, the sampling rate
_MAGIC = {  # offset of the magic bytes, the magic bytes, and the start of the file
    "wav": (8, b"WAVE", (b"RIFF", b"RIFX", b"RF64", b"BW64")),
    "aiff": (8, b"AIF", b"FORM"),
    "svx": (8, (b"8SVX", b"16SV"), b"FORM"),
    "w64": (0, b"riff\x2e\x91\xcf\x11", b""),
    "au": (0, b".snd", b""),
    "caf": (0, b"caff", b""),
    "flac": (0, b"fLaC", b""),
    "ogg": (0, b"OggS", b""),
    "nistsphere": (0, b"NIST_1A", b""),
    "voc": (0, b"Creative Voice File\x1a", b""),
    "avr": (0, b"2BIT", b""),
    "wve": (0, b"ALawSoundFile**\0", b""),
    "mpc2k": (0, b"\1\4", b""),
    "pvf": (0, b"PVF1", b""),
    "paf": (0, b" paf", b""),
    "fap": (0, b"fap ", b""),
    "mat4": (0, (bytes(4) + _ONE_BY_ONE, b"\0\0\3\xe8" + _ONE_BY_ONE[::-1]), b""),
    "mat5": (0, b"MATLAB 5.0 MAT-file", b""),
    "xi": (0, b"Extended Instrument: ", b""),
    "ircam": (0, (b"\x64\xa3", *(bytes([0, n, 0xA3, 0x64]) for n in range(1, 5))), b""),
    "sds": (0, b"\xf0\x7e", b""),
    "matroska": (0, b"\x1aE\xdf\xa3", b""),
    "asf": (0, b"0&\xb2u\x8ef\xcf\x11", b""),
    "amr": (0, b"#!AMR", b""),
}
_ZEROS = re.compile(b"\0*")
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp")
# Programs that write to a pipe use the largest possible size, or somewhat less.
_UNKNOWN_SIZES = (range(0x7FFF0000, 0x80000001), range(0xFFFF0000, 0x100000000))
_MPEG_CODECS = (0x50, 0x55)  # in WAV
_FLAC_START = b"fLaC\0\0\0\x22"  # the magic bytes and the header of the STREAMINFO block


def _chunks(data, start: int, end: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """(name, start of its body, size) of the chunks of a RIFF or IFF file."""
    while start + 8 <= end:
        name, size = struct.unpack(order + "4sI", data[start : start + 8])
        yield name, start + 8, size
        start += 8 + size + size % 2


def _is_all_chunks(data, start: int, order: str) -> bool:
    """Whether a file continues with valid chunks up to its end."""
    while start + 8 <= len(data):
        name, size = struct.unpack(order + "4sI", data[start : start + 8])
        if not all(32 <= letter < 127 for letter in name) or start + 8 + size > len(data):
            return False
        start += 8 + size + size % 2
    return len(data) - start < 8


def _is_unknown(size: int, data, body: int, order: str) -> bool:
    """Whether a chunk's size was never filled in: its program was killed, or wrote to a pipe."""
    if size == 0:
        return not _is_all_chunks(data, body, order)
    return body + size > len(data) and any(size in sizes for sizes in _UNKNOWN_SIZES)


def _find_wav(data, start: int) -> FileSegment:
    """WAV, in RIFF, RIFX (big-endian), RF64 and BW64."""
    order = ">" if data[start : start + 4] == b"RIFX" else "<"
    large, frame, codec = None, 1, 0
    for name, body, size in _chunks(data, start + 12, len(data), order):
        if name == b"ds64" and body + 24 <= len(data):
            large = struct.unpack("<Q", data[body + 8 : body + 16])[0], body
        elif name == b"fmt " and body + 16 <= len(data):
            codec, *_, frame = struct.unpack(order + "HHIIH", data[body : body + 14])
            frame = max(1, frame)
        elif name == b"data":
            present = len(data) - body
            if large is not None and size in (0, 0xFFFFFFFF):
                size = large[0]
                if size in (0, 2**64 - 1):
                    filled = present // frame * frame
                    sizes = struct.pack("<QQQ", body + filled - 8, filled, filled // frame)
                    return FileSegment(start, len(data), ((large[1], sizes),))
            elif _is_unknown(size, data, body, order):
                filled = min(present, 0xFFFFFFFE) // frame * frame
                sizes = struct.pack(order + "I", filled)
                mpeg = (body, len(data)) if codec in _MPEG_CODECS else None
                return FileSegment(start, len(data), ((body - 4, sizes),), mpeg)
            check_size(present // frame * frame, size // frame * frame)
            end = _end_of_chunks(data, start, body, size, order)
            if codec in _MPEG_CODECS:
                return FileSegment(start, end, mpeg=(body, body + size))
            return FileSegment(start, end)
    return FileSegment(start, len(data), has_sound=False)


def _end_of_chunks(data, start: int, body: int, audio_bytes: int, order: str) -> int:
    """The end of a file that starts at `start`; another file may follow.

    Args:
      data: the bytes.
      start: of the file.
      body: start of the audio chunk's body.
      audio_bytes: size of the audio chunk.
      order: byte order, for struct.

    Raises:
      InputError: another audio chunk follows, which libsndfile would read instead.
    """
    (size,) = struct.unpack(order + "I", data[start + 4 : start + 8])
    position = body + audio_bytes
    whole = start + 8 + size if size != 0xFFFFFFFF else position
    while position < len(data):
        padded = position + (position - start) % 2  # some programs leave out the padding byte
        chunk = padded if _is_chunk(data, padded, whole, order) else position
        if not _is_chunk(data, chunk, whole, order) or find_format(data[chunk : chunk + 32]):
            break
        if data[chunk : chunk + 4] == data[body - 8 : body - 4]:
            raise _several_chunks()
        position = chunk + 8 + struct.unpack(order + "I", data[chunk + 4 : chunk + 8])[0]
    return min(position, len(data))


def _several_chunks() -> InputError:
    return InputError("has several chunks of audio, which is not supported; convert it.")


def _is_chunk(data, position: int, whole: int, order: str) -> bool:
    """Whether a complete chunk is at a position, or one within the size of the file's header."""
    if position + 8 > len(data):
        return False
    name, size = struct.unpack(order + "4sI", data[position : position + 8])
    is_name = all(32 <= letter < 127 for letter in name)
    return is_name and (position < whole or position + 8 + size <= len(data))


def _find_iff(data, start: int) -> FileSegment:
    """AIFF, AIFF-C and 8SVX."""
    frame, frames, frames_at = 1, None, None
    for name, body, size in _chunks(data, start + 12, len(data), ">"):
        if name == b"COMM" and body + 18 <= len(data):
            channels, frames, bits = struct.unpack(">HIH", data[body : body + 8])
            frame, frames_at = max(1, channels * ((bits + 7) // 8)), body + 2
        elif name in (b"SSND", b"BODY"):
            present = len(data) - body
            if name == b"SSND" and (
                _is_unknown(size, data, body, ">")
                or (body + size > len(data) and size >> 16 == 0x7F00)  # SoX, to a pipe
                or (size <= 8 and not _is_all_chunks(data, body + 8, ">"))
            ):
                filled = (present - 8) // frame * frame
                repairs = [(body - 4, struct.pack(">I", filled + 8))]
                if frames_at is not None:
                    repairs.append((frames_at, struct.pack(">I", filled // frame)))
                return FileSegment(start, len(data), tuple(repairs))
            check_size(present // frame * frame, size // frame * frame)
            return FileSegment(start, _end_of_chunks(data, start, body, size, ">"))
    return FileSegment(start, len(data), has_sound=frames == 0)


def _find_w64(data, start: int) -> FileSegment:
    """Wave64: like WAV, with names of 16 bytes, and sizes of 8 bytes that include the header."""
    position = start + 40
    while position + 24 <= len(data):
        (size,) = struct.unpack("<Q", data[position + 16 : position + 24])
        if data[position : position + 4] == b"data":
            end = position + size
            if size in (0, 24) or size >= 2**62:  # never filled in
                sizes = struct.pack("<Q", len(data) - position)
                return FileSegment(start, len(data), ((position + 16, sizes),))
            check_size(len(data) - position - 24, size - 24)
            (whole,) = struct.unpack("<Q", data[start + 16 : start + 24])
            if start + whole <= len(data):
                end = max(end, start + whole)
            if data.find(data[position : position + 16], position + size, end) >= 0:
                raise _several_chunks()
            return FileSegment(start, end)
        position += max(24, size + -size % 8)
    return FileSegment(start, len(data), has_sound=False)


def _find_au(data, start: int) -> FileSegment:
    if start + 24 > len(data):
        return FileSegment(start, len(data))
    offset, size = struct.unpack(">II", data[start + 4 : start + 12])
    body = start + offset
    if size == 0 and body < len(data):
        return FileSegment(start, len(data), ((start + 8, b"\xff" * 4),))
    if size == 0xFFFFFFFF:  # "unknown", by the format's definition
        return FileSegment(start, len(data))
    check_size(len(data) - body, size)
    return FileSegment(start, body + size)


def _find_caf(data, start: int) -> FileSegment:
    position, has_sound = start + 8, False
    while position + 12 <= len(data):
        name, size = struct.unpack(">4sq", data[position : position + 12])
        is_name = all(32 <= letter < 127 for letter in name)
        is_other = has_sound and find_format(data[position : position + 32])
        if not is_name or is_other or (has_sound and size > len(data) - position - 12):
            return FileSegment(start, position, has_sound=has_sound)
        position += 12
        if size < 0:  # "up to the end of the file", which libraries do not support
            sizes = struct.pack(">q", len(data) - position)
            return FileSegment(start, len(data), ((position - 8, sizes),))
        if name == b"data":
            if has_sound:
                raise _several_chunks()
            check_size(len(data) - position, size)
            has_sound = True
        position += size
    return FileSegment(start, min(position, len(data)), has_sound=has_sound)


def _find_flac(data, start: int) -> FileSegment:
    following = data.find(_FLAC_START, start + 4)
    end = following if following > 0 else len(data)
    ends = flac_frames.find_ends(data, start, end)
    return FileSegment(start, next((e for e in ends if skip_padding(data, e) >= end), ends[0]))


def _find_mat4(data, start: int) -> FileSegment:
    """MATLAB 4: arrays with a header of type, two sizes and the length of the name."""
    position = start
    while position + 20 <= len(data):
        order = "<" if data[position + 3] == 0 else ">"
        kind, rows, columns, _, name = struct.unpack(order + "5I", data[position : position + 20])
        width = {0: 8, 1: 4, 2: 4, 3: 2, 4: 2, 5: 1}.get(kind // 10 % 10, 1)
        if kind >= 2000 or not 0 < name < 64:
            break
        position += 20 + name
        check_size(len(data) - position, rows * columns * width)
        position += rows * columns * width
    return FileSegment(start, position)


def _find_counted(offset: int, order: str, width: int, body: int) -> Callable:
    """A finder for formats whose header has the number of samples at a fixed offset."""

    def find(data, start: int) -> FileSegment:
        header = data[start + offset : start + offset + struct.calcsize(order)]
        if len(header) == struct.calcsize(order):
            size = width * struct.unpack(order, header)[0]
            check_size(len(data) - start - body, size)
            return FileSegment(start, start + body + size)
        raise InputError("is truncated: its header is incomplete.")

    return find


def _find_avr(data, start: int) -> FileSegment:
    check_size(len(data) - start, 128)  # its header
    stereo, bits = struct.unpack(">HH", data[start + 12 : start + 16])
    (frames,) = struct.unpack(">I", data[start + 26 : start + 30])
    size = frames * (2 if stereo else 1) * (bits // 8)
    check_size(len(data) - start - 128, size)
    return FileSegment(start, start + 128 + size)


def _find_mpc2k(data, start: int) -> FileSegment:
    check_size(len(data) - start, 42)  # its header
    (frames,) = struct.unpack("<I", data[start + 30 : start + 34])
    size = 2 * frames * (2 if data[start + 21] else 1)
    check_size(len(data) - start - 42, size)
    return FileSegment(start, start + 42 + size)


def _find_nist(data, start: int) -> FileSegment:
    """NIST Sphere: its header is text, such as "sample_count -i 16000"."""
    lines = bytes(data[start : start + 1024]).decode("latin-1").splitlines()
    fields = {parts[0]: parts[2] for line in lines if len(parts := line.split()) == 3}
    try:
        size = int(lines[1])
        count = int(fields["sample_count"]) * int(fields.get("channel_count", 1))
        width = int(fields.get("sample_n_bytes", 1))
    except (IndexError, KeyError, ValueError):
        return FileSegment(start, len(data))
    if fields.get("sample_coding", "pcm") in ("pcm", "ulaw", "alaw", "mu-law"):
        check_size(len(data) - start - size, count * width)
        return FileSegment(start, start + size + count * width)
    return FileSegment(start, len(data))


def _find_voc(data, start: int) -> FileSegment:
    """Creative Voice: blocks with sizes of 3 bytes, until a zero.

    libsndfile reads only one audio block.
    """
    position = start + int.from_bytes(data[start + 20 : start + 22], "little")
    blocks = 0
    while position + 4 < len(data) and 0 < data[position] < 10:
        size = int.from_bytes(data[position + 1 : position + 4], "little")
        if data[position] in (1, 2, 9):  # audio
            check_size(len(data) - position - 4, size)
            blocks += 1
        position += 4 + size
    if blocks > 1:
        raise InputError("has several blocks of audio, which is not supported; convert it.")
    return FileSegment(start, min(position + (data[position : position + 1] == b"\0"), len(data)))


_FINDERS: dict[str, Callable[..., FileSegment]] = {
    "wav": _find_wav,
    "aiff": _find_iff,
    "svx": _find_iff,
    "w64": _find_w64,
    "au": _find_au,
    "caf": _find_caf,
    "flac": _find_flac,
    "ogg": media_containers.find_ogg,
    "nistsphere": _find_nist,
    "voc": _find_voc,
    "avr": _find_avr,
    "wve": _find_counted(18, ">I", 1, 32),
    "mpc2k": _find_mpc2k,
    "mat4": _find_mat4,
    "mov": media_containers.find_mov,
    "matroska": media_containers.find_matroska,
    "asf": media_containers.find_asf,
    "aac": media_containers.find_adts,
    "amr": media_containers.find_amr,
}
