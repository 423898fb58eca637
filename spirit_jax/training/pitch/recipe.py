"""Trains the VQ-VAE of pitch units on the F0 of recordings.

Letters: b batch, t time (frames of input and output, or codes), d code width, v codes; 2: F0 and
voicing.

The recipe is that of arXiv 2104.00355 (section 3.1 and its configs): segments of 1.04 s, mean
squared error and commitment loss, and a codebook that is updated by exponential moving averages
(`pitch/codebook.py`). Inputs are F0, normalised by `normalise_f0`, and voicing; the outputs are
their reconstructions. Converted networks use the same normalisation.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from spirit_jax import checkpoint, files
from spirit_jax.data.manifest import Item
from spirit_jax.data.speech import Row, SpeechStream, stack
from spirit_jax.models import pitch
from spirit_jax.models.frames import length_mask
from spirit_jax.models.pitch import PitchConfig, PitchVqVae
from spirit_jax.training import f0_tracks
from spirit_jax.training.optimizer import decay_by_epoch, make_schedule
from spirit_jax.training.pitch import codebook as codebook_lib
from spirit_jax.training.pitch import report
from spirit_jax.training.pitch.codebook import Codebook
from spirit_jax.training.pitch.config import PitchRunConfig
from spirit_jax.training.recipe import SpeechRecipe, code_usage, read_start
from spirit_jax.training.step import Metrics, TrainState

EVAL_FRAMES = 2000  # of each held-out recording, 10 s


class PitchRecipe(SpeechRecipe[PitchRunConfig]):
    """Trains the pitch VQ-VAE; the `extra` of the train state is the codebook."""

    def __init__(self, config: PitchRunConfig):
        super().__init__(config)
        self.network, self.start = read_start(config, "pitch", pitch.load)
        self.model = PitchVqVae(self.network)

    @property
    def batch_tokens(self) -> int:
        """Frames of F0 in a batch."""
        return self.config.data.batch_rows * self.config.segment_frames

    @functools.cached_property
    def features(self) -> list[np.ndarray]:
        """The network's input for each training recording, (t, 2)."""
        return read_features(self.training_items(), self.config, self.network)

    @functools.cached_property
    def schedule(self) -> optax.Schedule:
        """Learning rate by step, with decay after each epoch."""

        def epoch_steps() -> int:
            return max(len(self.features) // self.config.data.batch_rows, 1)

        schedule = make_schedule(self.config.optimizer, self.config.steps)
        return decay_by_epoch(schedule, self.config.epoch_decay, epoch_steps)

    def init(self) -> tuple[Any, Codebook]:
        """See `Recipe.init`."""
        params = self.start
        if params is None:
            example = jnp.zeros((1, 64, 2)), jnp.full(1, 64)
            key = jax.random.key(self.config.seed)
            params = self.model.init(key, *example, method="everything")["params"]
        params = dict(params)
        codes_vd = jnp.asarray(params.pop("codebook"))
        # All codes of a trained network start with the mean count, so that none counts as dead.
        strides = int(np.prod([stride for stride, _, _ in self.network.downs]))
        count = 0.0  # of a new network: all codes are re-initialised in the first step
        if self.start is not None:
            count = self.batch_tokens / strides / self.network.num_codes
        return params, codebook_lib.start(codes_vd, count)

    def loss(self, params: Any, state: TrainState, batch: Row) -> tuple[Metrics, Codebook]:
        """See `Recipe.loss`; also updates the codebook."""
        codes_vd = state.extra.codes_vd
        output = run_network(self.model, params, codes_vd, **batch)
        metrics = measure(output, self.config, self.network.num_codes)
        codebook, restarts = codebook_lib.update(
            state.extra,
            output.latent_btd.reshape(-1, codes_vd.shape[1]),
            output.codes_bt.ravel(),
            output.code_mask_bt.ravel().astype(jnp.float32),
            jax.random.fold_in(jax.random.key(self.config.seed), state.step),
            self.config.ema,
        )
        return metrics | {"restarts": restarts}, jax.lax.stop_gradient(codebook)

    def make_stream(self, rows: list[int]) -> SpeechStream:
        """See `Recipe.make_stream`."""
        make = functools.partial(make_row, segment_frames=self.config.segment_frames)
        return SpeechStream(self.features, make, self.config.data, rows)

    @functools.cached_property
    def held_out(self) -> Row:
        """The first seconds of the held-out recordings, as one batch."""
        features = read_features(self.held_out_items(), self.config, self.network)
        rows = [features_t2[:EVAL_FRAMES] for features_t2 in features]
        longest = max(len(features_t2) for features_t2 in rows)
        return stack([make_row(row_t2, np.random.default_rng(0), longest) for row_t2 in rows])

    @functools.cached_property
    def reconstruct(self) -> Callable[[TrainState, Row], tuple[Metrics, "PitchOutput"]]:
        """Jitted: (state, batch) to metrics and the output of the network."""

        def run(state: TrainState, batch: Row):
            output = run_network(self.model, state.params, state.extra.codes_vd, **batch)
            return measure(output, self.config, self.network.num_codes), output

        return jax.jit(run)

    def evaluate(self, state: TrainState, mesh: jax.sharding.Mesh) -> dict[str, float]:
        """The same metrics as in training, on held-out recordings."""
        return jax.tree.map(float, self.reconstruct(state, self.held_out)[0])

    def report(self, state: TrainState, folder: Path) -> None:
        """Plots F0 and its reconstruction, and makes audio of both."""
        output = jax.tree.map(np.asarray, self.reconstruct(state, self.held_out)[1])

        def unpad(array, mask_bt):
            return [row[mask_t] for row, mask_t in zip(array, mask_bt, strict=True)]

        report.write(
            folder,
            unpad(output.features_bt2, output.mask_bt),
            unpad(output.decoded_bt2, output.mask_bt),
            unpad(output.codes_bt, output.code_mask_bt),
        )

    def write(self, state: TrainState, output: Path) -> None:
        """Writes the network folder in the form that a speech tokenizer has."""
        params = {**state.params, "codebook": state.extra.codes_vd}
        checkpoint.save_network(output, self.network, jax.tree.map(np.asarray, params))


def read_features(
    items: list[Item], config: PitchRunConfig, network: PitchConfig
) -> list[np.ndarray]:
    """Normalised F0 and voicing of each recording, float32 (t, 2).

    Args:
      items: the recordings; F0 is cached in the run folder.
      config: of the run.
      network: config of the network.
    """
    tracks = f0_tracks.read_tracks(items, config.f0, files.as_path(config.run_dir) / "f0")
    means = f0_tracks.speaker_means(items, tracks) if config.mean == "speaker" else {}
    return [
        pitch.normalise_f0(track.f0_t, track.voiced_t, network, means.get(item.speaker))
        for item, track in zip(items, tracks, strict=True)
    ]


def make_row(features_t2: np.ndarray, rng: np.random.Generator, segment_frames: int) -> Row:
    """A row of a batch: a random segment, padded with zeros, and its true length.

    Args:
      features_t2: float32, of a recording.
      rng: random generator.
      segment_frames: length of the row.
    """
    start = int(rng.integers(max(len(features_t2) - segment_frames, 0) + 1))
    piece = features_t2[start : start + segment_frames]
    padded = np.pad(piece, ((0, segment_frames - len(piece)), (0, 0)))
    return {"features_bt2": padded, "lengths_b": np.int32(len(piece))}


@struct.dataclass
class PitchOutput:
    """The network's output for a batch, and its input.

    Attributes:
      features_bt2: the input.
      decoded_bt2: the decoder's output, as long as the input.
      mask_bt: bool, True for frames that both input and output have.
      latent_btd: the encoder's output.
      quantized_btd: the code nearest to each latent.
      codes_bt: int32, the indices of these codes.
      code_mask_bt: bool, False for padding.
    """

    features_bt2: jax.Array
    decoded_bt2: jax.Array
    mask_bt: jax.Array
    latent_btd: jax.Array
    quantized_btd: jax.Array
    codes_bt: jax.Array
    code_mask_bt: jax.Array


def run_network(
    model: PitchVqVae,
    params: Any,
    codes_vd: jax.Array,
    features_bt2: jax.Array,
    lengths_b: jax.Array,
) -> PitchOutput:
    """Encodes, quantizes and decodes F0, with a straight-through gradient.

    Args:
      model: the VQ-VAE.
      params: its parameters, without the codebook.
      codes_vd: float32, the codebook.
      features_bt2: float32, input.
      lengths_b: int32, true numbers of frames.
    """
    variables = {"params": {**params, "codebook": codes_vd}}
    latent_btd, counts_b = model.apply(variables, features_bt2, lengths_b, method="latent")
    codes_bt = pitch.nearest_codes(latent_btd, codes_vd, model.config.precision)
    quantized_btd = jax.lax.stop_gradient(codes_vd[codes_bt])
    straight_through_btd = latent_btd + jax.lax.stop_gradient(quantized_btd - latent_btd)
    decoder = pitch.Decoder(model.config)
    decoded_bt2, decoded_b = decoder.apply(
        {"params": params["decoder"]}, straight_through_btd, counts_b
    )
    size = features_bt2.shape[1]
    rest = max(size - decoded_bt2.shape[1], 0)
    decoded_bt2 = jnp.pad(decoded_bt2, ((0, 0), (0, rest), (0, 0)))[:, :size]
    return PitchOutput(
        features_bt2,
        decoded_bt2,
        length_mask(jnp.minimum(lengths_b, decoded_b), size),
        latent_btd,
        quantized_btd,
        codes_bt,
        length_mask(counts_b, codes_bt.shape[1]),
    )


def measure(output: PitchOutput, config: PitchRunConfig, num_codes: int) -> dict[str, jax.Array]:
    """The loss, its terms, and the usage of codes.

    `f0_rmse` is in Hz and over voiced frames; `voicing_error` is a share of all frames.
    """

    def mean(values, mask):
        return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1)

    errors_bt2 = jnp.square(output.decoded_bt2 - output.features_bt2)
    scaled_bt = errors_bt2[..., 0] / config.scale**2 + errors_bt2[..., 1]
    distances_bt = jnp.square(output.latent_btd - output.quantized_btd).mean(-1)
    reconstruction = mean(scaled_bt, output.mask_bt)
    commitment = mean(distances_bt, output.code_mask_bt) / config.scale**2
    voiced_bt = output.features_bt2[..., 1] > 0
    wrong_bt = (output.decoded_bt2[..., 1] > 0.5) != voiced_bt
    ones_bt = output.code_mask_bt.astype(jnp.float32)
    counts_v = jnp.zeros(num_codes).at[output.codes_bt].add(ones_bt)
    codes_used, perplexity = code_usage(counts_v)
    return {
        "loss": reconstruction + config.commitment * commitment,
        "reconstruction": reconstruction,
        "commitment": commitment,
        "f0_rmse": jnp.sqrt(mean(errors_bt2[..., 0], output.mask_bt & voiced_bt)),
        "voicing_error": mean(wrong_bt, output.mask_bt),
        "codes_used": codes_used,
        "perplexity": perplexity,
    }
