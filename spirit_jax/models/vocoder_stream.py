"""The streaming form of the vocoder: units in, samples out, while units are generated.

Letters: c channels, u units, t frames, s samples.

Three networks run one after the other: durations of units, F0 of frames (only with a harmonic
source), and the generator. The duration predictor and the generator have a streaming form
(`hifigan_stream.py`). F0 is predicted in windows: it determines the phase of the harmonics, so a
rounding error in each frame would add up; in a window of this size the sums are rounded as in the
offline form. All samples together are those that the offline form gives for all units together.

    vocoder = VocoderStream(model, params)
    state = vocoder.start()
    for ids_uc in chunks:
        state, wave_s = vocoder.step(state, ids_uc)
    wave_s = vocoder.finish(state)
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spirit_jax.models import harmonic_source, hifigan, hifigan_stream
from spirit_jax.models.hifigan_stream import Layers, NetworkState, Signal
from spirit_jax.models.vocoder_configs import HifiGanConfig

SIZES = (16, 4, 1)  # frames or units of a compiled chunk
F0_WINDOW = 150  # frames; a length to which the offline form pads too


@dataclasses.dataclass(frozen=True)
class VocoderState:
    """The state of a stream between two steps; a step returns a new one and keeps the old one.

    Attributes:
      durations: of the duration predictor; None if each unit has one frame.
      generator: of the generator.
      waiting_uc: int32, ids of the last units, whose durations depend on units to come.
      context_units: how many of the next units to get a duration are context, without samples.
      recent_tc: int32, ids of the last frames, with all whose F0 depends on frames to come.
      frames: number of frames so far.
      cycles: of F0 in these frames, except the last few whose F0 depends on frames to come.
      to_skip: how many of the generator's next samples are not output: they come before the first
        frame, because of the look-ahead, or belong to context.
    """

    durations: NetworkState | None
    generator: NetworkState
    waiting_uc: np.ndarray
    recent_tc: np.ndarray
    to_skip: int
    context_units: int = 0
    frames: int = 0
    cycles: float = 0.0


class VocoderStream:
    """The vocoder in streaming form; several streams may use it at the same time.

    Attributes:
      look_ahead: number of samples that are missing after a step, because they depend on frames to
        come.
      unit_look_ahead: number of units to come that a unit's duration depends on.
    """

    def __init__(self, model: hifigan.HifiGan, params: Any):
        """Nothing is compiled yet; see `warm_up`.

        Args:
          model: the vocoder.
          params: its parameters, on the device.
        """
        cfg = model.config
        self.config = cfg
        self._generator = _Network(_generate, cfg, params)
        self._predict_f0 = functools.partial(_predict_f0, model, params)
        self._durations = _Network(_predict_durations, cfg, params) if cfg.duration_hidden else None
        self.look_ahead = self._generator.delay
        self.unit_look_ahead = self._durations.delay if self._durations else 0

    def start(
        self, context_uc: np.ndarray | None = None, predict_durations: bool = True
    ) -> VocoderState:
        """The state of a new stream.

        Args:
          context_uc: int32, ids of units before the first unit with samples (see `step`). Their
            durations and F0 are computed, which is cheap, so that what follows is the same as after
            vocoding them; but only the last frames within the receptive field are vocoded.
          predict_durations: otherwise, or if the vocoder has no duration predictor, each unit has
            one frame.
        """
        none_uc = np.zeros((0, len(self.config.channels)), np.int32)
        predicted = self._durations if predict_durations else None
        state = VocoderState(
            predicted.start() if predicted else None,
            self._generator.start(),
            none_uc,
            none_uc,
            self.look_ahead,
        )
        if context_uc is None or not len(context_uc):
            return state
        state = dataclasses.replace(state, context_units=len(context_uc))
        state, ids_tc, _ = self._expand(state, context_uc)
        split = max(0, len(ids_tc) - self.config.receptive_frames)
        state, _ = self._excite(state, ids_tc[:split])
        # The samples of frames that are not vocoded need not be skipped.
        to_skip = state.to_skip - split * self.config.code_hop
        return self._vocode(dataclasses.replace(state, to_skip=to_skip), ids_tc[split:])[0]

    def step(self, state: VocoderState, ids_uc: np.ndarray) -> tuple[VocoderState, np.ndarray]:
        """Adds units.

        Args:
          state: of the stream.
          ids_uc: int32, ids of any number of units, as `hifigan.stack_ids` gives them.

        Returns:
          The new state, and the samples that depend on no units to come, float32.
        """
        state, ids_tc, _ = self._expand(state, ids_uc)
        return self._vocode(state, ids_tc)

    def finish(self, state: VocoderState) -> np.ndarray:
        """The last samples of a stream, float32; `state` is of no more use for `step`."""
        state, ids_tc, _ = self._expand(state, None)
        state, wave_s = self._vocode(state, ids_tc)
        after = np.zeros((-(-self.look_ahead // self.config.code_hop), ids_tc.shape[1]), np.int32)
        missing = self.look_ahead - min(self.look_ahead, state.to_skip)
        _, last_s = self._vocode(state, after, frames_left=0)
        return np.concatenate([wave_s, last_s[:missing]])

    def count_frames(
        self, state: VocoderState, ids_uc: np.ndarray | None
    ) -> tuple[VocoderState, np.ndarray]:
        """Predicts durations only.

        Args:
          state: of a stream that is used for this only.
          ids_uc: see `step`; None at the end of the stream.

        Returns:
          The new state, and the frames of the next units, int32; as many as depend on no units to
          come.
        """
        state, _, frames_u = self._expand(state, ids_uc)
        return state, frames_u

    def warm_up(self) -> None:
        """Compiles all steps, so that nothing is compiled later."""
        for network in (self._durations, self._generator):
            if network:
                network.warm_up()
        if self.config.source_harmonics:
            self._find_f0(np.zeros((1, len(self.config.channels)), np.int32), 0, 1)

    def _expand(
        self, state: VocoderState, ids_uc: np.ndarray | None
    ) -> tuple[VocoderState, np.ndarray, np.ndarray]:
        """Repeats units for as many frames as they last; `ids_uc` is None at the end.

        Returns:
          The new state, int32 ids of the new frames (t, c), and frames of the units that have a
          duration now.
        """
        at_end = ids_uc is None
        if at_end:
            ids_uc = np.zeros((self.unit_look_ahead, state.waiting_uc.shape[1]), np.int32)
        units_uc, durations = np.concatenate([state.waiting_uc, ids_uc]), state.durations
        count = len(units_uc)
        if durations is None:
            count = 0 if at_end else count
            frames_u = np.ones(count, np.int32)
        elif len(ids_uc):
            count = max(0, count - self.unit_look_ahead)
            frames_left = 0 if at_end else None
            durations, logs_u1 = self._durations.step(durations, (ids_uc,), frames_left)
            frames_u = hifigan.to_frames(logs_u1[len(logs_u1) - count :, 0])
        else:
            count, frames_u = 0, np.zeros(0, np.int32)
        silent = min(state.context_units, count)
        state = dataclasses.replace(
            state,
            durations=durations,
            waiting_uc=units_uc[count:],
            context_units=state.context_units - silent,
            to_skip=state.to_skip + int(frames_u[:silent].sum()) * self.config.code_hop,
        )
        return state, np.repeat(units_uc[:count], frames_u, axis=0), frames_u

    def _vocode(
        self, state: VocoderState, ids_tc: np.ndarray, frames_left: int | None = None
    ) -> tuple[VocoderState, np.ndarray]:
        """The samples of frames; `frames_left` is None before the end."""
        if not len(ids_tc):
            return state, np.zeros(0, np.float32)
        state, source_te = self._excite(state, ids_tc, at_end=frames_left is not None)
        inputs = (ids_tc,) if source_te is None else (ids_tc, source_te)
        generator, wave_s1 = self._generator.step(state.generator, inputs, frames_left)
        skipped = min(state.to_skip, len(wave_s1))
        state = dataclasses.replace(state, generator=generator, to_skip=state.to_skip - skipped)
        return state, wave_s1[skipped:, 0]

    def _excite(
        self, state: VocoderState, ids_tc: np.ndarray, at_end: bool = False
    ) -> tuple[VocoderState, np.ndarray | None]:
        """The harmonic source of frames; at the end `ids_tc` is padding.

        Returns:
          The new state, and the input of `harmonic_source.sines`, as long as `ids_tc` but late by
          `harmonic_source.REACH` frames; None without a harmonic source.
        """
        if not self.config.source_harmonics or not len(ids_tc):
            return state, None
        hop, reach, new_tc = (
            self.config.code_hop,
            harmonic_source.REACH,
            ids_tc[: 0 if at_end else None],
        )
        before, frames = max(0, state.frames - reach), state.frames + len(new_tc)
        known_tc = np.concatenate([state.recent_tc, new_tc])
        first = len(known_tc) - (frames - before)
        count = max(0, frames - (0 if at_end else reach) - before)
        f0_tk = self._find_f0(known_tc, first, count)
        source_te = np.zeros((len(ids_tc), harmonic_source.PARTS + 1), np.float32)
        missing = min(len(ids_tc), max(0, reach - state.frames))  # before the first frame
        source_te[missing:][:count] = harmonic_source.excite(f0_tk, hop, state.cycles)
        state = dataclasses.replace(
            state,
            recent_tc=known_tc[-2 * reach :],
            frames=frames,
            cycles=state.cycles + float(harmonic_source.count_cycles(f0_tk, hop).sum()),
        )
        return state, source_te

    def _find_f0(self, ids_tc: np.ndarray, first: int, count: int) -> np.ndarray:
        """F0 in Hz, (count, PARTS), of frames from `first`; the other frames are context."""
        reach, parts = harmonic_source.REACH, [np.zeros((0, harmonic_source.PARTS))]
        step = F0_WINDOW - 2 * reach
        for start in range(first, first + count, step):
            low, stop = max(0, start - reach), min(start + step, first + count)
            window_tc = ids_tc[low : stop + reach]
            padded_tc = np.zeros((F0_WINDOW, ids_tc.shape[1]), np.int32)
            padded_tc[: len(window_tc)] = window_tc
            predicted_te = np.asarray(self._predict_f0(padded_tc, np.int32(len(window_tc))))
            parts.append(harmonic_source.to_f0(predicted_te[start - low : stop - low]))
        return np.concatenate(parts)


class _Network:
    """A network in streaming form: splits chunks of any length into few compiled lengths."""

    def __init__(self, function: Callable[..., Signal], config: HifiGanConfig, params: Any):
        """Finds the delay and the shapes of the state, without running anything.

        Args:
          function: `(layers, params, config, ids_btc, ...)` to a `Signal`.
          config: of the vocoder.
          params: all parameters of the vocoder.
        """
        self._function, self._config, self._params = function, config, params
        outputs = jax.eval_shape(self._run, None, self._examples(1), 0)
        self._empty = outputs[0]
        self.delay = outputs[1].delay

    def start(self) -> NetworkState:
        """The state before the first chunk."""
        return jax.tree.map(lambda array: np.zeros(array.shape, array.dtype), self._empty)

    def step(
        self, state: NetworkState, inputs: tuple[np.ndarray, ...], frames_left: int | None
    ) -> tuple[NetworkState, np.ndarray]:
        """Runs frames of any number, at least one.

        Args:
          state: from the step before.
          inputs: arrays that share their first length, frames.
          frames_left: see `Layers`; None if the end is not known yet.

        Returns:
          The new state, and the values for these frames, (frames * rate, channels).
        """
        values, start = [], 0
        for size in _split(len(inputs[0])):
            chunk = tuple(array[None, start : start + size] for array in inputs)
            left = hifigan_stream.most_frames(self._config)
            left = left if frames_left is None else frames_left - start
            state, signal = self._run(state, chunk, np.int32(left))
            values.append(signal.x_btc)
            start += size
        return state, np.concatenate([np.asarray(x_btc)[0] for x_btc in values])

    def warm_up(self) -> None:
        """Compiles all sizes."""
        for size in SIZES:
            self._run(self.start(), self._examples(size), np.int32(0))

    def _run(self, state, chunk, left):
        return _run_chunk(
            self._params, state, chunk, left, function=self._function, config=self._config
        )

    def _examples(self, size: int) -> tuple[np.ndarray, ...]:
        ids_btc = np.zeros((1, size, len(self._config.channels)), np.int32)
        if self._function is _generate and self._config.source_harmonics:
            return ids_btc, np.zeros((1, size, harmonic_source.PARTS + 1), np.float32)
        return (ids_btc,)


def _split(count: int) -> Iterator[int]:
    """Compiled sizes that together are `count`, the largest first."""
    for size in SIZES:
        yield from [size] * (count // size)
        count %= size


@functools.partial(jax.jit, static_argnames=("function", "config"))
def _run_chunk(params, state, chunk, frames_left, *, function, config):
    layers = Layers(config, state, frames_left)
    signal = function(layers, params, config, *chunk)
    return layers.next_state(chunk[0].shape[1]), signal


def _generate(layers, params, config: HifiGanConfig, ids_btc, source_bte=None) -> Signal:
    sines = None
    if config.source_harmonics:
        hop = config.code_hop
        sines_bsh = harmonic_source.sines(source_bte, hop, config.source_harmonics)
        sines = Signal(sines_bsh, hop, harmonic_source.REACH * hop)
    x = Signal(_embed(params, config, ids_btc, config.channels))
    return hifigan_stream.generator(layers, params["generator"], config, x, sines)


@functools.partial(jax.jit, static_argnums=0)
def _predict_f0(model, params, ids_tc, length):
    predict = functools.partial(model.apply, method="predict_f0")
    return predict({"params": params}, ids_tc[None], length[None])[0][0]


def _predict_durations(layers, params, config: HifiGanConfig, ids_btc) -> Signal:
    x = Signal(_embed(params, config, ids_btc, ("code",)))
    return hifigan_stream.duration_predictor(layers, params["duration"], config, x)


def _embed(params, config: HifiGanConfig, ids_btc: jax.Array, names) -> jax.Array:
    """The embedded ids of some channels, (b, t, c)."""
    columns = {name: i for i, name in enumerate(config.channels)}
    tables = {name: params[f"embed_{name}"]["embedding"] for name in names}
    embedded = [jnp.asarray(table)[ids_btc[..., columns[name]]] for name, table in tables.items()]
    return jnp.concatenate(embedded, axis=-1)
