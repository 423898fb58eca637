"""Low-rank adaptation of the language model (LoRA, arXiv 2106.09685), through qwix.

The layers' matrices stay as they are, and a product of two thin ones is learnt beside each. The
rows of new tokens (markers and units) in the embedding and the head are learnt whole, since there
is nothing in them to adapt.
"""

from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import optax
import qwix
from flax import linen as nn

from spirit_jax.errors import InputError
from spirit_jax.models import llama
from spirit_jax.training.configs import LoraConfig
from spirit_jax.training.step import partition
from spirit_jax.vocab import Vocab

QWIX = 0, 1, 8  # older ones cannot adapt products of arrays of three axes
A, B = "_lora_a", "_lora_b"  # what qwix adds to a matrix's name


class _Provider(qwix.LoraProvider):
    """Returns what it is given: float32 products would make the layers that follow float32 too."""

    def dot_general(
        self, lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None, **options
    ):
        result = super().dot_general(
            lhs, rhs, dimension_numbers, precision, preferred_element_type, **options
        )
        return result.astype(preferred_element_type or lhs.dtype)


def add_to(model: llama.Llama, config: LoraConfig) -> llama.Llama:
    """The model with the products beside its matrices; as it is for rank 0.

    Raises:
      InputError: the installed qwix is too old.
    """
    if not config.rank:
        return model
    installed = metadata.version("qwix")
    if tuple(int(part) for part in installed.split(".")[:3]) < QWIX:
        needed = ".".join(map(str, QWIX))
        raise InputError(
            f"LoRA needs qwix {needed}, and {installed} is installed: "
            f"pip install --no-deps qwix=={needed}."
        )
    provider = _Provider(
        module_path=f".*/({'|'.join(config.layers)})", rank=config.rank, alpha=config.alpha
    )
    return qwix.apply_lora_to_model(model, provider, methods=("features",))


def is_trained(params: Any) -> Any:
    """A tree of booleans: the products, the embedding and the head."""

    def trained(path, leaf):
        name = path[-1].key
        return name.endswith((A, B)) or path[0].key in ("embed", "head")

    return jax.tree_util.tree_map_with_path(trained, params)


def only_new_rows(vocab: Vocab) -> optax.GradientTransformation:
    """Leaves the rows of text pieces in the embedding and the head as they are."""

    def mask(path, update):
        is_new_v = jnp.arange(vocab.padded_size) >= vocab.text_size
        if path[0].key == "embed":
            return jnp.where(is_new_v[:, None], update, 0)
        return jnp.where(is_new_v, update, 0) if path[0].key == "head" else update

    def change(updates, state, params=None):
        return jax.tree_util.tree_map_with_path(mask, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), change)


def first_params(model: llama.Llama, base: Any, seed: int, places: Any) -> tuple[Any, Any]:
    """(trained, frozen) parameters of `add_to`'s model, around those of a converted one.

    The products are 0 at first, so the model's outputs are those of the converted one.

    Args:
      model: what `add_to` gives.
      base: parameters of the model without LoRA; kept in their dtype where they are frozen.
      seed: of the thin matrices.
      places: a state's shardings.
    """
    shapes = llama.abstract_params(model)

    def make():
        ones = jnp.ones((1, 1), jnp.int32)
        params = nn.unbox(model.init(jax.random.key(seed), ones, ones, ones)["params"])
        return partition(params, is_trained(shapes))[0]

    trained = jax.jit(make, out_shardings=places.params)()
    trained |= {
        name: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), base[name])
        for name in ("embed", "head")
        if name in base
    }
    return trained, _frozen_of(shapes, base)


def _frozen_of(shapes: Any, base: Any) -> Any:
    """The base's leaves where they are frozen, None in the other places."""
    flat = dict(jax.tree_util.tree_leaves_with_path(base))
    trained = is_trained(shapes)
    return jax.tree_util.tree_map_with_path(lambda path, yes: None if yes else flat[path], trained)


def merge_products(params: Any, config: LoraConfig) -> Any:
    """The parameters of the plain model: each product added to its matrix, in float32.

    Args:
      params: of `add_to`'s model, whole.
      config: that it was made with.
    """
    if not isinstance(params, dict):
        return params
    merged = {}
    for name, leaf in params.items():
        if name.endswith((A, B)):
            continue
        if f"{name}{A}" in params:
            product = params[f"{name}{A}"] @ params[f"{name}{B}"] * (config.alpha / config.rank)
            leaf = leaf.astype(jnp.float32) + product.reshape(leaf.shape)
        merged[name] = merge_products(leaf, config)
    return merged
