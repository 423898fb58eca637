"""Parameters of the language model: shapes, loading, int8, and their order for decoding."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from spirit_jax import checkpoint, config, files, sharding
from spirit_jax.models.linear import lay_out, quantize
from spirit_jax.models.llama import Llama
from spirit_jax.models.llama_config import LlamaConfig

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")  # of a layer


@functools.cache
def abstract_params(model: Llama, boxed: bool = False) -> Any:
    """The tree of `jax.ShapeDtypeStruct` of the model's parameters; `boxed` keeps logical axes."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)

    def init(tokens_bt):  # creates the key inside, so that no device is used
        return model.init(jax.random.key(0), tokens_bt, tokens_bt, tokens_bt)["params"]

    tree = jax.eval_shape(init, tokens)
    return tree if boxed else nn.unbox(tree)


def load(
    folder: str | Path,
    mesh: jax.sharding.Mesh | None = None,
    dtype: Any = None,
    compute_dtype: Any = None,
    scan_layers: bool = False,
) -> tuple[Llama, Any]:
    """Loads a model; each array is read directly onto its shards.

    Args:
      folder: the network folder.
      mesh: for the parameters; None for the default device.
      dtype: of the parameters; None for the stored dtype.
      compute_dtype: of the computation; `dtype` by default, or float32 if that is None too.
      scan_layers: see `Llama`; layers are stacked while reading, one parameter at a time.

    Returns:
      The model and its parameters.

    Raises:
      InputError: the folder cannot be read, or its arrays do not fit its config.
    """
    folder = files.as_path(folder)
    cfg = config.read(LlamaConfig, folder / "config.json")
    compute_dtype = compute_dtype or dtype or jnp.float32
    stored = checkpoint.flatten(checkpoint.read_shapes(folder))
    model = Llama(cfg, compute_dtype, scan_layers=scan_layers)
    unrolled = Llama(cfg, compute_dtype)
    boxed = abstract_params(unrolled, boxed=True)
    sharding_of = checkpoint.flatten(
        sharding.param_shardings(boxed, mesh)
        if mesh is not None
        else jax.tree.map(lambda _: sharding.default_sharding(), nn.unbox(boxed))
    )
    wanted = checkpoint.flatten(nn.unbox(boxed))
    int8_paths = {path for path, leaf in wanted.items() if leaf.dtype == jnp.int8} | {"head_kernel"}

    def abstract(path: str) -> jax.ShapeDtypeStruct:
        default = stored[path].dtype if path in stored else jnp.float32
        is_int8 = wanted[path].dtype == jnp.int8 or path.replace("scale", "kernel") in int8_paths
        leaf_dtype = wanted[path].dtype if is_int8 else dtype or default
        return jax.ShapeDtypeStruct(wanted[path].shape, leaf_dtype, sharding=sharding_of[path])

    if not scan_layers:
        tree = checkpoint.unflatten({path: abstract(path) for path in wanted})
        return model, checkpoint.load_params(folder, tree)
    return model, _load_stacked(folder, cfg, {path: abstract(path) for path in wanted})


def _load_stacked(folder: Path, cfg: LlamaConfig, wanted: dict[str, jax.ShapeDtypeStruct]) -> Any:
    """Reads and stacks the layers of one parameter after another, on their shards."""

    def read(names: list[str]) -> dict[str, jax.Array]:
        tree = checkpoint.unflatten({name: wanted[name] for name in names})
        return checkpoint.flatten(checkpoint.load_params(folder, tree))

    params = read([name for name in wanted if not name.startswith("layers/")])
    for name in [n.removeprefix("layers/0/") for n in wanted if n.startswith("layers/0/")]:
        layers = [f"layers/{i}/{name}" for i in range(cfg.num_layers)]
        arrays = read(layers)
        stack = jax.jit(
            lambda *parts: jnp.stack(parts),
            out_shardings=sharding.stacked(wanted[layers[0]].sharding),
        )
        params[f"layers/{name}"] = stack(*(arrays.pop(layer) for layer in layers))
    return checkpoint.unflatten(params)


def draw_rows(table_vd: np.ndarray, rows: int, seed: int | tuple[int, ...]) -> np.ndarray:
    """Rows of an embedding or head for new tokens, float32 (rows, d).

    They are drawn from a normal distribution with the mean and standard deviation of the old rows,
    so that the outputs of the model change little.

    Args:
      table_vd: the old rows.
      rows: number of new rows.
      seed: of the draws.
    """
    old_vd = table_vd.astype(np.float32)
    noise = np.random.default_rng(seed).standard_normal((rows, old_vd.shape[1]), np.float32)
    return old_vd.mean(axis=0) + old_vd.std() * noise


def quantize_weights(cfg: LlamaConfig, params: Any) -> tuple[LlamaConfig, Any]:
    """Rounds the matrices of the layers and the head to int8; the embedding keeps its dtype.

    Args:
      cfg: of the model, without int8 weights.
      params: of unrolled layers. Matrices are taken out of this tree while they are rounded, so
        that a model and its copy are never in memory together.

    Returns:
      The config and parameters of the rounded model.
    """
    rounded = jax.jit(quantize, static_argnums=1)
    for layer in params["layers"].values():
        for name in MATRICES:
            inputs = 2 if name == "o" else 1
            layer[name] |= rounded(layer[name].pop("kernel"), inputs)
    if "head" in params:
        head = rounded(params.pop("head"), 1)
        params |= {"head": head["kernel"], "head_scale": head["scale"]}
    return dataclasses.replace(cfg, int8_weights=True), params


def lay_out_for_decoding(
    model: Llama, params: Any, platform: str | None = None
) -> tuple[Llama, Any]:
    """Puts matrices into the order in which a decoding step reads them.

    On a CPU the output channels come first, for `linear.product_of_outputs`. On a GPU the int8
    weights of each output channel are contiguous in memory, for `linear.row_product`. On a TPU the
    weights of each head of q, k and v are contiguous; otherwise every call copies these matrices.

    Args:
      model: with unrolled layers.
      params: its parameters, or their shapes with shardings. Matrices are taken out of this tree
        one by one, so that a model and its copy are never in memory together.
      platform: "tpu", "gpu" or "cpu"; that of the default device if not given.

    Returns:
      The model for the returned parameters, and the parameters.
    """
    platform = platform or jax.default_backend()
    outputs_first = dict.fromkeys(("q", "k", "v"), (1, 2, 0)) | {"o": (2, 0, 1)}
    outputs_first |= dict.fromkeys(("gate", "up", "down", "head"), (1, 0))
    orders: dict[str, tuple[int, ...]] = {}
    move: Callable[[Any, tuple[int, ...]], Any] = lay_out
    if platform == "cpu":
        orders, model = outputs_first, model.clone(outputs_first=True)
        move = jax.jit(jnp.transpose, static_argnums=1)
    elif platform == "tpu":
        orders = dict.fromkeys(("q", "k", "v"), (1, 0, 2))
    elif platform == "gpu" and model.config.int8_weights:
        orders = outputs_first
    for layer in params["layers"].values():
        for name in orders.keys() & layer.keys():
            layer[name]["kernel"] = move(layer[name].pop("kernel"), orders[name])
    if "head" in orders and "head" in params:
        params["head"] = move(params.pop("head"), orders["head"])
    return model, params
