"""What a vocoder is trained on: recordings, and the units that a speech tokenizer hears in them.

Letters: b batch, t frames or runs, c channels of a frame, s samples.

Frame i stands for samples i * hop to (i + 1) * hop, as decoding has it. What the encoder's convs
hear for frame i is samples i * hop to i * hop + 720, whose middle is 2.5 ms later: that is close
enough, and the vocoder's own convs see past it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import librosa
import numpy as np
from jax.experimental import multihost_utils

from spirit_jax import config as config_lib
from spirit_jax import files, model_folder, units
from spirit_jax.audio import SAMPLE_RATE, Audio, load_audio
from spirit_jax.data import f0_cache
from spirit_jax.data.f0_cache import F0Config, Track
from spirit_jax.data.manifest import Item, fingerprint
from spirit_jax.data.progress import watch
from spirit_jax.data.speech import Row, stack
from spirit_jax.errors import InputError
from spirit_jax.models import harmonic_source, hifigan
from spirit_jax.models.harmonic_source import PARTS
from spirit_jax.models.hifigan import HifiGanConfig
from spirit_jax.speech_tokenizer import SpeechTokenizer
from spirit_jax.training import distributed
from spirit_jax.units import Units

PEAK = 0.95  # of every recording
CHUNK = 32  # recordings encoded between two writes


@dataclasses.dataclass(frozen=True)
class SpokenUnits:
    """A recording to learn from.

    Attributes:
      id: its name.
      speaker: its name.
      audio: where its samples are.
      ids_tc: int32 (t, c), the vocoder's input (`HifiGanConfig.channels`).
      f0_tk: float32 (t, PARTS), its F0 in Hz, 0 where unvoiced; (t, 0) for a vocoder without a
        harmonic source.
    """

    id: str
    speaker: str
    audio: Audio
    ids_tc: np.ndarray
    f0_tk: np.ndarray


def units_path(run_dir: str | Path) -> Path:
    """Where a run keeps the units of its recordings."""
    return Path(run_dir) / "units.jsonl"


def choose(
    items: Sequence[Item], speakers: tuple[str, ...], styles: tuple[str, ...], style: str = ""
) -> list[Item]:
    """The recordings of some speakers, and in some manners; all manners if `styles` is empty.

    Recordings without a speaker's name are those of the only speaker asked for, and those without
    a style's have `style`.

    Raises:
      InputError: there are none.
    """
    if len(speakers) == 1:
        items = [dataclasses.replace(item, speaker=item.speaker or speakers[0]) for item in items]
    items = [dataclasses.replace(item, style=item.style or style) for item in items]
    chosen = [
        item for item in items if item.speaker in speakers and (not styles or item.style in styles)
    ]
    if not chosen:
        asked = f"speakers {', '.join(speakers)}"
        found = _list_names(item.speaker for item in items)
        if styles:
            asked += f" in the styles {', '.join(styles)}"
            found += f"; in the styles: {_list_names(item.style for item in items)}"
        raise InputError(f"There are no recordings of the {asked}; there are of: {found}.")
    return chosen


def _list_names(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names) - {""})) or "none with a name"


def read_spoken(
    items: Sequence[Item], tokenizer: str, run_dir: Path, network: HifiGanConfig, f0: F0Config
) -> list[SpokenUnits]:
    """The recordings with their units and F0, which are computed where `run_dir` has none.

    Recordings too short for a unit are left out. See `read_units`, `f0_cache.read_tracks`.

    Raises:
      InputError: the tokenizer gives other units than the vocoder takes.
    """
    heard = read_units(items, tokenizer, units_path(run_dir))
    f0s = [np.zeros((len(one), 0), np.float32) for one in heard]
    if network.source_harmonics:
        tracks = f0_cache.read_tracks(items, f0, run_dir / "f0")
        f0s = [frame_f0(track, len(one)) for track, one in zip(tracks, heard, strict=True)]
    utterances = [
        SpokenUnits(item.id, item.speaker, item.audio, frame_ids(one, item, network), f0_tk)
        for item, one, f0_tk in zip(items, heard, f0s, strict=True)
        if len(one)
    ]
    if not utterances:
        raise InputError(f"{units_path(run_dir)}: no recording is long enough to have a unit.")
    return utterances


def frame_f0(track: Track, frames: int) -> np.ndarray:
    """float32 (frames, PARTS): F0 in the middle of every part, 0 where unvoiced.

    A part is 10 ms, two frames of the track, whose first is at the recording's beginning.
    """
    f0_t = np.where(track.voiced_t > 0, track.f0_t, 0)[1::2][: frames * PARTS]
    return np.pad(f0_t, (0, frames * PARTS - len(f0_t))).reshape(-1, PARTS)


def frame_ids(streams: Units, item: Item, network: HifiGanConfig) -> np.ndarray:
    """int32 (t, c): the ids of each frame of a recording, as decoding has them.

    Raises:
      InputError: the vocoder takes units that there are none of, or has fewer of them.
    """
    voice = {"speaker": (item.speaker, network.speakers), "style_id": (item.style, network.styles)}
    ids = {name: names.index(label) for name, (label, names) in voice.items() if names}
    by_channel = {"code": streams.hubert, "pitch": streams.pitch, "style": streams.style}
    if streams.hubert.min(initial=0) < 0:
        raise InputError(f"{item.id}: There is no code unit {streams.hubert.min()}.")
    try:
        return hifigan.stack_ids(by_channel, ids, network)
    except InputError as error:
        raise InputError(f"{item.id}: {error}") from error


def read_units(items: Sequence[Item], tokenizer: str, path: Path) -> list[Units]:
    """The units of recordings, in order.

    Of a recording longer than the tokenizer's chunks (100 s) the first chunk is taken: from the
    second on, frames would drift from samples.

    Args:
      items: with audio.
      tokenizer: a folder that `SpeechTokenizer.from_pretrained` takes; it needs no vocoder.
      path: of a JSON-lines file that keeps them. What it lacks is computed and added, so a
        computation that was stopped goes on, and one that was replaced is heard anew. Of several
        processes the first one writes it, and all must see the same files.

    Raises:
      InputError: a recording cannot be used, or the file is of another tokenizer.
    """
    made_by = _unit_source(tokenizer)
    known = _read_known(path, made_by)
    keys = [hashlib.sha256(fingerprint(item)).hexdigest()[:32] for item in items]
    missing = {key: item for key, item in zip(keys, items, strict=True) if key not in known}
    if missing and distributed.is_first():
        _add_units(missing, tokenizer, path, made_by, known)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"units in {path}")
    if missing:
        known = _read_known(path, made_by)
    for key, item in missing.items():
        if key not in known:
            raise InputError(f"{item.id}: is not the same file for the first process and others.")
    return [Units.from_dict(known[key]) for key in keys]


def _add_units(
    missing: dict[str, Item], tokenizer: str, path: Path, made_by: dict, known: dict
) -> None:
    encoder = SpeechTokenizer.from_pretrained(tokenizer)
    longest = round(encoder.config.chunk_seconds * SAMPLE_RATE)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("w") as file:  # without a line that was cut short
        file.write(json.dumps({"tokenizer": made_by}) + "\n")
        for key, streams in known.items():
            file.write(json.dumps({"recording": key, "units": streams}) + "\n")
    unfinished.replace(path)
    rows = list(missing.items())
    chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    with path.open("a") as file:
        for chunk in watch(chunks, "units, chunks of recordings", len(chunks)):
            heard = encoder.encode_batch([load_audio(item.audio)[:longest] for _, item in chunk])
            for (key, _), one in zip(chunk, heard, strict=True):
                file.write(json.dumps({"recording": key, "units": one.to_dict()}) + "\n")
            file.flush()


def _read_known(path: Path, made_by: dict) -> dict[str, dict[str, list[int]]]:
    """The streams of each recording that the file has."""
    rows = [row for _, row in files.read_json_lines(path)] if path.is_file() else []
    if rows and isinstance(rows[-1], InputError):  # a last line that was cut short
        rows.pop()
    if not all(isinstance(row, dict) for row in rows) or not all(
        isinstance(row.get("recording"), str) and isinstance(row.get("units"), dict)
        for row in rows[1:]
    ):
        raise InputError(f"{path}: is damaged; remove it, and the units are computed again.")
    if rows and rows[0].get("tokenizer") != made_by:
        raise InputError(
            f"{path}: holds the units of another tokenizer than this; remove it, or choose another "
            "run_dir."
        )
    return {row["recording"]: row["units"] for row in rows[1:]}


def _unit_source(tokenizer: str) -> dict[str, str]:
    """What the units of a speech tokenizer depend on, by name."""
    folder = model_folder.find_speech_tokenizer(tokenizer)
    about = config_lib.read(model_folder.SpeechTokenizerConfig, folder / model_folder.CONFIG_NAME)
    networks = {name: sha for name, sha in about.hashes.items() if name != "hifigan"}
    return {"kind": about.kind, "f0_method": about.f0_method} | networks


def read_wave(utterance: SpokenUnits, hop: int) -> np.ndarray:
    """float32 (t * hop,): the samples of its frames, the whole recording's peak at `PEAK`."""
    wave_s = PEAK * librosa.util.normalize(load_audio(utterance.audio))
    size = len(utterance.ids_tc) * hop
    return np.pad(wave_s[:size], (0, max(size - len(wave_s), 0)))


def find_runs(codes_t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Units without repeats, and how many frames each lasts."""
    starts = units.dedup(codes_t)
    return codes_t[starts], np.diff(np.append(starts, len(codes_t)))


def make_row(
    utterance: SpokenUnits,
    rng: np.random.Generator,
    segment_units: int,
    duration_runs: int,
    hop: int,
) -> Row:
    """What a row of a step is made of.

    A segment to speak, from a place drawn at random, and for the duration predictor a stretch of
    whole runs of equal units from another. The first and last run of a stretch lack neighbours, so
    their durations do not count, unless they are the recording's own.

    Returns:
      ids_btc: int32 (segment_units, c); lengths_b: how many are true; wave_bs: their samples;
      source_bte: what `harmonic_source.excite` makes of their F0.
      codes_bt: int32 (duration_runs,); counts_b: how many are true; frames_bt: float32, how long
      they last; counted_bt: which of them count.
    """
    frames = len(utterance.ids_tc)
    start = int(rng.integers(max(frames - segment_units, 0) + 1))
    ids_tc = utterance.ids_tc[start : start + segment_units]
    f0_tk = utterance.f0_tk[start : start + segment_units]
    source_te = harmonic_source.excite(f0_tk, hop) if f0_tk.size else f0_tk
    wave_s = read_wave(utterance, hop)[start * hop : (start + len(ids_tc)) * hop]

    codes_t, frames_t = find_runs(utterance.ids_tc[:, 0])
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


def whole_rows(utterances: Sequence[SpokenUnits], most: int, hop: int) -> Row:
    """The same of whole recordings, cut after `most` frames, as long as the longest of them."""
    cut = [
        dataclasses.replace(one, ids_tc=one.ids_tc[:most], f0_tk=one.f0_tk[:most])
        for one in utterances
    ]
    longest = max(len(one.ids_tc) for one in cut)
    rng = np.random.default_rng(0)  # nothing is drawn: all fits
    rows = [make_row(one, rng, longest, longest, hop) for one in cut]
    for row, utterance in zip(rows, utterances, strict=True):
        if len(utterance.ids_tc) > most:
            row["counted_bt"][row["counts_b"] - 1] = False  # that run was cut
    return stack(rows)


def retime(batch: Row, log_frames_bt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`whole_rows` with each run as long as predicted, cut to the length of the batch.

    Returns:
      ids_btc: int32, and lengths_b: int32, frames that are true.
    """
    ids_btc, lengths_b = np.zeros_like(batch["ids_btc"]), np.zeros_like(batch["lengths_b"])
    for row, length in enumerate(batch["lengths_b"]):
        ids_tc = batch["ids_btc"][row, :length]
        starts = units.dedup(ids_tc[:, 0])
        frames = hifigan.to_frames(log_frames_bt[row, : len(starts)])
        spoken_tc = np.repeat(ids_tc[starts], frames, axis=0)[: ids_btc.shape[1]]
        ids_btc[row, : len(spoken_tc)], lengths_b[row] = spoken_tc, len(spoken_tc)
    return ids_btc, lengths_b


def _pad(array: np.ndarray, size: int) -> np.ndarray:
    return np.pad(array, ((0, size - len(array)), *((0, 0),) * (array.ndim - 1)))
