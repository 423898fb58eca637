"""Reads and writes the `config.json` of Hugging Face's networks that have the form of a Llama."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spirit_jax import config
from spirit_jax.errors import InputError
from spirit_jax.models.llama_config import ROPE_SCALINGS, LlamaConfig, RopeScaling

from .main import reading_config
from .table import show


@dataclasses.dataclass(frozen=True)
class Family:
    """A network of transformers.

    Attributes:
      architecture: its class.
      defaults: of its config class, for settings that are not in config.json. Settings that are not
        listed here have no effect on the network in transformers, and none here.
      theta: base of the rotary frequencies if config.json has none.
    """

    architecture: str
    defaults: Mapping[str, Any]
    theta: float = 10_000.0


SLAMKIT = "speech_language_model"  # model_type of a SlamKit model, which has another in it
LLAMA: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
NO_BIAS = {name: value for name, value in LLAMA.items() if not name.endswith("_bias")}
MISTRAL = NO_BIAS | {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
QWEN2 = NO_BIAS | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
SMOLLM3 = LLAMA | {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "sliding_window": None,
    "layer_types": None,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
}
FAMILIES = {  # by model_type
    "llama": Family("LlamaForCausalLM", LLAMA),
    "mistral": Family("MistralForCausalLM", MISTRAL),
    "qwen2": Family("Qwen2ForCausalLM", QWEN2),
    "qwen3": Family("Qwen3ForCausalLM", QWEN2 | {"head_dim": 128, "attention_bias": False}),
    "smollm3": Family("SmolLM3ForCausalLM", SMOLLM3, theta=2_000_000.0),
}
# Settings of related networks, with the value that changes nothing. transformers would ignore them
# here, but whoever wrote them has another network in mind.
NO_EFFECT: dict[str, Any] = {
    "quantization_config": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "attention_multiplier": None,
    "logit_scale": 1,
    "logits_scaling": 1,
    "embedding_multiplier": 1,
    "residual_multiplier": 1,
    "scale_emb": 1,
    "scale_depth": None,
    "num_experts": 0,
    "num_local_experts": 0,
    "attention_chunk_size": None,
    "is_causal": True,
    "use_bidirectional_attention": False,
    "rope_interleaved": False,
    "use_qk_norm": False,
    "parallel_residual": False,
}


def read_config(folder: str | Path) -> LlamaConfig:
    """Converts the `config.json` of a folder; see `convert_config`."""
    path = Path(folder) / "config.json"
    return convert_config(read_settings(path), path)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a language model; of a model of SlamKit, those of the network in it."""
    hf = config.read_mapping(path)
    if hf.get("model_type") != SLAMKIT:
        return hf
    base = hf.get("base_config")
    if not isinstance(base, Mapping):
        raise InputError(f"{path}: base_config is {show(base)}; expected the text model's config.")
    # The rows were changed after the text model was read. Which tensors there are decides whether
    # the head is tied if the two configs differ.
    ties = bool(hf.get("tie_word_embeddings")) or base.get("tie_word_embeddings")
    settings = {**base, "vocab_size": hf.get("vocab_size", base.get("vocab_size"))}
    if ties is not None:
        settings["tie_word_embeddings"] = ties
    for name in ("quantization_config", "eos_token_id", "bos_token_id"):
        if hf.get(name) is not None:
            settings[name] = hf[name]
    return settings


def convert_config(hf: Mapping[str, Any], path: Path) -> LlamaConfig:
    """Converts the settings of a Hugging Face network.

    Args:
      hf: the settings.
      path: of their file, for messages.

    Raises:
      InputError: another architecture, or an unsupported setting that changes the network.
    """
    model_type = hf.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise InputError(f"{path}: model_type is {show(model_type)}, expected one of {known}.")
    for name, value in NO_EFFECT.items():
        if hf.get(name) not in (None, value):
            raise InputError(f"{path}: {name} is {show(hf[name])}, which is not supported.")
    family = FAMILIES[model_type]
    hf = {"original_max_position_embeddings": None, **family.defaults, **hf}
    biases = ("attention_bias", "mlp_bias")
    hf |= {name: False for name in biases if name not in family.defaults}
    if hf["hidden_act"] not in ("silu", "swish"):
        raise InputError(f"{path}: hidden_act is {show(hf['hidden_act'])}, expected 'silu'.")
    with reading_config(path):
        heads, width = hf["num_attention_heads"], hf["hidden_size"]
        head_dim = hf["head_dim"]
        if head_dim is None:
            if width % heads:
                raise InputError(f"hidden_size {width} does not divide into {heads} heads.")
            head_dim = width // heads
        kv_heads = hf["num_key_value_heads"]
        rope = _read_rope(hf, family.theta)
        values = {
            "family": model_type,
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
            "unrotated_layers": _find_unrotated(hf) if model_type == "smollm3" else (),
            "tie_embeddings": hf["tie_word_embeddings"],
            "attention_bias": hf["attention_bias"],
            "mlp_bias": hf["mlp_bias"],
            "init_std": hf["initializer_range"],
        }
        cfg = config.from_dict(LlamaConfig, values, source=str(path))
        _check_layers(hf, cfg)
        return dataclasses.replace(cfg, rope_scaling=_read_rope_scaling(hf, rope))


def _check_layers(hf: Mapping[str, Any], cfg: LlamaConfig) -> None:
    """Raises `InputError` for layers with a sliding window that acts."""
    window = hf.get("sliding_window")
    if cfg.family == "mistral":
        slides = window is not None
    elif cfg.family == "llama":
        slides = False
    else:
        slides = _has_sliding_layer(hf, cfg, window)
    if not slides:
        return
    if type(window) is not int or window < 1:
        raise InputError(f"sliding_window is {show(window)}; expected a number of tokens.")
    if window < cfg.max_positions:
        raise InputError(
            f"layers attend only to the last {window} tokens (sliding_window) of up to "
            f"{cfg.max_positions}, which is not supported; to use the model for sequences of at "
            f"most {window} tokens, set max_position_embeddings to {window}."
        )


def _find_unrotated(hf: Mapping[str, Any]) -> list[int]:
    """Indices of the layers of a SmolLM3 without rotary positions."""
    count, is_rotated = hf["num_hidden_layers"], hf["no_rope_layers"]
    if is_rotated is None:
        every = hf["no_rope_layer_interval"]
        is_rotated = [(layer + 1) % every != 0 for layer in range(count)]
    if len(is_rotated) < count:
        raise InputError(f"no_rope_layers has {len(is_rotated)} values for {count} layers.")
    return [layer for layer in range(count) if not is_rotated[layer]]


def _has_sliding_layer(hf: Mapping[str, Any], cfg: LlamaConfig, window: Any) -> bool:
    """Whether a layer of a Qwen or a SmolLM3 has a sliding window, by the rule of transformers."""
    types = hf["layer_types"]
    if types is not None:
        unknown = [kind for kind in types if kind not in ("full_attention", "sliding_attention")]
        if unknown:
            raise InputError(f"layer_types has {show(unknown[0])}, which is not supported.")
        return "sliding_attention" in types[: cfg.num_layers]
    if not hf["use_sliding_window"] or window is None:
        return False
    if cfg.family == "smollm3":
        return bool(cfg.unrotated_layers)
    return hf["max_window_layers"] < cfg.num_layers


def _read_rope(hf: Mapping[str, Any], default_theta: float) -> dict[str, Any]:
    """The rotary settings, with the precedence of transformers 5.

    `rope_scaling` (before transformers 5) precedes `rope_parameters`, and settings in them precede
    top-level settings.
    """
    rope = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    if not isinstance(rope, Mapping) or any(isinstance(v, Mapping) for v in rope.values()):
        raise InputError(f"its rotary settings are {show(rope)}; expected one set for all layers.")
    theta = hf.get("rope_theta")
    rope = {"rope_theta": default_theta if theta is None else theta, **rope}
    partial = rope.get("partial_rotary_factor", hf.get("partial_rotary_factor"))
    if partial not in (None, 1):
        raise InputError(f"partial_rotary_factor is {show(partial)}; only 1 is supported.")
    return rope


def _read_rope_scaling(hf: Mapping[str, Any], rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ROPE_SCALINGS:
        known = ", ".join(("default", *ROPE_SCALINGS))
        raise InputError(f"its RoPE is of the type {show(kind)}; known are {known}.")
    values = {"kind": kind, "factor": rope["factor"]}
    if kind == "linear":
        return config.from_dict(RopeScaling, values, source="RoPE")
    # As in transformers: the top-level setting, else that in `rope`, else the model's positions.
    original = hf["original_max_position_embeddings"]
    if original is None:
        original = rope.get("original_max_position_embeddings", hf["max_position_embeddings"])
    values["original_max_positions"] = original
    if kind == "yarn":
        values |= _read_yarn(rope, hf["max_position_embeddings"] / original)
    else:
        values |= {name: rope[name] for name in ("low_freq_factor", "high_freq_factor")}
    return config.from_dict(RopeScaling, values, source="RoPE")


def _read_yarn(rope: Mapping[str, Any], extension: float) -> dict[str, Any]:
    """Fields of `RopeScaling` for yarn, with the defaults of transformers.

    Args:
      rope: the rotary settings.
      extension: the factor if `rope` has null: positions of the model over those of pretraining.
    """
    factor = extension if rope["factor"] is None else rope["factor"]

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    attention_factor = rope.get("attention_factor")
    if attention_factor is None:
        weights = rope.get("mscale"), rope.get("mscale_all_dim")
        attention_factor = scale(weights[0]) / scale(weights[1]) if all(weights) else scale(1)
    return {
        "factor": factor,
        "beta_fast": rope.get("beta_fast") or 32.0,
        "beta_slow": rope.get("beta_slow") or 1.0,
        "truncate": rope.get("truncate", True),
        "attention_factor": attention_factor,
    }


def write_config(
    cfg: LlamaConfig, eos: int | list[int], bos: int | None, dtype: str
) -> dict[str, Any]:
    """The Hugging Face `config.json` of a network, the inverse of `read_config`.

    Args:
      cfg: the network.
      eos: id or ids of EOS.
      bos: id of BOS; None if the model has none.
      dtype: name of the parameters' dtype.
    """
    family = FAMILIES[cfg.family]
    hf: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": cfg.family,
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
        "rope_scaling": _write_rope_scaling(cfg.rope_scaling),
        "max_position_embeddings": cfg.max_positions,
        "tie_word_embeddings": cfg.tie_embeddings,
        "attention_bias": cfg.attention_bias,
        "mlp_bias": cfg.mlp_bias,
        "initializer_range": cfg.init_std,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": None,  # otherwise that of SmolLM3, which may be beyond the vocabulary
        "torch_dtype": dtype,
        "sliding_window": None,
        "use_sliding_window": False,
        "no_rope_layers": [int(i not in cfg.unrotated_layers) for i in range(cfg.num_layers)],
    }
    always = {"architectures", "model_type", "head_dim", "rope_theta", "rope_scaling"}
    always |= {"bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype"}
    return {name: value for name, value in hf.items() if name in always | set(family.defaults)}


def _write_rope_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    hf = {"rope_type": scaling.kind, "factor": scaling.factor}
    names = {
        "linear": (),
        "llama3": ("low_freq_factor", "high_freq_factor"),
        "yarn": ("beta_fast", "beta_slow", "truncate", "attention_factor"),
    }[scaling.kind]
    hf |= {name: getattr(scaling, name) for name in names}
    if scaling.kind != "linear":
        hf["original_max_position_embeddings"] = scaling.original_max_positions
    return hf
