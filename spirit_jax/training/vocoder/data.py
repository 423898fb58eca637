"""The training data of a vocoder: recordings with their units and F0.

Letters: b batch, t frames or runs (of equal units), c channels of a frame, k parts of a frame (10
ms), e these parts and the phase, s samples.

Frame i covers samples i * hop to (i + 1) * hop, as in decoding. The encoder computes frame i from
samples i * hop to i * hop + 720, whose middle is 2.5 ms later than that of the frame. This offset
does not matter, since the receptive field of the vocoder includes neighbouring frames.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import librosa
import numpy as np

from spirit_jax import config as config_lib
from spirit_jax import model_folder, units
from spirit_jax.audio import SAMPLE_RATE, Audio, load_audio
from spirit_jax.data.configs import F0Config
from spirit_jax.data.manifest import Item
from spirit_jax.data.speech import Row, stack
from spirit_jax.errors import InputError
from spirit_jax.models import harmonic_source, hifigan
from spirit_jax.models.harmonic_source import PARTS
from spirit_jax.models.hifigan import HifiGanConfig
from spirit_jax.speech_tokenizer import SpeechTokenizer
from spirit_jax.training import recording_cache
from spirit_jax.training.f0_tracks import Track, read_tracks
from spirit_jax.units import Units

PEAK = 0.95  # absolute peak to which every recording is normalised


@dataclasses.dataclass(frozen=True)
class UnitRecording:
    """A recording with the vocoder's input.

    Attributes:
      id: id of the recording.
      speaker: name of the speaker.
      audio: where the audio is; its samples are read for each row.
      ids_tc: int32 (t, c), the vocoder's input (`HifiGanConfig.channels`).
      f0_tk: float32 (t, PARTS), F0 in Hz, 0 where unvoiced; (t, 0) for a vocoder without a harmonic
        source.
    """

    id: str
    speaker: str
    audio: Audio
    ids_tc: np.ndarray
    f0_tk: np.ndarray


def choose(
    items: Sequence[Item], speakers: tuple[str, ...], styles: tuple[str, ...], style: str = ""
) -> list[Item]:
    """Selects recordings by speaker and style.

    Args:
      items: the recordings. If `speakers` has one name, recordings without a speaker get it.
      speakers: names of the speakers to select.
      styles: names of the styles to select; all styles if empty.
      style: the style that recordings without one get.

    Returns:
      The selected recordings, with speaker and style filled in.

    Raises:
      InputError: no recording is left.
    """
    if len(speakers) == 1:
        items = [dataclasses.replace(item, speaker=item.speaker or speakers[0]) for item in items]
    items = [dataclasses.replace(item, style=item.style or style) for item in items]
    chosen = [
        item for item in items if item.speaker in speakers and (not styles or item.style in styles)
    ]
    if not chosen:
        requested = f"speakers {', '.join(speakers)}"
        known = _list_names(item.speaker for item in items)
        if styles:
            requested += f" in the styles {', '.join(styles)}"
            known += f"; in the styles: {_list_names(item.style for item in items)}"
        raise InputError(f"There are no recordings of the {requested}; the sources have: {known}.")
    return chosen


def _list_names(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names) - {""})) or "none with a name"


def read_recordings(
    items: Sequence[Item], tokenizer: str, run_dir: Path, network: HifiGanConfig, f0: F0Config
) -> list[UnitRecording]:
    """The vocoder's input for recordings; units and F0 are computed once and cached on disk.

    Args:
      items: the recordings.
      tokenizer: see `read_units`.
      run_dir: folder of the run.
      network: config of the vocoder.
      f0: how F0 is estimated, see `read_tracks`.

    Returns:
      The recordings that are long enough to have a unit.

    Raises:
      InputError: no recording is long enough, or units do not fit the vocoder.
    """
    encoded = read_units(items, tokenizer, run_dir)
    f0s = [np.zeros((len(streams), 0), np.float32) for streams in encoded]
    if network.source_harmonics:
        tracks = read_tracks(items, f0, run_dir / "f0")
        f0s = [frame_f0(track, len(s)) for track, s in zip(tracks, encoded, strict=True)]
    recordings = [
        UnitRecording(item.id, item.speaker, item.audio, frame_ids(streams, item, network), f0_tk)
        for item, streams, f0_tk in zip(items, encoded, f0s, strict=True)
        if len(streams)
    ]
    if not recordings:
        raise InputError(f"None of the {len(items)} recordings is long enough to have a unit.")
    return recordings


def frame_f0(track: Track, frames: int) -> np.ndarray:
    """F0 in Hz in the middle of every part (10 ms) of frames, 0 where unvoiced.

    Args:
      track: F0 every 5 ms, from the start of the recording.
      frames: number of frames.

    Returns:
      float32 (frames, PARTS).
    """
    f0_t = np.where(track.voiced_t > 0, track.f0_t, 0)[1::2][: frames * PARTS]
    return np.pad(f0_t, (0, frames * PARTS - len(f0_t))).reshape(-1, PARTS)


def frame_ids(streams: Units, item: Item, network: HifiGanConfig) -> np.ndarray:
    """The vocoder's input for a recording, int32 (t, c), as in decoding.

    Args:
      streams: units of the recording.
      item: its speaker and style are used.
      network: config of the vocoder.

    Raises:
      InputError: a stream is missing, or has a unit that the vocoder does not have.
    """
    voice = {"speaker": (item.speaker, network.speakers), "style_id": (item.style, network.styles)}
    ids = {name: names.index(label) for name, (label, names) in voice.items() if names}
    by_channel = {"code": streams.hubert, "pitch": streams.pitch, "style": streams.style}
    if streams.hubert.min(initial=0) < 0:
        raise InputError(f"{item.id}: There is no code unit {streams.hubert.min()}.")
    try:
        return hifigan.stack_ids(by_channel, ids, network, timed=streams.timed)
    except InputError as error:
        raise InputError(f"{item.id}: {error}") from error


def read_units(items: Sequence[Item], tokenizer: str, run_dir: Path) -> list[Units]:
    """Encodes recordings, or reads their units from the cache, `units` in the run folder.

    Only the first chunk (100 s) of a long recording is used: frames of later chunks would not be
    aligned with samples.

    Args:
      items: recordings with audio.
      tokenizer: folder or name of a speech tokenizer; it needs no vocoder.
      run_dir: folder of the run.

    Returns:
      The units of each recording, in order.

    Raises:
      InputError: a recording cannot be used.
    """

    @functools.cache
    def encoder() -> SpeechTokenizer:
        return SpeechTokenizer.from_pretrained(tokenizer, devices=jax.local_devices())

    def encode(items: Sequence[Item]) -> list[recording_cache.Arrays]:
        longest = round(encoder().config.chunk_seconds * SAMPLE_RATE)
        waves = [load_audio(item.audio)[:longest] for item in items]
        return [streams.streams() for streams in encoder().encode_batch(waves)]

    settings = f"units of {_tokenizer_networks(tokenizer)}"
    rows = recording_cache.read(run_dir / "units", settings, items, encode, "units")
    return [Units(**streams) for streams in rows]


def _tokenizer_networks(tokenizer: str) -> dict[str, str]:
    """What units depend on, by name: settings of the tokenizer and hashes of its networks."""
    folder = model_folder.find_speech_tokenizer(tokenizer)
    tokenizer_config = config_lib.read(
        model_folder.SpeechTokenizerConfig, folder / model_folder.CONFIG_NAME
    )
    networks = {name: sha for name, sha in tokenizer_config.hashes.items() if name != "hifigan"}
    return {"kind": tokenizer_config.kind, "f0_method": tokenizer_config.f0_method} | networks


def read_wave(recording: UnitRecording, hop: int) -> np.ndarray:
    """The samples of a recording's frames, float32 (t * hop,), scaled to the peak `PEAK`."""
    wave_s = PEAK * librosa.util.normalize(load_audio(recording.audio))
    size = len(recording.ids_tc) * hop
    return np.pad(wave_s[:size], (0, max(size - len(wave_s), 0)))


def find_runs(codes_t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Run-length encoding: the unit of each run, and the number of its frames."""
    starts = units.dedup(codes_t)
    return codes_t[starts], np.diff(np.append(starts, len(codes_t)))


def make_row(
    recording: UnitRecording,
    rng: np.random.Generator,
    segment_units: int,
    duration_runs: int,
    hop: int,
) -> Row:
    """A row of a batch: a random segment of audio, and consecutive runs of units for durations.

    The duration predictor also uses the neighbours of a run. The first and the last of the drawn
    runs lack one, so the duration loss does not include them, unless they are the first or the last
    of the recording.

    Args:
      recording: to draw from.
      rng: random generator.
      segment_units: frames of the segment.
      duration_runs: number of runs of equal units that are drawn.
      hop: samples of a frame.

    Returns:
      ids_btc: int32 (segment_units, c), the vocoder's input.
      lengths_b: int32 (), frames without padding.
      wave_bs: float32 (segment_units * hop,), samples.
      source_bte: float32 (segment_units, PARTS + 1), see `harmonic_source.excite`.
      codes_bt: int32 (duration_runs,), the unit of each run.
      counts_b: int32 (), runs without padding.
      frames_bt: float32 (duration_runs,), length of each run in frames.
      counted_bt: bool (duration_runs,), whether the duration loss includes a run.
    """
    frames = len(recording.ids_tc)
    start = int(rng.integers(max(frames - segment_units, 0) + 1))
    ids_tc = recording.ids_tc[start : start + segment_units]
    f0_tk = recording.f0_tk[start : start + segment_units]
    source_te = harmonic_source.excite(f0_tk, hop) if f0_tk.size else f0_tk
    wave_s = read_wave(recording, hop)[start * hop : (start + len(ids_tc)) * hop]

    codes_t, frames_t = find_runs(recording.ids_tc[:, 0])
    first = int(rng.integers(max(len(codes_t) - duration_runs, 0) + 1))
    last = min(first + duration_runs, len(codes_t))
    counted_t = np.ones(last - first, bool)
    counted_t[0] &= first == 0
    counted_t[-1] &= last == len(codes_t)
    return {
        "ids_btc": _pad(ids_tc, segment_units),
        "lengths_b": np.int32(len(ids_tc)),
        "wave_bs": _pad(wave_s, segment_units * hop),
        "source_bte": _pad(source_te, segment_units),
        "codes_bt": _pad(codes_t[first:last], duration_runs),
        "counts_b": np.int32(last - first),
        "frames_bt": _pad(frames_t[first:last].astype(np.float32), duration_runs),
        "counted_bt": _pad(counted_t, duration_runs),
    }


def whole_rows(recordings: Sequence[UnitRecording], most: int, hop: int) -> Row:
    """A batch as from `make_row`, of whole recordings or their beginnings, padded to the longest.

    Args:
      recordings: the recordings to evaluate on.
      most: largest number of frames; longer recordings are cut.
      hop: samples of a frame.
    """
    cut = [
        dataclasses.replace(item, ids_tc=item.ids_tc[:most], f0_tk=item.f0_tk[:most])
        for item in recordings
    ]
    longest = max(len(item.ids_tc) for item in cut)
    rng = np.random.default_rng(0)  # has no effect: each recording fits in its row
    rows = [make_row(item, rng, longest, longest, hop) for item in cut]
    for row, recording in zip(rows, recordings, strict=True):
        if len(recording.ids_tc) > most:
            row["counted_bt"][row["counts_b"] - 1] = False  # this run was cut
    return stack(rows)


def retime(batch: Row, log_frames_bt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vocoder's input with predicted durations, cut to the length of the batch.

    Args:
      batch: from `whole_rows`.
      log_frames_bt: float32, the predicted log duration of each run, see `hifigan.to_frames`.

    Returns:
      ids_btc: int32, the vocoder's input.
      lengths_b: int32, frames without padding.
    """
    ids_btc, lengths_b = np.zeros_like(batch["ids_btc"]), np.zeros_like(batch["lengths_b"])
    for row, length in enumerate(batch["lengths_b"]):
        ids_tc = batch["ids_btc"][row, :length]
        starts = units.dedup(ids_tc[:, 0])
        frames = hifigan.to_frames(log_frames_bt[row, : len(starts)])
        retimed_tc = np.repeat(ids_tc[starts], frames, axis=0)[: ids_btc.shape[1]]
        ids_btc[row, : len(retimed_tc)], lengths_b[row] = retimed_tc, len(retimed_tc)
    return ids_btc, lengths_b


def _pad(array: np.ndarray, size: int) -> np.ndarray:
    return np.pad(array, ((0, size - len(array)), *((0, 0),) * (array.ndim - 1)))
