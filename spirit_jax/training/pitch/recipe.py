"""Trains the VQ-VAE of pitch units on the F0 of recordings.

Letters: b batch, t time (frames, then codes), d code width, v codes, n all codes of a batch.

The recipe is that of arXiv 2104.00355 (section 3.1 and its configs): segments of 1.04 s, mean
squared error and commitment, and a codebook that follows moving averages (`codebook`). Input and
output are F0 in Hz as `normalise_f0` gives it, as of converted networks.
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

from spirit_jax import checkpoint
from spirit_jax.data import f0_cache
from spirit_jax.data.manifest import Item
from spirit_jax.data.speech import Row, SpeechStream, stack
from spirit_jax.models import pitch
from spirit_jax.models.frames import length_mask
from spirit_jax.models.pitch import PitchConfig, PitchVqVae
from spirit_jax.training.optimizer import decay_by_epoch, make_schedule
from spirit_jax.training.pitch import codebook as codebook_lib
from spirit_jax.training.pitch import report
from spirit_jax.training.pitch.codebook import Codebook
from spirit_jax.training.pitch.config import PitchRunConfig
from spirit_jax.training.recipe import SpeechRecipe, code_usage, read_start
from spirit_jax.training.step import Metrics, TrainState

EVAL_FRAMES = 2000  # of a held-out recording, 10 s


class PitchRecipe(SpeechRecipe[PitchRunConfig]):
    """The training of the pitch VQ-VAE; the state's `extra` is its codebook."""

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
        """The network's input for each recording of the training, (t, 2)."""
        return read_features(self.training_items(), self.config, self.network)

    @functools.cached_property
    def schedule(self) -> optax.Schedule:
        """Learning rate by step; it decays by epochs."""

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
        # Codes of a trained network are kept as long as those of average use.
        strides = int(np.prod([stride for stride, _, _ in self.network.downs]))
        count = 0.0
        if self.start is not None:
            count = self.batch_tokens / strides / self.network.num_codes
        return params, codebook_lib.start(codes_vd, count)

    def loss(self, params: Any, state: TrainState, batch: Row) -> tuple[Metrics, Codebook]:
        """See `Recipe.loss`; the codebook follows the latents of the batch."""
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
        """The beginnings of the held-out recordings as one batch."""
        features = read_features(self.held_out_items(), self.config, self.network)
        rows = [features_t2[:EVAL_FRAMES] for features_t2 in features]
        longest = max(len(features_t2) for features_t2 in rows)
        return stack([make_row(row_t2, np.random.default_rng(0), longest) for row_t2 in rows])

    @functools.cached_property
    def reconstruct(self) -> Callable[[TrainState, Row], tuple[Metrics, "PitchOutput"]]:
        """Jitted, of (state, batch): metrics and the output of the network."""

        def run(state: TrainState, batch: Row):
            output = run_network(self.model, state.params, state.extra.codes_vd, **batch)
            return measure(output, self.config, self.network.num_codes), output

        return jax.jit(run)

    def evaluate(self, state: TrainState, mesh: jax.sharding.Mesh) -> dict[str, float]:
        """The metrics of the training on held-out recordings."""
        return jax.tree.map(float, self.reconstruct(state, self.held_out)[0])

    def report(self, state: TrainState, folder: Path) -> None:
        """Plots F0 before and after, and makes both audible."""
        output = jax.tree.map(np.asarray, self.reconstruct(state, self.held_out)[1])

        def true(array, mask_bt):
            return [row[mask_t] for row, mask_t in zip(array, mask_bt, strict=True)]

        report.write(
            folder,
            true(output.features_bt2, output.mask_bt),
            true(output.decoded_bt2, output.mask_bt),
            true(output.codes_bt, output.code_mask_bt),
        )

    def write(self, state: TrainState, output: Path) -> None:
        """Writes the network as its folder in a speech tokenizer has it."""
        params = {**state.params, "codebook": state.extra.codes_vd}
        checkpoint.save_network(output, self.network, jax.tree.map(np.asarray, params))


def read_features(
    items: list[Item], config: PitchRunConfig, network: PitchConfig
) -> list[np.ndarray]:
    """The network's input for each recording, float32 (t, 2)."""
    tracks = f0_cache.read_tracks(items, config.f0, Path(config.run_dir) / "f0")
    means = f0_cache.speaker_means(items, tracks) if config.mean == "speaker" else {}
    return [
        pitch.normalise_f0(track.f0_t, track.voiced_t, network, means.get(item.speaker))
        for item, track in zip(items, tracks, strict=True)
    ]


def make_row(features_t2: np.ndarray, rng: np.random.Generator, segment_frames: int) -> Row:
    """A segment from a place drawn at random, padded with zeros, and its true length."""
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
      mask_bt: frames that both have.
      latent_btd: before quantization.
      quantized_btd: their codes' vectors.
      codes_bt: int32.
      code_mask_bt: codes that are true ones.
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
    """To codes and back; gradients pass quantization as if it were not there."""
    variables = {"params": {**params, "codebook": codes_vd}}
    latent_btd, counts_b = model.apply(variables, features_bt2, lengths_b, method="latent")
    codes_bt = pitch.nearest_codes(latent_btd, codes_vd, model.config.precision)
    quantized_btd = jax.lax.stop_gradient(codes_vd[codes_bt])
    passed_btd = latent_btd + jax.lax.stop_gradient(quantized_btd - latent_btd)
    decoder = pitch.Decoder(model.config)
    decoded_bt2, decoded_b = decoder.apply({"params": params["decoder"]}, passed_btd, counts_b)
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
    """The loss and its terms; the error of F0 in Hz is over voiced frames."""

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
