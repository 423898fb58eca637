"""The config and initial parameters of a vocoder: speakers and styles of the recordings."""

import dataclasses
from typing import Any

import numpy as np

from spirit_jax import model_folder
from spirit_jax.data.speech import read_items
from spirit_jax.errors import InputError
from spirit_jax.models import hifigan
from spirit_jax.models.hifigan import HifiGanConfig
from spirit_jax.training.vocoder import data
from spirit_jax.training.vocoder.config import VocoderRunConfig


def plan_network(config: VocoderRunConfig) -> tuple[HifiGanConfig, Any]:
    """The config and initial parameters of the vocoder.

    With `start`, new speakers and styles are added to the embedding tables; a new row is the mean
    of the old ones.

    Args:
      config: of the run; the manifests are read if styles are an input.

    Returns:
      The config with names of speakers and styles, and parameters (None without `start`).

    Raises:
      InputError: the network of `start` or a name cannot be used.
    """
    base, params = config.network, None
    speakers, style_ids = config.speakers, config.style_ids
    if config.start:
        model, params = hifigan.load(model_folder.find_network(config.start, "hifigan"))
        base, style_ids = model.config, bool(model.config.num_style_ids)
        if not base.num_speakers:
            raise InputError(f"{config.start}: has no speaker table, so no speaker can be added.")
        speakers = add_names(base.speakers, base.num_speakers, config.speakers)
    styles: tuple[str, ...] = ()
    if style_ids:
        items = read_items(config.data.sources)
        chosen = data.choose(items, config.speakers, (), config.default_style)
        styles = tuple(sorted({item.style for item in chosen}))
        if "" in styles:
            raise InputError("style_ids: some recordings have no style; set default_style.")
        if config.start:
            styles = add_names(base.styles, base.num_style_ids, styles)
    network = dataclasses.replace(
        base,
        num_speakers=len(speakers),
        speakers=speakers,
        num_style_ids=len(styles),
        styles=styles,
        default_speaker=_default_id(config.default_speaker, speakers, base.default_speaker, config),
        default_style=_default_id(config.default_style, styles, base.default_style, config),
    )
    if params is not None:
        rows = {"embed_speaker": len(speakers), "embed_style_id": len(styles)}
        params = {
            name: {"embedding": _add_rows(leaf["embedding"], rows[name])} if name in rows else leaf
            for name, leaf in params.items()
        }
    return network, params


def _default_id(name: str, names: tuple[str, ...], before: int, config: VocoderRunConfig) -> int:
    """The id of a name; without a name that of the start network, or 0."""
    if not name or not names:
        return before if config.start else 0
    if name not in names:
        raise InputError(f"The default '{name}' is none of {', '.join(names)}.")
    return names.index(name)


def add_names(names: tuple[str, ...], count: int, new: tuple[str, ...]) -> tuple[str, ...]:
    """Adds names to an embedding table.

    Args:
      names: of the first rows; rows without a name get their number as name.
      count: number of rows.
      new: names to add, unless present.
    """
    old = (*names, *(str(number) for number in range(len(names), count)))
    return (*old, *(name for name in new if name not in old))


def _add_rows(table_nd: np.ndarray, rows: int) -> np.ndarray:
    new = np.broadcast_to(table_nd.mean(0), (rows - len(table_nd), table_nd.shape[1]))
    return np.concatenate([table_nd, new]).astype(table_nd.dtype)
