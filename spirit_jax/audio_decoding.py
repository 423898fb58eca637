"""Decodes audio files: with libsndfile where it is correct, else with FFmpeg's libraries."""

import io
import stat
from pathlib import Path

import numpy as np
import soundfile

from spirit_jax import audio_containers, mpeg_audio
from spirit_jax.errors import InputError
from spirit_jax.files import as_path, find_resource_error, read_bytes, unreadable

# Containers that libsndfile does not support. FFmpeg gets the name of the container, since it would
# also open playlists, which refer to other files.
FFMPEG_ONLY = ("mov", "matroska", "asf", "aac", "amr")
# Containers that libsndfile reads, but not with all codecs; FFmpeg decodes the others.
FFMPEG_FALLBACK = ("wav", "aiff", "caf", "w64", "au", "ogg")
# Formats of libsndfile that are refused: their headers do not give the length, so truncation cannot
# be detected.
_UNSUPPORTED = ("RAW", "PAF", "PVF", "IRCAM", "SD2", "XI", "MAT5")
_HTK = b"\0\2\0\0"  # bytes 8 to 11 of an HTK file: 2 bytes per sample, and the kind "waveform"
SUFFIXES = tuple(
    sorted(
        {f".{name.lower()}" for name in soundfile.available_formats() if name not in _UNSUPPORTED}
        | set(".aac .aif .aifc .amr .asf .m4a .m4b .mka .mkv .mov .mp2 .mp4 .oga .opus".split())
        | set(".snd .sph .wma .webm .3gp .bwf .spx".split())
    )
)
_UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's value for an unknown length
_BLOCK = 1 << 24  # samples read at a time, since a damaged header may declare too many
_NOT_AUDIO = "is not audio that can be read (or is truncated)."
# An empty tag, after which libsndfile recognises MP3 with any first frame.
_EMPTY_ID3 = b"ID3\4\0\0\0\0\0\x0a" + bytes(10)


def decode(audio: str | Path | bytes) -> tuple[str, np.ndarray, int]:
    """Decodes a file, and checks that it is complete.

    Concatenated files are read as one recording. The delay of an MP3's encoder and decoder is
    removed. Its length is that in the file's header frame; without one, LAME's 1,105 samples.

    Args:
      audio: a path, or the bytes of a file.

    Returns:
      (name for messages, float64 samples (t, channels), rate in Hz).

    Raises:
      InputError: the file does not exist, cannot be read, is truncated, or has recordings with
        different rates or numbers of channels.
    """
    in_memory = isinstance(audio, bytes)
    name = "the bytes given" if in_memory else str(audio)
    data = audio if in_memory else _read_file(audio)
    if not data:
        raise InputError(f"{name}: is empty (0 bytes).")
    try:
        pieces = _decode_pieces(data)
    except InputError as error:
        raise unreadable(name, error, str(error)) from error
    except (soundfile.LibsndfileError, MemoryError) as error:
        raise unreadable(name, error, _NOT_AUDIO) from error
    if not pieces:
        raise InputError(f"{name}: has no audio that can be decoded.")
    formats = {(rate, samples_tc.shape[1]) for samples_tc, rate in pieces}
    if len(formats) != 1:
        raise InputError(
            f"{name}: consists of {len(pieces)} recordings with different sampling rates or "
            "numbers of channels; split the file."
        )
    arrays_tc = [samples_tc for samples_tc, _ in pieces]
    return name, arrays_tc[0] if len(pieces) == 1 else np.concatenate(arrays_tc), pieces[0][1]


def _read_file(path: str | Path) -> bytes:
    try:
        is_file = stat.S_ISREG(as_path(path).stat().st_mode)
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise unreadable(path, error, "there is no such file.") from error
    if not is_file:
        raise InputError(f"{path}: there is no such file.")
    return read_bytes(path)


def _decode_pieces(data: bytes) -> list[tuple[np.ndarray, int]]:
    """(samples, rate) of each recording; a file of concatenated recordings has several."""
    start = 0
    while data[start : start + 3] == b"ID3" and (size := mpeg_audio.tag_size(data, start)):
        start += size
    container = audio_containers.find_format(data[start : start + 32])
    if data[8:12] == _HTK and len(data) == 12 + 2 * int.from_bytes(data[:4], "big"):
        return [_decode_piece(data, "htk")]
    if not container:
        streams = mpeg_audio.find_streams(data)
        if streams:
            end = audio_containers.skip_padding(data, streams[-1].frames[-1][1])
            audio_containers.check_rest(data, end, "mp3")
            return [_decode_mpeg(data, stream) for stream in streams]
        raise InputError(_NOT_AUDIO)  # libsndfile would read other data as MPEG audio
    body = data[start:] if start else data
    decoded = []
    for piece in audio_containers.find_pieces(body, container):
        if piece.mpeg is not None:
            mpeg = body[slice(*piece.mpeg)]
            decoded += [_decode_mpeg(mpeg, stream) for stream in mpeg_audio.find_streams(mpeg)]
        else:
            decoded.append(_decode_piece(_cut_out(body, piece), container))
            if not piece.has_sound and not len(decoded[-1][0]):
                raise InputError("is truncated: the audio part is missing.")
    return decoded


def _cut_out(data: bytes, piece: audio_containers.FileSegment) -> bytes:
    """The bytes of a recording as a separate file, with missing sizes in its header filled in."""
    if not piece.repairs:
        whole = piece.start == 0 and piece.end >= len(data)
        return data if whole else data[piece.start : piece.end]
    repaired = bytearray(data[piece.start : piece.end])
    for position, value in piece.repairs:
        offset = position - piece.start
        repaired[offset : offset + len(value)] = value
    return bytes(repaired)


def _decode_piece(data: bytes, container: str) -> tuple[np.ndarray, int]:
    if container in FFMPEG_ONLY:
        return _read_ffmpeg(data, container)
    try:
        file = soundfile.SoundFile(_Memory(data))
    except soundfile.LibsndfileError as error:
        if container not in FFMPEG_FALLBACK or find_resource_error(error):
            raise
        return _read_ffmpeg(data, container)
    with file:
        _check_format(file)
        if file.frames == _UNKNOWN_FRAMES:  # FLAC from a pipe
            return _read_ffmpeg(data, container)
        return _read_all(file)


def _decode_mpeg(data: bytes, stream: mpeg_audio.MpegStream) -> tuple[np.ndarray, int]:
    """(float64 samples, rate) of a stream.

    libsndfile decodes it; FFmpeg does if libsndfile fails, or returns another number of samples
    than the stream's frames have.
    """
    rate = stream.header.rate
    if len(stream.frames) == 1:  # libsndfile prints a warning for these
        return mpeg_audio.decode(data, stream), rate
    try:
        samples_tc, read_rate = _read_soundfile(
            _EMPTY_ID3 + data[stream.start : stream.frames[-1][1]]
        )
    except (soundfile.LibsndfileError, InputError) as error:
        if find_resource_error(error):
            raise
    else:
        if read_rate == rate and len(samples_tc) == stream.samples:
            return samples_tc, rate
        if read_rate == rate and len(samples_tc) == stream.coded:
            return stream.trim(samples_tc), rate
    return mpeg_audio.decode(data, stream), rate


class _Memory(io.BytesIO):
    """A file in memory that ignores a `seek` to a negative position.

    libsndfile makes such calls for damaged headers, and would print the exception.
    """

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def _check_format(file: soundfile.SoundFile) -> None:
    if file.format in _UNSUPPORTED:
        raise InputError(
            f"is a file of the format {file.format}, whose length cannot be checked; convert it, "
            "such as to .flac."
        )


def _read_soundfile(data: bytes) -> tuple[np.ndarray, int]:
    with soundfile.SoundFile(_Memory(data)) as file:
        return _read_all(file, strict=False)


def _read_all(file: soundfile.SoundFile, strict: bool = True) -> tuple[np.ndarray, int]:
    """(float64 samples, rate); `strict` raises for fewer samples than the header declares."""
    blocks = [np.zeros((0, file.channels))]
    while len(block := file.read(max(1, _BLOCK // file.channels), dtype="float64", always_2d=True)):
        blocks.append(block)
    samples_tc = blocks[1] if len(blocks) == 2 else np.concatenate(blocks)
    if strict and len(samples_tc) < file.frames:
        raise InputError(
            f"is truncated: it has {len(samples_tc)} of {file.frames} samples "
            f"({len(samples_tc) / file.samplerate:.2f} of "
            f"{file.frames / file.samplerate:.2f} s)."
        )
    return samples_tc, file.samplerate


def _read_ffmpeg(data: bytes, container: str) -> tuple[np.ndarray, int]:
    """(float64 samples, rate) of the first audio stream of a file."""
    import av  # slow to import

    try:
        return _demux(data, container)
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(_NOT_AUDIO) from error


def _demux(data: bytes, container: str) -> tuple[np.ndarray, int]:
    import av

    blocks, dropped = [], None  # dropped: number of samples to remove at the start
    to_float64 = av.AudioResampler(format="dblp")
    with av.open(_Memory(data), format=container, metadata_errors="replace") as file:
        if not file.streams.audio:
            raise InputError("has no audio.")
        stream = file.streams.audio[0]
        if container == "flac":  # checks its checksums, which is not the default
            stream.codec_context.options = {"err_detect": "crccheck+explode"}
        for packet in file.demux(stream):
            if packet.is_corrupt:
                raise InputError("is truncated or damaged.")
            if dropped is None:
                dropped = _missing_pre_skip(stream, packet)
            for frame in packet.decode():
                blocks += [part.to_ndarray().T for part in to_float64.resample(frame)]
        rate = stream.codec_context.sample_rate
    if not blocks:
        raise InputError("has no audio that can be decoded.")
    return np.concatenate(blocks)[dropped:], rate


def _missing_pre_skip(stream, first_packet) -> int:
    """Samples of Opus's delay that FFmpeg's decoder leaves at the start of the recording.

    The delay is in the stream's header, as pre-skip (RFC 7845). If the container also gives a
    number of samples to skip, FFmpeg removes these instead. In files that FFmpeg wrote at rates
    other than 48 kHz, this number is too small.
    """
    header = bytes(stream.codec_context.extradata or b"")
    if not header.startswith(b"OpusHead"):
        return 0
    pre_skip = int.from_bytes(header[10:12], "little")
    for side_data in first_packet.iter_sidedata():
        if side_data.data_type == "skip_samples":
            return max(0, pre_skip - int.from_bytes(bytes(side_data)[:4], "little"))
    return 0  # the container gives no number, so the decoder removes the pre-skip
