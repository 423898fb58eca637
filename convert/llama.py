"""Converts Hugging Face Llama checkpoints to model folders, with or without new speech tokens.

spirit-jax convert llama --checkpoint HF_DIR --add-speech-tokens base --output MODEL_DIR
spirit-jax convert llama --checkpoint EXPORTED_DIR --output MODEL_DIR

The second form is for a folder with speech tokens, such as one that `convert.export` wrote.
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import ml_dtypes
import numpy as np
import typer

from spirit_jax import checkpoint, config, files, limits
from spirit_jax.cli.running import Output, run
from spirit_jax.errors import InputError
from spirit_jax.models.attention import RopeScaling
from spirit_jax.models.llama import Llama, LlamaConfig, abstract_params, draw_rows

from . import table, torch_files
from .main import DtypeOption, StoredDtype, reading_config, show_progress
from .table import Rule, show
from .trunk import refuse

# Defaults of transformers for settings that are not in config.json.
HF_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
DEFAULT_THETA = 10_000.0
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
LAYER = r"(?:model\.)?layers\.(\d+)\."
EMBEDDINGS, HEAD = ("model.embed_tokens.weight", "embed_tokens.weight"), "lm_head.weight"


def read_config(folder: str | Path) -> LlamaConfig:
    """Converts the Hugging Face `config.json` of a Llama.

    Raises:
      InputError: another architecture, or an unsupported setting that changes the network.
    """
    path = Path(folder) / "config.json"
    hf = config.read_mapping(path)
    if hf.get("model_type") != "llama":
        raise InputError(f"{path}: model_type is {show(hf.get('model_type'))}, expected 'llama'.")
    refuse(path, hf, quantization_config=None)
    hf = HF_DEFAULTS | hf
    if hf["hidden_act"] not in ("silu", "swish"):
        raise InputError(f"{path}: hidden_act is {show(hf['hidden_act'])}, expected 'silu'.")
    with reading_config(path):
        heads, width = hf["num_attention_heads"], hf["hidden_size"]
        head_dim = hf.get("head_dim")
        if head_dim is None:
            if width % heads:
                raise InputError(f"hidden_size {width} does not divide into {heads} heads.")
            head_dim = width // heads
        kv_heads = hf.get("num_key_value_heads")
        rope = _read_rope(hf)
        values = {
            "vocab_size": hf["vocab_size"],
            "hidden_size": width,
            "intermediate_size": hf["intermediate_size"],
            "num_layers": hf["num_hidden_layers"],
            "num_heads": heads,
            "num_kv_heads": heads if kv_heads is None else kv_heads,
            "head_dim": head_dim,
            "rms_norm_eps": hf["rms_norm_eps"],
            "rope_theta": rope["rope_theta"],
            "max_positions": hf["max_position_embeddings"],
            "tie_embeddings": hf["tie_word_embeddings"],
            "attention_bias": hf["attention_bias"],
            "mlp_bias": hf["mlp_bias"],
            "init_std": hf["initializer_range"],
        }
        cfg = config.from_dict(LlamaConfig, values, source=str(path))
        return dataclasses.replace(cfg, rope_scaling=_read_rope_scaling(hf, rope))


def _read_rope(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings, with the precedence of transformers 5.

    `rope_scaling` (before transformers 5) precedes `rope_parameters`, and settings in them precede
    top-level settings.
    """
    rope = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    if not isinstance(rope, Mapping) or any(isinstance(v, Mapping) for v in rope.values()):
        raise InputError(f"its rotary settings are {show(rope)}; expected one set for all layers.")
    theta = hf.get("rope_theta")
    rope = {"rope_theta": DEFAULT_THETA if theta is None else theta, **rope}
    partial = rope.get("partial_rotary_factor", hf.get("partial_rotary_factor"))
    if partial not in (None, 1):
        raise InputError(f"partial_rotary_factor is {show(partial)}; only 1 is supported.")
    return rope


def _read_rope_scaling(hf: Mapping[str, Any], rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return config.from_dict(
            RopeScaling, {"kind": kind, "factor": rope["factor"]}, source="RoPE"
        )
    if kind != "llama3":
        raise InputError(
            f"its RoPE is of the type {show(kind)}; known are default, linear and llama3."
        )
    # As in transformers: the top-level setting, else that in `rope`, else the model's positions.
    original = hf.get("original_max_position_embeddings")
    if original is None:
        original = rope.get("original_max_position_embeddings", hf["max_position_embeddings"])
    values = {name: rope[name] for name in ("factor", "low_freq_factor", "high_freq_factor")}
    values |= {"kind": kind, "original_max_positions": original}
    return config.from_dict(RopeScaling, values, source="RoPE")


def write_config(cfg: LlamaConfig, eos: int | list[int], bos: int, dtype: str) -> dict[str, Any]:
    """The Hugging Face `config.json` of a Llama, the inverse of `read_config`.

    Args:
      cfg: the network.
      eos: id or ids of EOS.
      bos: id of BOS.
      dtype: name of the parameters' dtype.
    """
    hf: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.hidden_size,
        "intermediate_size": cfg.intermediate_size,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "rms_norm_eps": cfg.rms_norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": None,
        "max_position_embeddings": cfg.max_positions,
        "tie_word_embeddings": cfg.tie_embeddings,
        "attention_bias": cfg.attention_bias,
        "mlp_bias": cfg.mlp_bias,
        "initializer_range": cfg.init_std,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": dtype,
    }
    if cfg.rope_scaling is not None:
        scaling = cfg.rope_scaling
        hf["rope_scaling"] = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            hf["rope_scaling"] |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_positions,
            }
    return hf


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

    base = r"(?:model\.)?"  # not in the weights of a LlamaModel
    layer = base + r"layers\.(\d+)\."
    attention, mlp = layer + r"self_attn\.", layer + r"mlp\."
    return [
        Rule(base + r"embed_tokens\.weight", "embed/embedding"),
        Rule(attention + r"([qkv])_proj\.weight", r"layers/\1/\2/kernel", split_out),
        Rule(attention + r"([qkv])_proj\.bias", r"layers/\1/\2/bias", split_bias),
        Rule(attention + r"o_proj\.weight", r"layers/\1/o/kernel", split_in),
        Rule(attention + r"o_proj\.bias", r"layers/\1/o/bias"),
        Rule(mlp + r"(gate|up|down)_proj\.weight", r"layers/\1/\2/kernel", table.transpose),
        Rule(mlp + r"(gate|up|down)_proj\.bias", r"layers/\1/\2/bias"),
        Rule(layer + r"input_layernorm\.weight", r"layers/\1/attention_norm/scale"),
        Rule(layer + r"post_attention_layernorm\.weight", r"layers/\1/mlp_norm/scale"),
        Rule(base + r"norm\.weight", "final_norm/scale"),
        Rule(r"lm_head\.weight", None if cfg.tie_embeddings else "head", table.transpose),
        # Rotary frequencies of old checkpoints, which are computed from the config instead.
        Rule(base + r"(?:layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", None),
    ]


def export_rules(cfg: LlamaConfig) -> list[Rule]:
    """Rules from this package's names and shapes to Hugging Face's, the inverse of `rules`."""

    def join_out(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.reshape(array.shape[0], -1).T)

    def join_in(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.reshape(-1, array.shape[-1]).T)

    def flat(array: np.ndarray) -> np.ndarray:
        return array.reshape(-1)

    layer, to = r"layers/(\d+)/", r"model.layers.\1."
    return [
        Rule("embed/embedding", "model.embed_tokens.weight"),
        Rule(layer + "([qkv])/kernel", to + r"self_attn.\2_proj.weight", join_out),
        Rule(layer + "([qkv])/bias", to + r"self_attn.\2_proj.bias", flat),
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
        distribution with the mean and deviation of the old rows (see `llama.draw_rows`).
      seed: of the new rows.
      dtype: in which the parameters are stored; by default each keeps that of its tensor.

    Returns:
      The config of the written network.

    Raises:
      InputError: the checkpoint is damaged or has another network, or `output` exists.
    """
    limits.check_seed(seed)
    where = str(folder)
    source, tensors = read_config(folder), torch_files.open_folder(folder)
    table.check_count(tensors, LAYER, source.num_layers, where, "layers")
    source, tensor_rules = _settle_head(source, tensors, where)
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


def _settle_head(
    cfg: LlamaConfig, tensors: Mapping[str, np.ndarray], where: str
) -> tuple[LlamaConfig, list[Rule]]:
    """Decides whether head and embedding are tied, from the config and the tensors.

    As in transformers 5: if the config ties them but both tensors are present, they are tied only
    if they are equal; if one is present, it is used for both.
    """
    embedding = next((name for name in EMBEDDINGS if name in tensors), None)
    if not cfg.tie_embeddings or HEAD not in tensors:
        return cfg, rules(cfg)
    if embedding is None:
        return cfg, [Rule(r"lm_head\.weight", "embed/embedding"), *rules(cfg)]
    if np.array_equal(tensors[embedding], tensors[HEAD]):
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
    """The command; see the module."""
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
