"""Trains the VQ-VAE of pitch units on the F0 of recordings.

Letters: b batch, t time (frames, then codes), d code width, v codes, n all codes of a batch.

The recipe is that of arXiv 2104.00355 (section 3.1 and its configs): segments of 1.04 s, mean
squared error and commitment, and a codebook that moves by moving averages (`ema`). The network sees
and gives F0 in Hz as `normalise_f0` makes it, as converted networks do.
"""

import functools
from collections.abc import Iterator
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
from spirit_jax.models.pitch import PitchConfig, PitchVqVae
from spirit_jax.models.wav2vec2 import length_mask
from spirit_jax.training import ema, pitch_report, recipe
from spirit_jax.training.ema import Codebook
from spirit_jax.training.optimizer import make_optimizer, with_epoch_decay
from spirit_jax.training.run_configs import PitchRunConfig as RunConfig

EVAL_FRAMES = 2000  # of a held-out recording, 10 s


@struct.dataclass
class State:
    """What a step changes.

    Attributes:
      step: updates so far.
      params: of the encoder and the decoder.
      codebook: moved without gradients.
      opt_state: of the optimiser.
    """

    step: jax.Array
    params: Any
    codebook: Codebook
    opt_state: Any


def train(
    config: RunConfig, devices: list[jax.Device] | None = None, allow_changes: bool = False
) -> Iterator[dict[str, Any]]:
    """Runs to the last step, yielding each step's metrics; see `recipe.train`."""
    return recipe.train(config, make, devices, allow_changes)


def export(config: RunConfig, output: str | Path, allow_changes: bool = False) -> int:
    """Writes the newest checkpoint as a network folder; returns its step.

    Raises:
      InputError: there is no checkpoint, or `output` exists.
    """
    state = recipe.newest_state(config, make(config), allow_changes=allow_changes)
    network, _ = recipe.read_start(config, "pitch", pitch.load)
    checkpoint.save_network(output, network, jax.tree.map(np.asarray, network_params(state)))
    return int(state.step)


def network_params(state: State) -> dict[str, Any]:
    """The parameters as `PitchVqVae` has them."""
    return {**state.params, "codebook": state.codebook.codes_vd}


def make(config: RunConfig) -> recipe.Recipe:
    """The recipe; nothing is read but the folder of `start`."""
    network, started = recipe.read_start(config, "pitch", pitch.load)
    model = PitchVqVae(network)
    batch_frames = config.data.batch_rows * config.segment_frames

    @functools.cache
    def features() -> list[np.ndarray]:
        return read_features(recipe.training_items(config), config, network)

    def epoch_steps() -> int:
        return max(len(features()) // config.data.batch_rows, 1)

    optimizer = with_epoch_decay(
        make_optimizer(config.optimizer, config.steps), config.epoch_decay, epoch_steps
    )

    def init() -> State:
        params = started
        if params is None:
            one = jnp.zeros((1, 64, 2)), jnp.full(1, 64)
            params = model.init(jax.random.key(config.seed), *one, method="everything")["params"]
        params = dict(params)
        codes_vd = jnp.asarray(params.pop("codebook"))
        # Codes of a trained network are kept as long as those of average use.
        strides = int(np.prod([stride for stride, _, _ in network.downs]))
        count = 0.0 if started is None else batch_frames / strides / network.num_codes
        codebook = ema.start(codes_vd, count)
        return State(jnp.zeros((), jnp.int32), params, codebook, optimizer.init(params))

    def step(state: State, batch: Row) -> tuple[State, dict[str, jax.Array]]:
        def loss(params):
            found = run_network(model, params, state.codebook.codes_vd, **batch)
            metrics = measure(found, config, network.num_codes)
            return metrics["loss"], (metrics, found)

        grads, (metrics, found) = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        width = state.codebook.codes_vd.shape[1]
        codebook, restarts = ema.update(
            state.codebook,
            found.latent_btd.reshape(-1, width),
            found.codes_bt.ravel(),
            found.code_mask_bt.ravel().astype(jnp.float32),
            key,
            config.ema,
        )
        metrics["restarts"] = restarts
        return State(state.step + 1, params, codebook, opt_state), metrics

    def make_stream(rows: list[int]) -> SpeechStream:
        cut = functools.partial(make_row, segment_frames=config.segment_frames)
        return SpeechStream(features(), cut, config.data, rows)

    @functools.cache
    def held_out() -> Row:
        drawn = recipe.held_out_items(config)
        rows = [one[:EVAL_FRAMES] for one in read_features(drawn, config, network)]
        longest = max(len(one) for one in rows)
        made = [make_row(one, np.random.default_rng(0), longest) for one in rows]
        return stack(made)

    @jax.jit
    def reconstruct(state: State, batch: Row):
        found = run_network(model, state.params, state.codebook.codes_vd, **batch)
        return measure(found, config, network.num_codes), found

    def evaluate(state: State) -> dict[str, float]:
        return jax.tree.map(float, reconstruct(state, held_out())[0])

    def report(state: State, folder: Path) -> None:
        found = jax.tree.map(np.asarray, reconstruct(state, held_out())[1])
        parts = [found.features_bt2, found.mask_bt], [found.made_bt2, found.mask_bt]
        codes = [found.codes_bt, found.code_mask_bt]
        pitch_report.write(
            folder,
            *([row[kept] for row, kept in zip(*part, strict=True)] for part in (*parts, codes)),
        )

    judged = bool(config.data.held_out)
    return recipe.Recipe(
        init,
        step,
        make_stream,
        batch_frames,
        evaluate=evaluate if judged else None,
        report=report if judged else None,
    )


def read_features(items: list[Item], config: RunConfig, network: PitchConfig) -> list[np.ndarray]:
    """The network's input for each recording, float32 (t, 2)."""
    tracks = f0_cache.read_tracks(items, config.f0, Path(config.run_dir) / "f0")
    means = f0_cache.speaker_means(items, tracks) if config.mean == "speaker" else {}
    return [
        pitch.normalise_f0(one.f0_t, one.voiced_t, network, means.get(item.speaker))
        for item, one in zip(items, tracks, strict=True)
    ]


def make_row(features_t2: np.ndarray, rng: np.random.Generator, segment_frames: int) -> Row:
    """A segment from a place drawn at random, padded with zeros, and its true length."""
    start = int(rng.integers(max(len(features_t2) - segment_frames, 0) + 1))
    piece = features_t2[start : start + segment_frames]
    padded = np.pad(piece, ((0, segment_frames - len(piece)), (0, 0)))
    return {"features_bt2": padded, "lengths_b": np.int32(len(piece))}


@struct.dataclass
class Found:
    """What the network makes of a batch.

    Attributes:
      features_bt2: what was given.
      made_bt2: what came back, as long as it.
      mask_bt: frames that both have.
      latent_btd: before quantization.
      quantized_btd: their codes' vectors.
      codes_bt: int32.
      code_mask_bt: codes that are true ones.
    """

    features_bt2: jax.Array
    made_bt2: jax.Array
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
) -> Found:
    """To codes and back; gradients pass quantization as if it were not there."""
    variables = {"params": {**params, "codebook": codes_vd}}
    latent_btd, counts_b = model.apply(variables, features_bt2, lengths_b, method="latent")
    codes_bt = pitch.nearest_codes(latent_btd, codes_vd, model.config.precision)
    quantized_btd = jax.lax.stop_gradient(codes_vd[codes_bt])
    passed_btd = latent_btd + jax.lax.stop_gradient(quantized_btd - latent_btd)
    decoder = pitch.Decoder(model.config)
    made_bt2, made_b = decoder.apply({"params": params["decoder"]}, passed_btd, counts_b)
    size = features_bt2.shape[1]
    rest = max(size - made_bt2.shape[1], 0)
    made_bt2 = jnp.pad(made_bt2, ((0, 0), (0, rest), (0, 0)))[:, :size]
    return Found(
        features_bt2,
        made_bt2,
        length_mask(jnp.minimum(lengths_b, made_b), size),
        latent_btd,
        quantized_btd,
        codes_bt,
        length_mask(counts_b, codes_bt.shape[1]),
    )


def measure(found: Found, config: RunConfig, num_codes: int) -> dict[str, jax.Array]:
    """The loss and what it is made of; F0's error in Hz is over voiced frames."""

    def mean(values, mask):
        return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1)

    errors_bt2 = jnp.square(found.made_bt2 - found.features_bt2)
    scaled_bt = errors_bt2[..., 0] / config.scale**2 + errors_bt2[..., 1]
    distances_bt = jnp.square(found.latent_btd - found.quantized_btd).mean(-1)
    reconstruction = mean(scaled_bt, found.mask_bt)
    commitment = mean(distances_bt, found.code_mask_bt) / config.scale**2
    voiced_bt = found.features_bt2[..., 1] > 0
    wrong_bt = (found.made_bt2[..., 1] > 0.5) != voiced_bt
    ones_bt = found.code_mask_bt.astype(jnp.float32)
    counts_v = jnp.zeros(num_codes).at[found.codes_bt].add(ones_bt)
    codes_used, perplexity = ema.use(counts_v)
    return {
        "loss": reconstruction + config.commitment * commitment,
        "reconstruction": reconstruction,
        "commitment": commitment,
        "f0_rmse": jnp.sqrt(mean(errors_bt2[..., 0], found.mask_bt & voiced_bt)),
        "voicing_error": mean(wrong_bt, found.mask_bt),
        "codes_used": codes_used,
        "perplexity": perplexity,
    }
