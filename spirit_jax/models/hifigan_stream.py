"""The streaming form of the vocoder's networks: chunks of frames in, chunks of samples out.

Letters: b batch, t time (values of a signal), c channels, u units, s samples.

A layer keeps the last values of its input, its left context, so each value is computed once. A
layer that pads both sides also needs values on the right. Its output is therefore late: each signal
has a delay, and the delay of the waveform is the look-ahead of the whole network. A chunk of n
frames gives n * rate values in every layer, so there is one compiled program for each size of
chunk. Values before the first frame and after the last are zeroed before each conv, as in the
offline form (`hifigan.py`), so both forms give the same values.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from spirit_jax.models.conv import conv1d
from spirit_jax.models.hifigan import FINAL_SLOPE, SLOPE, duration_paddings, split_phases
from spirit_jax.models.vocoder_configs import FRAME_DILATIONS, HifiGanConfig


@struct.dataclass
class Signal:
    """A chunk of a layer's values.

    Attributes:
      x_btc: float32. Its first value is at position `frames * rate - delay` of the whole signal,
        where `frames` is the number of frames before the chunk; positions below 0 are undefined.
      rate: values for each frame.
      delay: number of values that are still missing after the chunk, because they depend on later
        frames.
      longer: number of values of the whole signal beyond `rate` for each frame; may be negative.
    """

    x_btc: jax.Array
    rate: int = struct.field(pytree_node=False, default=1)
    delay: int = struct.field(pytree_node=False, default=0)
    longer: int = struct.field(pytree_node=False, default=0)

    def map(self, function: Callable[[jax.Array], jax.Array]) -> "Signal":
        """The signal with a function applied to its values."""
        return self.replace(x_btc=function(self.x_btc))


@struct.dataclass
class NetworkState:
    """What a network keeps from one chunk to the next.

    Attributes:
      frames: int32 scalar, number of frames so far, up to `most_frames`.
      contexts: for each layer in order the last values of its input, float32 (b, context, c).
    """

    frames: jax.Array
    contexts: tuple[jax.Array, ...]


def most_frames(config: HifiGanConfig) -> int:
    """The largest number of frames that is counted, so that positions of samples fit in int32.

    The count only tells whether a chunk is near the beginning or the end of a stream.
    """
    return (1 << 30) // config.code_hop


class Layers:
    """The layers of a network, for one chunk: reads each layer's context and keeps the new one."""

    def __init__(
        self, config: HifiGanConfig, state: NetworkState | None, frames_left: jax.Array | int
    ):
        """Begins a chunk.

        Args:
          config: of the vocoder.
          state: from the chunk before; None at the beginning of a stream.
          frames_left: number of frames from the beginning of the chunk to the end of the stream;
            `most_frames` if the end is not known yet, negative after the end.
        """
        self._config, self._frames_left = config, frames_left
        self._frames = 0 if state is None else state.frames
        self._old = None if state is None else state.contexts
        self._new: list[jax.Array] = []

    def next_state(self, frames: int) -> NetworkState:
        """The state after this chunk, which has this number of frames."""
        frames = jnp.minimum(self._frames + frames, most_frames(self._config))
        return NetworkState(jnp.int32(frames), tuple(self._new))

    def conv(self, params: Any, signal: Signal, dilation: int = 1, left: int | None = None):
        """`Conv1d`, or a conv with `left` zeros on each side."""
        reach = dilation * (len(params["kernel"]) - 1)
        before = reach // 2 if left is None else left
        longer = 0 if left is None else 2 * left - reach
        x_btc = self._extend(self._mask(signal), reach)
        y_btd = conv1d(x_btc, params["kernel"], (0, 0), dilation, 1, self._config.precision)
        return Signal(
            y_btd + params["bias"],
            signal.rate,
            signal.delay + reach - before,
            signal.longer + longer,
        )

    def upsample(self, params: Any, signal: Signal, rate: int) -> Signal:
        """`Upsample`: output q * rate + s depends on inputs q, q - 1, ..."""
        phases = split_phases(params["kernel"], rate)
        x_btc = self._extend(self._mask(signal), len(phases) - 1)
        y_btd = conv1d(x_btc, phases, (0, 0), 1, 1, self._config.precision)
        y_btd = y_btd.reshape(len(y_btd), -1, params["kernel"].shape[2]) + params["bias"]
        start = (len(params["kernel"]) - rate) // 2
        return Signal(y_btd, signal.rate * rate, signal.delay * rate + start)

    def align(self, *signals: Signal) -> list[Signal]:
        """The signals, each delayed as much as the one with the largest delay."""
        delay = max(signal.delay for signal in signals)
        return [self._delay(signal, delay) for signal in signals]

    def _delay(self, signal: Signal, delay: int) -> Signal:
        later = delay - signal.delay
        if not later:
            return signal
        x_btc = self._extend(signal.x_btc, later)
        return signal.replace(x_btc=x_btc[:, : signal.x_btc.shape[1]], delay=delay)

    def _extend(self, x_btc: jax.Array, size: int) -> jax.Array:
        """Puts the last `size` values of earlier chunks before a chunk, and keeps the new ones."""
        shape = (len(x_btc), size, x_btc.shape[2])
        old = jnp.zeros(shape, x_btc.dtype) if self._old is None else self._old[len(self._new)]
        x_btc = jnp.concatenate([old, x_btc], axis=1)
        self._new.append(x_btc[:, x_btc.shape[1] - size :])
        return x_btc

    def _mask(self, signal: Signal) -> jax.Array:
        """Zeros before the first position of the whole signal and after its last one."""
        offsets_t = jnp.arange(signal.x_btc.shape[1]) - signal.delay
        after_start_t = self._frames * signal.rate + offsets_t >= 0
        before_end_t = offsets_t < self._frames_left * signal.rate + signal.longer
        return signal.x_btc * (after_start_t & before_end_t)[:, None]


def res_block(layers: Layers, params: Any, x: Signal, dilations: tuple[int, ...]) -> Signal:
    """`hifigan.ResBlock`."""
    for i, dilation in enumerate(dilations):
        y = x
        for name, step in ((f"dilated{i}", dilation), (f"plain{i}", 1)):
            y = layers.conv(params[name], y.map(_leaky), step)
        x, y = layers.align(x, y)
        x = x.map(lambda x_btc, y=y: x_btc + y.x_btc)
    return x


def generator(
    layers: Layers, params: Any, config: HifiGanConfig, x: Signal, sines: Signal | None = None
) -> Signal:
    """`hifigan.Generator`: embedded frames, and harmonics if there are any, to samples."""
    x = layers.conv(params["conv_pre"], x)
    for i in range(config.frame_blocks):
        x = res_block(layers, params[f"frame{i}"], x, FRAME_DILATIONS)
    for i, rate in enumerate(config.upsample_rates):
        x = layers.upsample(params[f"up{i}"], x.map(_leaky), rate)
        if sines is not None:
            x = _add_source(layers, params[f"source{i}"], config, x, sines)
        blocks = [
            res_block(layers, params[f"res{i}_{j}"], x, dilations)
            for j, dilations in enumerate(config.resblock_dilations)
        ]
        blocks = layers.align(*blocks)
        x = blocks[0].replace(x_btc=sum(block.x_btc for block in blocks) / len(blocks))
    x = layers.conv(params["conv_post"], x.map(lambda x: jax.nn.leaky_relu(x, FINAL_SLOPE)))
    return x.map(jnp.tanh)


def _add_source(layers: Layers, params: Any, config: HifiGanConfig, x: Signal, sines: Signal):
    """Adds all harmonics of the samples of each value of a stage."""
    folded_btd = sines.x_btc.reshape(*x.x_btc.shape[:2], -1)
    source = Signal(folded_btd, x.rate, sines.delay * x.rate // sines.rate)
    x, source = layers.align(x, source)
    dense = nn.Dense(x.x_btc.shape[2], precision=config.precision)
    return x.map(lambda x_btc: x_btc + dense.apply({"params": params}, source.x_btc))


def duration_predictor(layers: Layers, params: Any, config: HifiGanConfig, x: Signal) -> Signal:
    """`hifigan.DurationPredictor`: embedded units to log(1 + frames)."""
    norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)
    for i, padding in enumerate(duration_paddings(config)):
        x = layers.conv(params[f"conv{i}"], x, left=padding).map(jax.nn.relu)
        x = x.map(functools.partial(norm.apply, {"params": params[f"norm{i}"]}))
    dense = nn.Dense(1, precision=config.precision)
    return x.map(lambda x_btc: dense.apply({"params": params["out"]}, x_btc))


def _leaky(x_btc: jax.Array) -> jax.Array:
    return jax.nn.leaky_relu(x_btc, SLOPE)
