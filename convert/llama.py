"""Convert Hugging Face Llama, Mistral, Qwen and SmolLM checkpoints to model folders.

spirit-jax convert llama --checkpoint HF_DIR --add-speech-tokens base --output MODEL_DIR
spirit-jax convert llama --checkpoint EXPORTED_DIR --output MODEL_DIR

The second form is for a folder with speech tokens, such as one that
`spirit-jax convert export` wrote. docs/convert.md lists the families and their limits.
"""

import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import ml_dtypes
import numpy as np
import typer

from spirit_jax import checkpoint, files, limits
from spirit_jax.cli.running import Output, run
from spirit_jax.errors import InputError
from spirit_jax.models.llama import Llama
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.models.llama_weights import abstract_params, draw_rows

from . import table, weights
from .llama_config import read_config
from .main import DtypeOption, StoredDtype, show_progress
from .table import Rule

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
# SlamKit's names begin with "lm."; names in a checkpoint without the output head lack "model.".
BASE = r"(?:lm\.)?(?:model\.)?"
LAYER = BASE + r"layers\.(\d+)\."
EMBEDDING, HEAD = BASE + r"embed_tokens\.weight", r"(?:lm\.)?lm_head\.weight"


def rules(cfg: LlamaConfig) -> list[Rule]:
    """Rules from Hugging Face's names and shapes to this package's; torch's Linear is (out, in)."""

    def split_out(array: np.ndarray) -> np.ndarray:  # (heads * k, d) -> (d, heads, k)
        _, width = array.shape
        return np.ascontiguousarray(array.T).reshape(width, -1, cfg.head_dim)

    def split_in(array: np.ndarray) -> np.ndarray:  # (d, heads * k) -> (heads, k, d)
        width, _ = array.shape
        return np.ascontiguousarray(array.T).reshape(-1, cfg.head_dim, width)

    def split_bias(array: np.ndarray) -> np.ndarray:  # (heads * k,) -> (heads, k)
        (_,) = array.shape
        return array.reshape(-1, cfg.head_dim)

    attention, mlp = LAYER + r"self_attn\.", LAYER + r"mlp\."
    return [
        Rule(EMBEDDING, "embed/embedding"),
        Rule(attention + r"([qkv])_proj\.weight", r"layers/\1/\2/kernel", split_out),
        Rule(attention + r"([qkv])_proj\.bias", r"layers/\1/\2/bias", split_bias),
        Rule(attention + r"o_proj\.weight", r"layers/\1/o/kernel", split_in),
        Rule(attention + r"o_proj\.bias", r"layers/\1/o/bias"),
        Rule(mlp + r"(gate|up|down)_proj\.weight", r"layers/\1/\2/kernel", table.transpose),
        Rule(mlp + r"(gate|up|down)_proj\.bias", r"layers/\1/\2/bias"),
        Rule(attention + r"([qk])_norm\.weight", r"layers/\1/\2_norm/scale"),
        Rule(LAYER + r"input_layernorm\.weight", r"layers/\1/attention_norm/scale"),
        Rule(LAYER + r"post_attention_layernorm\.weight", r"layers/\1/mlp_norm/scale"),
        Rule(BASE + r"norm\.weight", "final_norm/scale"),
        Rule(HEAD, None if cfg.tie_embeddings else "head", table.transpose),
        # Rotary frequencies of old checkpoints, which are computed from the config instead.
        Rule(BASE + r"(?:layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", None),
    ]


def export_rules(cfg: LlamaConfig) -> list[Rule]:
    """Rules from this package's names and shapes to Hugging Face's, the inverse of `rules`."""

    def join_out(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.reshape(array.shape[0], -1).T)

    def join_in(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.reshape(-1, array.shape[-1]).T)

    def flatten(array: np.ndarray) -> np.ndarray:
        return array.reshape(-1)

    layer, to = r"layers/(\d+)/", r"model.layers.\1."
    return [
        Rule("embed/embedding", "model.embed_tokens.weight"),
        Rule(layer + "([qkv])/kernel", to + r"self_attn.\2_proj.weight", join_out),
        Rule(layer + "([qkv])/bias", to + r"self_attn.\2_proj.bias", flatten),
        Rule(layer + "([qk])_norm/scale", to + r"self_attn.\2_norm.weight"),
        Rule(layer + "o/kernel", to + "self_attn.o_proj.weight", join_in),
        Rule(layer + "o/bias", to + "self_attn.o_proj.bias"),
        Rule(layer + "(gate|up|down)/kernel", to + r"mlp.\2_proj.weight", table.transpose),
        Rule(layer + "(gate|up|down)/bias", to + r"mlp.\2_proj.bias"),
        Rule(layer + "attention_norm/scale", to + "input_layernorm.weight"),
        Rule(layer + "mlp_norm/scale", to + "post_attention_layernorm.weight"),
        Rule("final_norm/scale", "model.norm.weight"),
        Rule("head", "lm_head.weight", table.transpose),
    ]


def convert_llama(
    folder: str | Path,
    output: str | Path,
    new_vocab_size: int | None = None,
    seed: int = 0,
    dtype: StoredDtype | None = None,
) -> LlamaConfig:
    """Writes the network folder of a Hugging Face Llama, a tensor at a time.

    Args:
      folder: the checkpoint.
      output: the network folder to write.
      new_vocab_size: rows of the new embedding and head. New rows are drawn from a normal
        distribution with the mean and standard deviation of the old rows (see
        `llama_weights.draw_rows`).
      seed: random seed of the new rows.
      dtype: in which the parameters are stored; by default each keeps that of its tensor.

    Returns:
      The config of the written network.

    Raises:
      InputError: the checkpoint is damaged or has another network, or `output` exists.
    """
    limits.check_seed(seed)
    where = str(folder)
    source, tensors = read_config(folder), weights.open_folder(folder)
    table.check_count(tensors, LAYER, source.num_layers, where, "layers")
    source, tensor_rules = _decide_tying(source, tensors, where)
    shapes = abstract_params(Llama(source))
    steps = table.plan(list(tensors), tensor_rules, list(checkpoint.flatten(shapes)), where)
    rows = new_vocab_size or source.vocab_size
    if rows < source.vocab_size:
        raise InputError(f"{folder}: has {source.vocab_size} rows already, more than {rows}.")

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        converted = table.run(tensors, steps, shapes, where)
        for path, array in show_progress(converted, len(steps), "converting the language model"):
            if dtype is not None:
                array = _cast(array, dtype, f"{where}: the parameter '{path}'")
            if path in ("embed/embedding", "head") and rows > source.vocab_size:
                array = _add_rows(array, path, rows, seed)
            yield path, array

    cfg = dataclasses.replace(source, vocab_size=rows)
    with files.whole_folder(output) as unfinished:
        checkpoint.save_network(unfinished, cfg, table.batches(arrays()))
    return cfg


def _decide_tying(
    cfg: LlamaConfig, tensors: Mapping[str, np.ndarray], where: str
) -> tuple[LlamaConfig, list[Rule]]:
    """Decides whether head and embedding are tied, from the config and the tensors.

    As in transformers 5: if the config ties them but both tensors are present, they are tied only
    if they are equal; if one is present, it is used for both.
    """
    embedding, head = (
        next((name for name in tensors if re.fullmatch(pattern, name)), None)
        for pattern in (EMBEDDING, HEAD)
    )
    if not cfg.tie_embeddings or head is None:
        return cfg, rules(cfg)
    if embedding is None:
        return cfg, [Rule(HEAD, "embed/embedding"), *rules(cfg)]
    if np.array_equal(tensors[embedding], tensors[head]):
        return cfg, rules(cfg)
    print(
        f"{where}: its config ties the output head to the embedding, but the tensors differ; both "
        "are kept.",
        file=sys.stderr,
    )
    cfg = dataclasses.replace(cfg, tie_embeddings=False)
    return cfg, rules(cfg)


def _cast(array: np.ndarray, dtype: StoredDtype, name: str) -> np.ndarray:
    """An array in another dtype; raises `InputError` if a number is too large for it."""
    with np.errstate(over="ignore"):
        cast = array.astype(DTYPES[dtype])
    if not np.isfinite(cast).all():
        raise InputError(f"{name} has a number that is too large for {dtype}; leave --dtype out.")
    return cast


def _add_rows(array: np.ndarray, path: str, rows: int, seed: int) -> np.ndarray:
    axis = 0 if path == "embed/embedding" else 1
    old = np.moveaxis(array, axis, 0)
    new = draw_rows(old, rows - len(old), (seed, axis)).astype(array.dtype)
    return np.moveaxis(np.concatenate([old, new]), 0, axis)


def main(
    checkpoint: Annotated[Path, typer.Option(help="Hugging Face folder of a Llama")],
    output: Output,
    add_speech_tokens: Annotated[
        Literal["base", "expressive"] | None,
        typer.Option(help="For a text Llama; not for one that has them, such as an export"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Random seed of new rows; 0 if not given")
    ] = None,
    dtype: DtypeOption = None,
) -> None:
    """Runs the command that the module's docstring describes."""
    from . import tokenizer

    kind, add = tokenizer.find_kind(checkpoint), add_speech_tokens is not None
    if kind is None and not add:
        raise InputError(
            f"{checkpoint}: has no speech tokens; give --add-speech-tokens base or "
            "--add-speech-tokens expressive."
        )
    if kind is not None and (add or seed is not None):
        raise InputError(
            f"{checkpoint}: has speech tokens of kind {kind} already; convert it without "
            "--add-speech-tokens and --seed."
        )
    with files.whole_folder(output) as folder:
        vocab = tokenizer.convert_tokenizer(checkpoint, kind or add_speech_tokens, folder, add)
        cfg = convert_llama(checkpoint, folder / "llama", vocab.padded_size, seed or 0, dtype)
    print(
        f"wrote {output}: {cfg.num_layers} layers, {cfg.vocab_size} rows; give it a speech "
        f"tokenizer with: spirit-jax new OUTPUT --start {output} --speech MODEL"
    )


if __name__ == "__main__":
    run(main)
