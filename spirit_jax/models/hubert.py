"""Phonetic units: HuBERT features of an inner layer, and a quantizer.

Letters: b batch, t time (samples, then frames), d feature width, v units (and the blank).

The encoder and the quantizer are two networks, since several quantizers can share an encoder. A
unit is defined by both together.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from spirit_jax import checkpoint, files, limits, model_folder
from spirit_jax.errors import InputError
from spirit_jax.models.frames import length_mask
from spirit_jax.models.wav2vec2 import Trunk, TrunkConfig

NO_UNIT = -1
MLP_NEGATIVE_SLOPE = 0.01


@dataclasses.dataclass(frozen=True)
class HubertConfig:
    """The encoder.

    Attributes:
      trunk: up to the layer whose output is quantized.
      sample_rate: of the audio, in Hz; there are `sample_rate / trunk.stride` units a second.
      padding: samples of silence that are added at both ends of a recording; 0 in the release.
    """

    trunk: TrunkConfig = TrunkConfig()
    sample_rate: int = 16000
    padding: int = 0

    def __post_init__(self):
        limits.check_numbers(self, sample_rate=limits.SAMPLE_RATE, padding=(0, 1 << 16))


@dataclasses.dataclass(frozen=True)
class QuantizerConfig:
    """The quantizer.

    Attributes:
      kind: "mlp", a classifier whose last class is the CTC blank, or "kmeans", the nearest
        centroid.
      vocab_size: number of units, without the blank.
      dim: width of the features.
      hidden_sizes: widths between the layers of an MLP.
      precision: as in `TrunkConfig`.
    """

    kind: str = "mlp"
    vocab_size: int = 500
    dim: int = 768
    hidden_sizes: tuple[int, ...] = ()
    precision: str = "highest"

    def __post_init__(self):
        limits.check_numbers(
            self, vocab_size=limits.IDS, dim=limits.WIDTH, hidden_sizes=limits.WIDTH
        )
        if self.kind not in ("mlp", "kmeans"):
            raise InputError(f"A quantizer is 'mlp' or 'kmeans', not '{self.kind}'.")
        if self.kind == "kmeans" and self.hidden_sizes:
            raise InputError("A k-means quantizer has no hidden_sizes.")

    @property
    def blank(self) -> int:
        """The id of the CTC blank; k-means never outputs it."""
        return self.vocab_size


class MlpQuantizer(nn.Module):
    """Linear layers with leaky ReLU between them."""

    config: QuantizerConfig

    @nn.compact
    def __call__(self, x_btd: jax.Array) -> jax.Array:
        """Features (b, t, d) to logits (b, t, v + 1); the last one is the blank's."""
        cfg = self.config
        for i, size in enumerate((*cfg.hidden_sizes, cfg.vocab_size + 1)):
            if i:
                x_btd = nn.leaky_relu(x_btd, MLP_NEGATIVE_SLOPE)
            x_btd = nn.Dense(size, precision=cfg.precision, name=f"linear{i}")(x_btd)
        return x_btd


class KMeansQuantizer(nn.Module):
    """Negative squared distances to centroids."""

    config: QuantizerConfig

    @nn.compact
    def __call__(self, x_btd: jax.Array) -> jax.Array:
        """Features (b, t, d) to scores (b, t, v); the nearest centroid has the highest."""
        cfg = self.config
        init = nn.initializers.normal(1.0)
        centroids_vd = self.param("centroids", init, (cfg.vocab_size, cfg.dim))
        products_btv = jnp.einsum("btd,vd->btv", x_btd, centroids_vd, precision=cfg.precision)
        squares_bt1 = jnp.square(x_btd).sum(-1, keepdims=True)
        return 2 * products_btv - jnp.square(centroids_vd).sum(-1) - squares_bt1


def make_quantizer(config: QuantizerConfig, name: str | None = None) -> nn.Module:
    """The quantizer of a config: features (b, t, d) to scores; the unit is the argmax."""
    kinds = {"mlp": MlpQuantizer, "kmeans": KMeansQuantizer}
    return kinds[config.kind](config, name=name)


class HubertUnits(nn.Module):
    """Waveforms to units; its parameters are `{"hubert": ..., "quantizer": ...}`."""

    config: HubertConfig
    quantizer: QuantizerConfig

    @nn.compact
    def __call__(self, wave_bt: jax.Array, lengths_b: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The unit of every frame, including blanks (see `fill_blanks`).

        Args:
          wave_bt: float32, one channel at `config.sample_rate`; ignored after true lengths.
          lengths_b: int32, true lengths in samples.

        Returns:
          units_bt: int32; `NO_UNIT` after each row's true number of frames.
          frame_lengths_b: int32, the true numbers of frames.
        """
        padding = self.config.padding
        if padding:
            wave_bt = wave_bt * length_mask(lengths_b, wave_bt.shape[1])
            wave_bt = jnp.pad(wave_bt, ((0, 0), (padding, padding)))
            lengths_b = lengths_b + 2 * padding
        hidden_btd, frames_b = Trunk(self.config.trunk, name="hubert")(wave_bt, lengths_b)
        scores_btv = make_quantizer(self.quantizer, "quantizer")(hidden_btd)
        units_bt = jnp.argmax(scores_btv, axis=-1).astype(jnp.int32)
        return jnp.where(length_mask(frames_b, units_bt.shape[1]), units_bt, NO_UNIT), frames_b


def fill_blanks(units_t: np.ndarray, blank: int, max_rounds: int = 10_000) -> np.ndarray:
    """Replaces each blank by the nearest unit on its left.

    This gives the result of the release, which repeats a circular shift: leading blanks are
    replaced by the last unit of the utterance. If all are blank, they stay.

    Args:
      units_t: int, of one utterance, without padding.
      blank: the id to replace.
      max_rounds: largest distance to the unit; blanks further away stay.

    Returns:
      A new array of the same shape and dtype.
    """
    (kept,) = np.nonzero(units_t != blank)
    if not kept.size:
        return units_t.copy()
    places = np.arange(len(units_t))
    # Before the first unit this is index -1, the last unit.
    nearest = kept[np.searchsorted(kept, places, side="right") - 1]
    distance = (places - nearest) % len(units_t)
    return np.where(distance <= max_rounds, units_t[nearest], units_t)


def save(folder: str | Path, model: HubertUnits, params: dict) -> None:
    """Writes the networks `hubert` and `quantizer` into a folder.

    Args:
      folder: an existing folder.
      model: for its configs.
      params: of both networks, by name.

    Raises:
      InputError: one of them exists already.
    """
    folder = files.as_path(folder)
    checkpoint.save_network(folder / "hubert", model.config, params["hubert"])
    checkpoint.save_network(folder / "quantizer", model.quantizer, params["quantizer"])


def load(encoder: str | Path, quantizer: str | Path) -> tuple[HubertUnits, dict]:
    """Loads an encoder and a quantizer from their folders.

    Returns:
      The model, and its parameters as numpy arrays.

    Raises:
      InputError: a folder cannot be read, or the networks do not fit each other.
    """
    encoder_cfg, encoder_params = checkpoint.load_network(encoder, HubertConfig)
    quantizer_cfg, quantizer_params = checkpoint.load_network(quantizer, QuantizerConfig)
    if encoder_cfg.trunk.hidden_size != quantizer_cfg.dim:
        raise InputError(
            f"{quantizer}: quantizes {quantizer_cfg.dim} channels, and {encoder} has "
            f"{encoder_cfg.trunk.hidden_size}."
        )
    model = HubertUnits(encoder_cfg, quantizer_cfg)
    return model, {"hubert": encoder_params, "quantizer": quantizer_params}


def load_both(folder: str | Path) -> tuple[HubertUnits, dict]:
    """Loads both networks of a folder or a model; see `load`."""
    return load(*(model_folder.find_network(folder, name) for name in ("hubert", "quantizer")))
