"""Llama checkpoints in Hugging Face form: to a model folder, with or without new speech tokens.

python -m convert.llama --checkpoint HF_DIR --add-speech-tokens base --output MODEL_DIR
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert import table, torch_files
from convert.main import run_main, show_progress
from convert.table import Rule
from spirit_jax import checkpoint, config, files
from spirit_jax.errors import InputError
from spirit_jax.models.attention import RopeScaling
from spirit_jax.models.llama import Llama, LlamaConfig, abstract_params, draw_rows


def read_config(folder: str | Path) -> LlamaConfig:
    """The sizes in a Hugging Face `config.json` of the Llama family.

    Raises:
      InputError: another architecture, or a setting that changes the network and is not known.
    """
    path = Path(folder) / "config.json"
    hf = config.read_mapping(path)
    if hf.get("model_type") != "llama":
        raise InputError(f"{path}: model_type is '{hf.get('model_type')}', expected 'llama'.")
    if hf.get("hidden_act", "silu") != "silu":
        raise InputError(f"{path}: hidden_act is '{hf['hidden_act']}', expected 'silu'.")
    try:
        heads = hf["num_attention_heads"]
        return LlamaConfig(
            vocab_size=hf["vocab_size"],
            hidden_size=hf["hidden_size"],
            intermediate_size=hf["intermediate_size"],
            num_layers=hf["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=hf.get("num_key_value_heads") or heads,
            head_dim=hf.get("head_dim") or hf["hidden_size"] // heads,
            rms_norm_eps=hf.get("rms_norm_eps", 1e-6),
            rope_theta=float(_rope(hf).get("rope_theta", 10_000.0)),
            rope_scaling=_rope_scaling(hf),
            max_positions=hf.get("max_position_embeddings", 2048),
            tie_embeddings=hf.get("tie_word_embeddings", False),
            attention_bias=hf.get("attention_bias", False),
            mlp_bias=hf.get("mlp_bias", False),
            init_std=hf.get("initializer_range", 0.02),
        )
    except KeyError as error:
        raise InputError(f"{path}: has no {error}.") from error


def _rope(hf: Mapping[str, Any]) -> Mapping[str, Any]:
    """Rotary settings; transformers 5 keeps them in `rope_parameters`, earlier ones beside it."""
    scaling = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    return {"rope_theta": hf["rope_theta"], **scaling} if "rope_theta" in hf else scaling


def _rope_scaling(hf: Mapping[str, Any]) -> RopeScaling | None:
    rope = _rope(hf)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    names = {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_max_positions",
    }
    values = {ours: rope[theirs] for theirs, ours in names.items() if theirs in rope}
    return RopeScaling(kind=kind, **values)


def write_config(cfg: LlamaConfig, eos: int | list[int], bos: int, dtype: str) -> dict[str, Any]:
    """The Hugging Face `config.json` of a Llama: the inverse of `read_config`."""
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
    """Hugging Face's names and shapes to ours; torch's Linear is (out, in)."""

    def split_out(array: np.ndarray) -> np.ndarray:  # (heads * k, d) -> (d, heads, k)
        return np.ascontiguousarray(array.T).reshape(array.shape[1], -1, cfg.head_dim)

    def split_in(array: np.ndarray) -> np.ndarray:  # (d, heads * k) -> (heads, k, d)
        return np.ascontiguousarray(array.T).reshape(-1, cfg.head_dim, array.shape[0])

    def split_bias(array: np.ndarray) -> np.ndarray:
        return array.reshape(-1, cfg.head_dim)

    layer = r"model\.layers\.(\d+)\."
    attention, mlp = layer + r"self_attn\.", layer + r"mlp\."
    return [
        Rule(r"model\.embed_tokens\.weight", "embed/embedding"),
        Rule(attention + r"([qkv])_proj\.weight", r"layers/\1/\2/kernel", split_out),
        Rule(attention + r"([qkv])_proj\.bias", r"layers/\1/\2/bias", split_bias),
        Rule(attention + r"o_proj\.weight", r"layers/\1/o/kernel", split_in),
        Rule(attention + r"o_proj\.bias", r"layers/\1/o/bias"),
        Rule(mlp + r"(gate|up|down)_proj\.weight", r"layers/\1/\2/kernel", table.transpose),
        Rule(mlp + r"(gate|up|down)_proj\.bias", r"layers/\1/\2/bias"),
        Rule(layer + r"input_layernorm\.weight", r"layers/\1/attention_norm/scale"),
        Rule(layer + r"post_attention_layernorm\.weight", r"layers/\1/mlp_norm/scale"),
        Rule(r"model\.norm\.weight", "final_norm/scale"),
        # A tied head is the embedding, whether or not the file repeats it.
        Rule(r"lm_head\.weight", None if cfg.tie_embeddings else "head", table.transpose),
        # Rotary frequencies that old checkpoints carry; the config gives them.
        Rule(r"(?:model\.layers\.\d+\.self_attn|model)\.rotary_emb\.inv_freq", None),
    ]


def export_rules(cfg: LlamaConfig) -> list[Rule]:
    """Our names and shapes to Hugging Face's: the inverse of `rules`."""

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
    folder: str | Path, output: str | Path, new_vocab_size: int | None = None, seed: int = 0
) -> LlamaConfig:
    """Writes the network folder of a Hugging Face Llama, a tensor at a time.

    Args:
      folder: the checkpoint.
      output: the network folder to write.
      new_vocab_size: rows of the embedding and head afterwards; new rows are drawn from a normal
        distribution with the mean and spread of the old ones, so that the model starts near where
        it was.
      seed: of the new rows.

    Returns:
      The config of what was written.
    """
    source = read_config(folder)
    tensors = torch_files.open_folder(folder)
    shapes = abstract_params(Llama(source))
    where = str(folder)
    steps = table.plan(list(tensors), rules(source), list(checkpoint.flatten(shapes)), where)
    rows = new_vocab_size or source.vocab_size
    if rows < source.vocab_size:
        raise InputError(f"{folder}: has {source.vocab_size} rows already, more than {rows}.")

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        moves = table.run(tensors, steps, shapes, where)
        for path, array in show_progress(moves, len(steps), "converting the language model"):
            if path in ("embed/embedding", "head") and rows > source.vocab_size:
                array = _add_rows(array, path, rows, seed)
            yield path, array

    cfg = dataclasses.replace(source, vocab_size=rows)
    checkpoint.save_network(output, cfg, table.batches(arrays()))
    return cfg


def _add_rows(array: np.ndarray, path: str, rows: int, seed: int) -> np.ndarray:
    axis = 0 if path == "embed/embedding" else 1
    old = np.moveaxis(array, axis, 0)
    new = draw_rows(old, rows - len(old), (seed, axis)).astype(array.dtype)
    return np.moveaxis(np.concatenate([old, new]), 0, axis)


def main() -> None:
    from convert.tokenizer import convert_tokenizer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="Hugging Face folder of a Llama")
    parser.add_argument("--add-speech-tokens", required=True, choices=["base", "expressive"])
    parser.add_argument("--output", required=True, help="model folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the new rows")
    args = parser.parse_args()
    with files.whole_folder(args.output) as folder:
        vocab = convert_tokenizer(args.checkpoint, args.add_speech_tokens, folder, add=True)
        cfg = convert_llama(args.checkpoint, folder / "llama", vocab.padded_size, args.seed)
    print(json.dumps({"output": args.output, "layers": cfg.num_layers, "rows": cfg.vocab_size}))


if __name__ == "__main__":
    run_main(main)
