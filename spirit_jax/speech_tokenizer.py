"""The speech tokenizer: waveforms to units (encoder and quantizers) and back (vocoder).

Encoding gives up to three streams: phonetic units (HuBERT, 25 a second) and, for Expressive models,
pitch units (12.5 a second) and style units (1 a second). Decoding synthesises speech from them.
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

from spirit_jax import bucketing, checkpoint, config, f0, model_folder, sharding, units
from spirit_jax.audio import SAMPLE_RATE, Audio, chunks, load_audio
from spirit_jax.devices import warn_of_idle
from spirit_jax.errors import InputError
from spirit_jax.model_folder import CONFIG_NAME, NETWORKS, OPTIONAL_NETWORKS, SpeechTokenizerConfig
from spirit_jax.models import fcpe, harmonic_source, hifigan, hubert, pitch, style
from spirit_jax.models.vocoder_stream import VocoderStream
from spirit_jax.units import Units

BUCKET_SECONDS = (1.5, 3, 6, 10, 16, 30, 60, 100)  # audio is padded to one of these lengths
BATCH_SECONDS = 320  # of audio in a batch on an accelerator; batches do not help on a CPU
F0_RATE, VOCODER_RATE = 200, 25  # frames a second
WINDOW_FRAMES = 2_500  # longer inputs of the vocoder are split into windows of this length
DURATION_REACH = 2  # units on each side that a unit's duration depends on


class SpeechTokenizer:
    """Encodes audio to `Units` and decodes units to audio; load it with `from_pretrained`.

    Results do not depend on the other items of a batch, nor on the number of devices.

    Attributes:
      config: of the networks.
      devices: number of devices that share each batch.
    """

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        f0_method: str | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> "SpeechTokenizer":
        """Loads the speech tokenizer of a model folder.

        Args:
          folder: a model folder, or the `speech_tokenizer` folder in it; or the name of one that
            comes with the package, "spirit-tiny-base" or "spirit-tiny-expressive".
          f0_method: "fcpe" or "pyin"; the one in the folder's config by default.
          devices: they share each batch; the default device if not given.

        Raises:
          InputError: a file is missing, or the networks do not belong together.
        """
        folder = model_folder.find_speech_tokenizer(folder)
        warn_of_idle()
        cfg = config.read(SpeechTokenizerConfig, folder / CONFIG_NAME)
        if f0_method is not None:
            cfg = dataclasses.replace(cfg, f0_method=f0_method)
        return cls(folder, cfg, devices)

    def __init__(
        self,
        folder: Path,
        cfg: SpeechTokenizerConfig,
        devices: Sequence[jax.Device] | None = None,
    ):
        self.config, self._folder, self.devices = cfg, folder, len(devices or [None])
        compiled = functools.partial(_compile, devices)
        folders = {name: model_folder.find_network(folder, name) for name in NETWORKS[cfg.kind]}
        for name, network in folders.items():
            if not network.is_dir() and (name in cfg.hashes or name not in OPTIONAL_NETWORKS):
                raise InputError(f"{folder}: the network '{name}' is missing (incomplete copy?).")
        model, params = hubert.load(folders["hubert"], folders["quantizer"])
        self._check("hubert", params["hubert"], model.config.sample_rate)
        self._check("quantizer", params["quantizer"])
        self._blank = model.quantizer.blank
        self._hubert = compiled(model, params)
        self._fcpe = None
        if cfg.kind == "expressive":
            self._pitch_model, params = pitch.load(folders["pitch"])
            self._check("pitch", params)
            self._pitch = compiled(self._pitch_model, params)
            model, params = style.load(folders["style"])
            self._check("style", params, model.config.sample_rate)
            self._style = compiled(model, params, finish=_best)
            if folders["fcpe"].is_dir():
                model, params = fcpe.load(folders["fcpe"])
                self._check("fcpe", params, model.config.sample_rate)
                self._fcpe = compiled(model, params)
        self._vocoder = None
        if folders["hifigan"].is_dir():
            self._vocoder, params = hifigan.load(folders["hifigan"])
            self._check("hifigan", params)
            params = jax.device_put(params)  # once for all of its programs
            self._vocoder_params = params
            method = None
            if self._vocoder.config.source_harmonics:
                method = _vocode_with_source
                self._f0 = compiled(self._vocoder, params, method="predict_f0")
            self._vocode = compiled(self._vocoder, params, method=method)
            self._durations = compiled(self._vocoder, params, method="log_durations")
        on_cpu = jax.default_backend() == "cpu"
        self._batch_seconds = 0 if on_cpu else BATCH_SECONDS

    def encode(self, audio: Audio, channel: int | None = None) -> Units:
        """The units of one recording; see `encode_batch`."""
        return self.encode_batch([audio], channel)[0]

    def encode_batch(self, audios: Sequence[Audio], channel: int | None = None) -> list[Units]:
        """Encodes recordings.

        Args:
          audios: each a path, the bytes of a file, an array at 16 kHz or (array, rate), of any
            length. Under 80 ms there are no units.
          channel: the channel to use, from 0; the mean of all by default.

        Returns:
          The units of each recording, timed, in order.

        Raises:
          InputError: a recording or `channel` cannot be used, or the F0 network is missing.
        """
        self.require_encoder()
        if channel is not None and (isinstance(channel, bool) or not isinstance(channel, int)):
            raise InputError(f"channel is {channel!r}; expected a whole number.")
        waves = [load_audio(audio, channel) for audio in bucketing.as_list(audios, "recordings")]
        chunks_by_wave = [list(chunks(wave, self.config.chunk_seconds)) for wave in waves]
        flat = [(chunk,) for wave_chunks in chunks_by_wave for chunk in wave_chunks]
        streams = [self._encode_hubert(flat)]
        if self.config.kind == "expressive":
            streams += [self._encode_pitch(flat), self._run(self._style, flat, SAMPLE_RATE)]
        counts = [len(wave_chunks) for wave_chunks in chunks_by_wave]
        empty = np.zeros(0, np.int32)
        return [
            Units(*(np.concatenate([empty, *stream[end - count : end]]) for stream in streams))
            for count, end in zip(counts, np.cumsum(counts), strict=True)
        ]

    def require_encoder(self) -> None:
        """Raises an `InputError` if the F0 network that encoding needs is missing."""
        needs_f0_network = self.config.kind == "expressive" and self.config.f0_method == "fcpe"
        if needs_f0_network and self._fcpe is None:
            raise InputError(
                f"{self._folder}: has no F0 network. Convert torchfcpe's weights (spirit-jax "
                f"convert fcpe --weights fcpe_c_v001.pt --model {self._folder.parent}), or use "
                "f0_method='pyin'."
            )

    def is_blank(self, encoded: Units) -> bool:
        """Whether all phonetic units are blanks: the encoder noticed no speech at all.

        Blanks are replaced by the units beside them, where there are any. A vocabulary need not
        have a token for the blank.
        """
        return bool(len(encoded)) and bool(np.all(encoded.hubert == self._blank))

    def encode_string(self, audio: Audio, channel: int | None = None) -> str:
        """The unit string of one recording (see `units.to_string`)."""
        return self.to_string(self.encode(audio, channel))

    def to_string(self, encoded: Units) -> str:
        """The unit string of units; for a Base model, of the phonetic units only."""
        if self.config.kind == "base" and isinstance(encoded, Units):
            encoded = Units(encoded.hubert, timed=encoded.timed)
        return units.to_string(encoded)

    def decode(
        self,
        speech: Units | str,
        speaker_id: int | str | None = None,
        style_id: int | str | None = None,
        predict_durations: bool | None = None,
    ) -> np.ndarray:
        """Synthesises speech: float32 (samples,) at 16 kHz; see `decode_batch`."""
        return self.decode_batch([speech], speaker_id, style_id, predict_durations)[0]

    def decode_batch(
        self,
        speech: Sequence[Units | str],
        speaker_id: int | str | None = None,
        style_id: int | str | None = None,
        predict_durations: bool | None = None,
    ) -> list[np.ndarray]:
        """Synthesises speech from units.

        Args:
          speech: `Units` or unit strings. The timing of timed units is kept; the durations of other
            units and of strings are predicted.
          speaker_id: a speaker of the vocoder, by number or name; its default if not given.
          style_id: a style, by number or name, of vocoders that have styles (Base).
          predict_durations: True predicts durations for timed units too, without their repeats;
            False gives every Hu of a string one frame of 40 ms.

        Returns:
          float32 (samples,) at 16 kHz for each item, in order.

        Raises:
          InputError: an unknown speaker, style or unit, units that lack a stream of the vocoder, or
            no vocoder.
        """
        cfg, voice = self.vocoder_config, self.find_voice(speaker_id, style_id)
        ids, predicted = [], []  # input of each item; indices of items with predicted durations
        for index, item in enumerate(bucketing.as_list(speech, "units")):
            if isinstance(item, str):
                item = units.from_string(item, cfg.common_style)
            elif not isinstance(item, Units):
                raise InputError(
                    f"Units or a unit string were expected, not {type(item).__name__}."
                )
            predict = not item.timed if predict_durations is None else predict_durations
            if predict and cfg.duration_hidden:
                predicted.append(index)
                if item.timed:
                    item = units.from_string(units.to_string(item), cfg.common_style)
            ids.append(_stack_ids(item, voice, cfg))
        if predicted:
            codes = [(ids[index][:, 0],) for index in predicted]
            durations = self._run_windows(self._durations, codes, DURATION_REACH)
            for index, log_frames in zip(predicted, durations, strict=True):
                ids[index] = np.repeat(ids[index], hifigan.to_frames(log_frames), axis=0)
        inputs = [(ids_tc,) for ids_tc in ids]
        if cfg.source_harmonics:
            tracks = self._run_windows(self._f0, inputs, harmonic_source.REACH)
            inputs = [
                (ids_tc, harmonic_source.excite(harmonic_source.to_f0(track), cfg.code_hop))
                for ids_tc, track in zip(ids, tracks, strict=True)
            ]
        return self._run_windows(self._vocode, inputs, cfg.receptive_frames, cfg.code_hop)

    @property
    def has_vocoder(self) -> bool:
        """Whether units can be decoded."""
        return self._vocoder is not None

    @functools.cached_property
    def vocoder_stream(self) -> VocoderStream:
        """The vocoder in streaming form, for speech whose units are not all known yet.

        Raises:
          InputError: there is no vocoder.
        """
        _ = self.vocoder_config
        return VocoderStream(self._vocoder, self._vocoder_params)

    def vocoder_ids(
        self,
        speech: Units,
        speaker_id: int | str | None = None,
        style_id: int | str | None = None,
    ) -> np.ndarray:
        """The input of `vocoder_stream`, int32 (units, channels).

        Args:
          speech: units of a unit string, not timed.
          speaker_id, style_id: see `decode_batch`.

        Raises:
          InputError: see `decode_batch`.
        """
        voice = self.find_voice(speaker_id, style_id)
        return _stack_ids(speech, voice, self.vocoder_config)

    def find_voice(
        self, speaker_id: int | str | None, style_id: int | str | None
    ) -> dict[str, int]:
        """Ids by channel, "speaker" and "style_id"; raises `InputError` for an unknown name."""
        return self.vocoder_config.find_voice(speaker_id, style_id)

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
        """Runs a vocoder network over inputs of any length, in windows.

        Args:
          function: compiled, of padded inputs and lengths.
          utterances: tuples of arrays that share their first length, frames.
          reach: frames on each side that an output depends on.
          hop: output values for each frame.

        Returns:
          The outputs of each utterance.
        """
        windows_by_item = [list(_windows(len(inputs[0]), reach)) for inputs in utterances]
        items = [
            tuple(array[low:high] for array in inputs)
            for inputs, windows in zip(utterances, windows_by_item, strict=True)
            for low, high, _ in windows
        ]
        outputs = iter(self._run(function, items, VOCODER_RATE))
        empty = np.zeros(0, np.float32)
        results = []
        for windows in windows_by_item:
            parts = [next(outputs)[keep.start * hop : keep.stop * hop] for _, _, keep in windows]
            results.append(np.concatenate(parts) if parts else empty)
        return results

    def _run(self, function, items, rate: int, extra: int = 0) -> list[np.ndarray]:
        """Runs a network over items padded to buckets.

        Args:
          function: compiled, of padded inputs and lengths.
          items: tuples of arrays that share their first length.
          rate: rows a second of these arrays.
          extra: rows beyond that, whatever the duration.

        Returns:
          The outputs of each item.
        """
        longest = self.config.chunk_seconds if rate != VOCODER_RATE else WINDOW_FRAMES / rate
        seconds = [*(s for s in BUCKET_SECONDS if s < longest), longest]
        buckets = [math.ceil(s * rate) + extra for s in seconds]

        def rows_of(bucket: int) -> int:
            return max(1, self._batch_seconds * rate // bucket)

        return bucketing.run(function, items, buckets, rows_of, function.devices)

    @property
    def vocoder_config(self) -> hifigan.HifiGanConfig:
        """The config of the vocoder; raises `InputError` if there is none."""
        if self._vocoder is None:
            raise InputError(f"{self._folder}: has no vocoder, so it cannot decode units.")
        return self._vocoder.config

    def _check(self, name: str, params: checkpoint.Params, sample_rate: int = SAMPLE_RATE) -> None:
        """Checks that a network is the one that the config's hash was computed of."""
        if checkpoint.hash_params(params) != self.config.hashes.get(name):
            raise InputError(
                f"{self._folder}: the network '{name}' is not the one that this speech tokenizer "
                "was written with; copy the whole folder, or convert it again."
            )
        if sample_rate != SAMPLE_RATE:
            raise InputError(
                f"{self._folder / name}: works at {sample_rate} Hz; expected {SAMPLE_RATE} Hz."
            )


def _compile(
    devices, model, params, method=None, finish: Callable[..., Any] = lambda *out: out
) -> sharding.DataParallel:
    """The jitted network with its parameters on the devices."""
    static = {"model": model, "method": method, "finish": finish}
    return sharding.DataParallel(functools.partial(_apply, **static), params, devices)


@functools.partial(jax.jit, static_argnames=("model", "method", "finish"))
def _apply(params, *args, model, method, finish):
    """Is one function for all instances, so a model that is loaded again is not compiled again."""
    return finish(*model.apply({"params": params}, *args, method=method))


def _vocode_with_source(vocoder, ids_btc: jax.Array, source_bte: jax.Array, lengths_b: jax.Array):
    return vocoder(ids_btc, lengths_b, source_bte)


def _best(logits: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), lengths


def _stack_ids(item: Units, voice: dict[str, int], cfg: hifigan.HifiGanConfig) -> np.ndarray:
    """The vocoder's input, int32 (frames, channels); negative units are padding and left out."""
    streams = {"code": item.hubert, "pitch": item.pitch, "style": item.style}
    ids_tc = hifigan.stack_ids(streams, voice, cfg, timed=item.timed)
    return ids_tc[item.hubert >= 0]


def _windows(n: int, reach: int) -> Iterator[tuple[int, int, slice]]:
    """Windows (low, high) over `n` frames, and the part of each whose context is complete."""
    step = n if n <= WINDOW_FRAMES else WINDOW_FRAMES - 2 * reach
    for start in range(0, n, max(step, 1)):
        low, high = max(0, start - reach), min(n, start + step + reach)
        yield low, high, slice(start - low, min(start + step, n) - low)
