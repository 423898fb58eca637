"""Waveforms to units and back: the ears and the voice of Spirit LM.

Encoding makes up to three streams of a recording: phonetic units (HuBERT, 25 a second) and, for
Expressive models, pitch units (12.5 a second) and style units (1 a second). Decoding speaks them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spirit_jax import bucketing, checkpoint, config, f0, model_folder, units
from spirit_jax.audio import SAMPLE_RATE, Audio, chunks, load_audio
from spirit_jax.errors import InputError
from spirit_jax.model_folder import CONFIG_NAME, NETWORKS, OPTIONAL_NETWORKS, SpeechTokenizerConfig
from spirit_jax.models import fcpe, harmonic_source, hifigan, hubert, pitch, style
from spirit_jax.units import Units

BUCKET_SECONDS = (1.5, 3, 6, 10, 16, 30, 60, 100)  # audio is padded to these: eight programs
BATCH_SECONDS = 320  # audio in one batch on an accelerator; a CPU gains nothing from batches
F0_RATE, VOCODER_RATE = 200, 25  # frames a second
WINDOW_FRAMES = 2_500  # longer units are spoken in windows of this length
DURATION_REACH = 2  # units on each side that a unit's duration depends on


class SpeechTokenizer:
    """Encodes audio to `Units` and speaks them; `from_pretrained` makes one.

    Results do not depend on what else is in a batch.
    """

    @classmethod
    def from_pretrained(cls, folder: str | Path, f0_method: str | None = None) -> "SpeechTokenizer":
        """Loads the speech tokenizer of a model folder.

        Args:
          folder: a model folder, or the `speech_tokenizer` folder in it; or the name of one that
            comes with the package, "spirit-tiny-base" or "spirit-tiny-expressive".
          f0_method: "fcpe" or "pyin"; what the folder says by default.

        Raises:
          InputError: the folder is not whole, or its networks are not of one set.
        """
        folder = model_folder.find_speech_tokenizer(folder)
        cfg = config.read(SpeechTokenizerConfig, folder / CONFIG_NAME)
        if f0_method is not None:
            cfg = dataclasses.replace(cfg, f0_method=f0_method)
        return cls(folder, cfg)

    def __init__(self, folder: Path, cfg: SpeechTokenizerConfig):
        self.config, self._folder = cfg, folder
        folders = {name: model_folder.find_network(folder, name) for name in NETWORKS[cfg.kind]}
        for name, network in folders.items():
            if not network.is_dir() and (name in cfg.hashes or name not in OPTIONAL_NETWORKS):
                raise InputError(f"{folder}: the network '{name}' is not there (half copied?).")
        model, params = hubert.load(folders["hubert"], folders["quantizer"])
        self._check("hubert", params["hubert"], model.config.sample_rate)
        self._check("quantizer", params["quantizer"])
        self._blank = model.quantizer.blank
        self._hubert = _compile(model, params)
        self._fcpe = None
        if cfg.kind == "expressive":
            self._pitch_model, params = pitch.load(folders["pitch"])
            self._check("pitch", params)
            self._pitch = _compile(self._pitch_model, params)
            model, params = style.load(folders["style"])
            self._check("style", params, model.config.sample_rate)
            self._style = _compile(model, params, finish=_best)
            if folders["fcpe"].is_dir():
                model, params = fcpe.load(folders["fcpe"])
                self._check("fcpe", params, model.config.sample_rate)
                self._fcpe = _compile(model, params)
        self._vocoder = None
        if folders["hifigan"].is_dir():
            self._vocoder, params = hifigan.load(folders["hifigan"])
            self._check("hifigan", params)
            params = jax.device_put(params)  # once for all of its programs
            speak = None
            if self._vocoder.config.source_harmonics:
                speak = _speak_with_source
                self._f0 = _compile(self._vocoder, params, method="predict_f0")
            self._speak = _compile(self._vocoder, params, method=speak)
            self._durations = _compile(self._vocoder, params, method="log_durations")
        on_cpu = jax.default_backend() == "cpu"
        self._batch_seconds = 0 if on_cpu else BATCH_SECONDS

    def encode(self, audio: Audio, channel: int | None = None) -> Units:
        """The units of one recording; see `encode_batch`."""
        return self.encode_batch([audio], channel)[0]

    def encode_batch(self, audios: Sequence[Audio], channel: int | None = None) -> list[Units]:
        """The units of recordings, in order.

        Args:
          audios: each a path, the bytes of a file, an array at 16 kHz or (array, rate); any
            length. Under 80 ms there are no units.
          channel: which channel to take, from 0; the mean of all by default.

        Raises:
          InputError: audio that cannot be used.
        """
        self.require_encoder()
        if channel is not None and (isinstance(channel, bool) or not isinstance(channel, int)):
            raise InputError(f"channel is {channel!r}; expected a whole number.")
        waves = [load_audio(audio, channel) for audio in bucketing.as_list(audios, "recordings")]
        pieces = [list(chunks(wave, self.config.chunk_seconds)) for wave in waves]
        flat = [(chunk,) for chunks_of_one in pieces for chunk in chunks_of_one]
        streams = [self._encode_hubert(flat)]
        if self.config.kind == "expressive":
            streams += [self._encode_pitch(flat), self._run(self._style, flat, SAMPLE_RATE)]
        taken = [iter(stream) for stream in streams]
        nothing = np.zeros(0, np.int32)
        return [
            Units(*(np.concatenate([nothing, *(next(s) for _ in own)]) for s in taken))
            for own in pieces
        ]

    def require_encoder(self) -> None:
        """Raises an `InputError` where a network is missing that encoding needs."""
        needs_f0_network = self.config.kind == "expressive" and self.config.f0_method == "fcpe"
        if needs_f0_network and self._fcpe is None:
            raise InputError(
                f"{self._folder}: has no F0 network. Convert torchfcpe's weights (python -m "
                f"convert.fcpe --weights fcpe_c_v001.pt --model {self._folder.parent}), or use "
                "f0_method='pyin'."
            )

    def encode_string(self, audio: Audio, channel: int | None = None) -> str:
        """The unit string of one recording: without repeats, streams merged by time."""
        return self.to_string(self.encode(audio, channel))

    def to_string(self, recorded: Units) -> str:
        """The string of units; a Base model writes phonetic units alone."""
        if not isinstance(recorded, Units):
            raise InputError(f"Units were expected, not {type(recorded).__name__}.")
        base = self.config.kind == "base"
        return units.to_string(Units(recorded.hubert) if base else recorded)

    def decode(
        self,
        spoken: Units | str,
        speaker_id: int | str | None = None,
        style_id: int | str | None = None,
        predict_durations: bool | None = None,
    ) -> np.ndarray:
        """Speaks units: float32 samples at 16 kHz; see `decode_batch`."""
        return self.decode_batch([spoken], speaker_id, style_id, predict_durations)[0]

    def decode_batch(
        self,
        spoken: Sequence[Units | str],
        speaker_id: int | str | None = None,
        style_id: int | str | None = None,
        predict_durations: bool | None = None,
    ) -> list[np.ndarray]:
        """Speaks units, each as float32 samples at 16 kHz, in order.

        Args:
          spoken: `Units`, whose timing is kept, or unit strings, whose durations are predicted.
          speaker_id: the voice, by number or name; the vocoder's default if not given.
          style_id: the manner, by number or name, of vocoders that have it (Base).
          predict_durations: predict them for `Units` too (repeats are dropped first), or give
            every Hu of a string one frame of 40 ms.

        Raises:
          InputError: no such speaker, style or unit; units that lack what the vocoder needs; no
            vocoder.
        """
        cfg, voice = self._vocoder_config(), self.find_voice(speaker_id, style_id)
        items, to_predict = [], []  # ids of each utterance; which of them last as predicted
        for index, item in enumerate(bucketing.as_list(spoken, "units")):
            predict = isinstance(item, str) if predict_durations is None else predict_durations
            predict &= bool(cfg.duration_hidden)
            if not isinstance(item, str | Units):
                raise InputError(
                    f"Units or a unit string were expected, not {type(item).__name__}."
                )
            if isinstance(item, str):
                item = units.from_string(item, cfg.common_style)
            elif predict and not _one_each(item):
                item = units.from_string(units.to_string(item), cfg.common_style)
            items.append(_stack_ids(item, voice, cfg))
            to_predict += [index] if predict else []
        codes = [(items[index][:, 0],) for index in to_predict]
        made = self._run_windows(self._durations, codes, DURATION_REACH) if codes else []
        for index, log_frames in zip(to_predict, made, strict=True):
            items[index] = np.repeat(items[index], hifigan.to_frames(log_frames), axis=0)
        inputs = [(ids,) for ids in items]
        if cfg.source_harmonics:
            told = self._run_windows(self._f0, inputs, harmonic_source.REACH)
            inputs = [
                (ids, harmonic_source.excite(harmonic_source.to_f0(one), cfg.code_hop))
                for ids, one in zip(items, told, strict=True)
            ]
        return self._run_windows(self._speak, inputs, cfg.receptive_frames, cfg.code_hop)

    def find_voice(self, speaker_id: int | str | None, style_id: int | str | None):
        """The numbers {"speaker", "style_id"} of a voice; `InputError` where there is none such."""
        cfg = self._vocoder_config()
        return {
            "speaker": hifigan.find_id(
                speaker_id, cfg.speakers, cfg.num_speakers, cfg.default_speaker, "speaker"
            ),
            "style_id": hifigan.find_id(
                style_id, cfg.styles, cfg.num_style_ids, cfg.default_style, "style"
            ),
        }

    def _encode_hubert(self, flat: list[bucketing.Item]) -> list[np.ndarray]:
        encoded = self._run(self._hubert, flat, SAMPLE_RATE)
        return [hubert.fill_blanks(chunk, self._blank) for chunk in encoded]

    def _encode_pitch(self, flat: list[bucketing.Item]) -> list[np.ndarray]:
        if self.config.f0_method == "pyin":
            tracks = [f0.pyin_f0(wave) for (wave,) in flat]
        else:
            raw = self._run(self._fcpe, flat, SAMPLE_RATE)
            tracks = [
                f0.postprocess(track, len(wave)) for track, (wave,) in zip(raw, flat, strict=True)
            ]
        features = [(pitch.normalise_f0(*track, self._pitch_model.config),) for track in tracks]
        return self._run(self._pitch, features, F0_RATE, extra=1)

    def _run_windows(self, function, utterances, reach: int, hop: int = 1) -> list[np.ndarray]:
        """Runs the vocoder over frames of any number; each of them gives `hop` values or rows."""
        pieces = [list(_windows(len(inputs[0]), reach)) for inputs in utterances]
        items = [
            tuple(array[low:high] for array in inputs)
            for inputs, windows in zip(utterances, pieces, strict=True)
            for low, high, _ in windows
        ]
        made = iter(self._run(function, items, VOCODER_RATE))
        nothing = np.zeros(0, np.float32)
        results = []
        for windows in pieces:
            parts = [next(made)[keep.start * hop : keep.stop * hop] for _, _, keep in windows]
            results.append(np.concatenate(parts) if parts else nothing)
        return results

    def _run(self, function, items, rate: int, extra: int = 0) -> list[np.ndarray]:
        """Runs a network over items of `rate` rows a second (and `extra`), padded to buckets."""
        longest = self.config.chunk_seconds if rate != VOCODER_RATE else WINDOW_FRAMES / rate
        seconds = [*(s for s in BUCKET_SECONDS if s < longest), longest]
        buckets = [math.ceil(s * rate) + extra for s in seconds]

        def rows_of(bucket: int) -> int:
            return max(1, self._batch_seconds * rate // bucket)

        return bucketing.run(function, items, buckets, rows_of)

    def _vocoder_config(self) -> hifigan.HifiGanConfig:
        if self._vocoder is None:
            raise InputError(f"{self._folder}: has no vocoder, so units cannot be spoken.")
        return self._vocoder.config

    def _check(self, name: str, params: checkpoint.Params, sample_rate: int = SAMPLE_RATE) -> None:
        """That a network is the one the set was made with."""
        if checkpoint.hash_params(params) != self.config.hashes.get(name):
            raise InputError(
                f"{self._folder}: the network '{name}' is not the one this set was made with, so "
                "its units would mean other sounds; copy the whole folder, or convert again."
            )
        if sample_rate != SAMPLE_RATE:
            raise InputError(
                f"{self._folder / name}: works at {sample_rate} Hz; only {SAMPLE_RATE} is known."
            )


def _compile(model, params, method=None, finish: Callable[..., Any] = lambda *out: out) -> Callable:
    """The jitted network with its parameters on the device."""

    def apply(params, *args):
        return finish(*model.apply({"params": params}, *args, method=method))

    return functools.partial(jax.jit(apply), jax.device_put(params))


def _speak_with_source(vocoder, ids_btc: jax.Array, source_bte: jax.Array, lengths_b: jax.Array):
    return vocoder(ids_btc, lengths_b, source_bte)


def _best(logits: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), lengths


def _one_each(item: Units) -> bool:
    """Whether pitch (and style) stand one each Hu, as in `Units` of a string."""
    return item.pitch is not None and len(item.pitch) == len(item.hubert)


def _stack_ids(item: Units, voice: dict[str, int], cfg: hifigan.HifiGanConfig) -> np.ndarray:
    """The vocoder's input for every Hu; negative ones, which stand for no sound, are left out."""
    streams = {"code": item.hubert, "pitch": item.pitch, "style": item.style}
    return hifigan.stack_ids(streams, voice, cfg)[item.hubert >= 0]


def _windows(n: int, reach: int) -> Iterator[tuple[int, int, slice]]:
    """Windows (low, high) over `n` frames, and the part of each whose context is whole."""
    step = n if n <= WINDOW_FRAMES else WINDOW_FRAMES - 2 * reach
    for start in range(0, n, max(step, 1)):
        low, high = max(0, start - reach), min(n, start + step + reach)
        yield low, high, slice(start - low, min(start + step, n) - low)
