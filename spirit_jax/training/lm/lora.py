"""Low-rank adaptation of the language model (LoRA, arXiv 2106.09685), through qwix.

The matrices of the layers are frozen, and the product of two low-rank matrices is trained beside
each (an adapter). In the embedding and the head, the rows of new tokens (markers and units) are
trained in full.
"""

from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import optax
import qwix
from flax import linen as nn

from spirit_jax.errors import InputError
from spirit_jax.models import llama, llama_weights
from spirit_jax.training.configs import LoraConfig
from spirit_jax.training.step import partition
from spirit_jax.vocab import Vocab

QWIX = 0, 1, 8  # earlier versions cannot adapt matrices of three axes
A, B = "_lora_a", "_lora_b"  # suffixes of the names of qwix's low-rank matrices


class _Provider(qwix.LoraProvider):
    """Returns products in the input's dtype: float32 would spread to the following layers."""

    def dot_general(
        self, lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None, **options
    ):
        result = super().dot_general(
            lhs, rhs, dimension_numbers, precision, preferred_element_type, **options
        )
        return result.astype(preferred_element_type or lhs.dtype)


def add_to(model: llama.Llama, config: LoraConfig) -> llama.Llama:
    """Adds adapters to a model.

    Args:
      model: without LoRA.
      config: of the adapters; with rank 0 the model is returned unchanged.

    Returns:
      The model with adapters.

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
    """A tree of booleans: True for adapters, the embedding and the head."""

    def is_trained_leaf(path, leaf):
        name = path[-1].key
        return name.endswith((A, B)) or path[0].key in ("embed", "head")

    return jax.tree_util.tree_map_with_path(is_trained_leaf, params)


def only_new_rows(vocab: Vocab) -> optax.GradientTransformation:
    """Freezes the rows of text tokens in the embedding and the head."""

    def mask(path, update):
        is_new_v = jnp.arange(vocab.padded_size) >= vocab.text_size
        if path[0].key == "embed":
            return jnp.where(is_new_v[:, None], update, 0)
        return jnp.where(is_new_v, update, 0) if path[0].key == "head" else update

    def change(updates, state, params=None):
        return jax.tree_util.tree_map_with_path(mask, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), change)


def first_params(model: llama.Llama, base: Any, seed: int, places: Any) -> tuple[Any, Any]:
    """Initial parameters of a model with adapters.

    Adapters are initialised so that their product is 0: the outputs are those of the base model.

    Args:
      model: from `add_to`.
      base: parameters of the model without LoRA; frozen ones keep their dtype.
      seed: of the adapters.
      places: the shardings of the train state.

    Returns:
      (trained, frozen) parameters, see `partition`.
    """
    shapes = llama_weights.abstract_params(model)

    def init():
        ones = jnp.ones((1, 1), jnp.int32)
        params = nn.unbox(model.init(jax.random.key(seed), ones, ones, ones)["params"])
        return partition(params, is_trained(shapes))[0]

    trained = jax.jit(init, out_shardings=places.params)()
    trained |= {
        name: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), base[name])
        for name in ("embed", "head")
        if name in base
    }
    return trained, frozen_params(model, base)


def frozen_params(model: llama.Llama, base: Any) -> Any:
    """The frozen parameters of a model with adapters; None for trained ones.

    Args:
      model: from `add_to`.
      base: parameters of the model without LoRA.
    """
    flat = dict(jax.tree_util.tree_leaves_with_path(base))
    trained = is_trained(llama_weights.abstract_params(model))
    return jax.tree_util.tree_map_with_path(lambda path, yes: None if yes else flat[path], trained)


def merge_products(params: Any, config: LoraConfig) -> Any:
    """Merges adapters into their matrices.

    Args:
      params: all parameters of a model from `add_to`.
      config: of the adapters.

    Returns:
      Parameters of the model without LoRA; adapted matrices are float32.
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
