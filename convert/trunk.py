"""Shared parts of the conversions of HuBERT and wav2vec 2.0."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spirit_jax import config, limits
from spirit_jax.errors import InputError
from spirit_jax.models.wav2vec2 import TrunkConfig

from . import table, weights
from .main import reading_config
from .table import Rule, show

HF_INPUT_NORM_EPS = 1e-7
# Defaults of transformers for settings that are not in config.json.
HF_DEFAULTS: dict[str, Any] = {
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "feat_extract_norm": "group",
    "conv_bias": False,
    "feat_extract_activation": "gelu",
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "do_stable_layer_norm": False,
    "layer_norm_eps": 1e-5,
}
FEATURE_EXTRACTOR = "Wav2Vec2FeatureExtractor"
FEATURE_DEFAULTS = {"do_normalize": True, "sampling_rate": 16000, "feature_size": 1}  # that class's
# Names in other packages to this package's; fairseq's "fast" and "accurate" are the tanh
# approximation.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def read_hf_trunk(
    folder: str | Path,
    hf: Mapping[str, Any],
    model_types: Sequence[str],
    named: int | None = None,
    normalize: bool = False,
) -> dict[str, Any]:
    """The fields of `TrunkConfig` from a Hugging Face folder.

    Args:
      folder: the folder; see `read_preprocessor`.
      hf: its `config.json`.
      model_types: accepted values of `model_type`.
      named: index in transformers' `hidden_states` of the output to compute; by default the output
        of the network.
      normalize: whether the waveform is normalised if the folder has no audio settings.

    Returns:
      Values by field name.

    Raises:
      InputError: the network is not supported, or a value is invalid.
    """
    path = Path(folder) / "config.json"
    kind = hf.get("model_type")
    if kind not in model_types:
        expected = " or ".join(map(repr, model_types))
        raise InputError(f"{path}: model_type is {show(kind)}, expected {expected}.")
    require_settings(path, hf, add_adapter=False, quantization_config=None)
    is_hubert = kind == "hubert"  # only these have the two settings below
    if is_hubert:
        require_settings(path, hf, conv_pos_batch_norm=False)
    hf = HF_DEFAULTS | hf
    normalize = (read_preprocessor(folder) or {"do_normalize": normalize})["do_normalize"]
    with reading_config(path):
        total = hf["num_hidden_layers"]
        layer = total if named is None else named
        check_layer(path, layer, total)
        return {
            "input_norm_eps": HF_INPUT_NORM_EPS if normalize else None,
            "conv_layers": _read_conv_layers(path, hf),
            "conv_norm": hf["feat_extract_norm"],
            "conv_bias": hf["conv_bias"],
            "conv_activation": read_activation(path, hf["feat_extract_activation"]),
            "feature_norm": hf.get("feat_proj_layer_norm", True) if is_hubert else True,
            "conv_pos": hf["num_conv_pos_embeddings"],
            "conv_pos_groups": hf["num_conv_pos_embedding_groups"],
            "hidden_size": hf["hidden_size"],
            "num_layers": layer,
            "num_heads": hf["num_attention_heads"],
            "ffn_size": hf["intermediate_size"],
            "activation": read_activation(path, hf["hidden_act"]),
            "norm_first": hf["do_stable_layer_norm"],
            # transformers 5 applies the final norm of a pre-norm encoder after the last layer, but
            # its hidden_states are outputs of layers before that norm.
            "final_norm": not hf["do_stable_layer_norm"] or named is None,
            "norm_eps": hf["layer_norm_eps"],
        }


def _read_conv_layers(path: Path, hf: Mapping[str, Any]) -> tuple[tuple[int, int, int], ...]:
    convs = (hf["conv_dim"], hf["conv_kernel"], hf["conv_stride"])
    if len({len(numbers) for numbers in convs}) != 1:
        raise InputError(f"{path}: conv_dim, conv_kernel and conv_stride differ in length.")
    return tuple(zip(*convs, strict=True))


def hf_rules(cfg: TrunkConfig, total_layers: int, prefix: str = "", target: str = "") -> list[Rule]:
    """Rules from Hugging Face's names of a HubertModel or Wav2Vec2Model to this package's.

    Args:
      cfg: the trunk.
      total_layers: number of layers in the checkpoint.
      prefix: of every name: a regular expression without groups.
      target: path of the trunk in the parameters, with a final slash.
    """
    conv = prefix + r"feature_extractor\.conv_layers\.(\d+)\."
    layer = layer_pattern(prefix + "encoder")
    projection, encoder = prefix + r"feature_projection\.", prefix + r"encoder\."
    layers = target + r"layers/\1/"
    return [
        *norm_rules(conv + "layer_norm", target + r"conv/\1/norm"),
        *linear_rules(conv + "conv", target + r"conv/\1"),
        *norm_rules(projection + "layer_norm", target + "feature_norm"),
        *linear_rules(projection + "projection", target + "feature_projection"),
        *linear_rules(encoder + r"pos_conv_embed\.conv", target + "pos_conv"),
        *norm_rules(encoder + "layer_norm", target + "norm" if cfg.final_norm else None),
        *skip_layers(prefix + "encoder", cfg.num_layers, total_layers),
        *linear_rules(layer + r"attention\.(q|k|v|out)_proj", layers + r"attention/\2"),
        *norm_rules(layer + "layer_norm", layers + "attention_norm"),
        *linear_rules(layer + r"feed_forward\.intermediate_dense", layers + "fc1"),
        *linear_rules(layer + r"feed_forward\.output_dense", layers + "fc2"),
        *norm_rules(layer + "final_layer_norm", layers + "ffn_norm"),
        Rule(prefix + "masked_spec_embed", None),
    ]


def read_hf_tensors(
    folder: str | Path, rules: Sequence[Rule], layers: int
) -> dict[str, np.ndarray]:
    """The float32 weights of a Hugging Face folder, with folded weight normalisation.

    Args:
      folder: the Hugging Face folder.
      rules: the table; tensors that it marks as not needed are not read.
      layers: number of transformer layers in the config.

    Raises:
      InputError: the weights cannot be read, or have fewer layers.
    """
    tensors = weights.open_folder(folder)
    table.check_count(tensors, r".*\blayers\.(\d+)\.", layers, str(folder), "layers")
    with np.errstate(over="ignore"):  # `table.run` names what is not finite
        arrays = {
            name: np.asarray(tensors[name], np.float32)
            for name in table.select(dict.fromkeys(tensors), rules)
        }
    return table.fold_weight_norm(arrays, dim=2, where=str(folder))


def check_layer(path: str | Path, layer: int, total: Any) -> None:
    """Checks the number of a transformer layer.

    Args:
      path: the config file, for messages.
      layer: number of the layer, from 1.
      total: number of layers in the config.

    Raises:
      InputError: there is no such layer, or `total` is invalid.
    """
    maximum = limits.LAYERS[1]
    if type(total) is not int or not 1 <= total <= maximum:
        raise InputError(
            f"{path}: has {show(total)} layers; expected a whole number from 1 to {maximum}."
        )
    if not 1 <= layer <= total:
        raise InputError(
            f"{path}: has {total} layers, so there is no layer {layer}; choose another with "
            "--layer."
        )


def require_settings(path: str | Path, cfg: Mapping[str, Any], **expected: Any) -> None:
    """Raises `InputError` if a setting is present and has another value than the expected one."""
    for name, value in expected.items():
        if cfg.get(name, value) != value:
            raise InputError(f"{path}: {name} is {show(cfg[name])}; only {value!r} is supported.")


def read_activation(path: str | Path, name: Any) -> str:
    """This package's name of an activation function; raises `InputError` if unknown."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise InputError(f"{path}: activation {show(name)} is not one of {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def read_preprocessor(folder: str | Path) -> dict[str, Any]:
    """The audio settings of a Hugging Face folder; empty if it has none.

    As in transformers 5, they are read from the feature extractor in `processor_config.json`, or
    else from `preprocessor_config.json`. Missing settings have the defaults of the class.

    Raises:
      InputError: a file cannot be read, or is of another class or for several channels.
    """
    for name, parts in (
        ("processor_config.json", ("feature_extractor", "audio_processor")),
        ("preprocessor_config.json", ()),
    ):
        path = Path(folder) / name
        if not path.is_file():
            continue
        settings: Any = config.read_mapping(path)
        if parts:
            settings = next((settings[part] for part in parts if part in settings), None)
        if settings is None:
            continue
        if not isinstance(settings, dict):
            raise InputError(f"{path}: its feature extractor is {show(settings)}.")
        require_settings(path, settings, feature_extractor_type=FEATURE_EXTRACTOR, feature_size=1)
        settings = FEATURE_DEFAULTS | settings
        if not isinstance(settings["do_normalize"], bool):
            raise InputError(f"{path}: do_normalize is {show(settings['do_normalize'])}.")
        return settings
    return {}


def layer_pattern(encoder: str) -> str:
    """A regular expression for the start of a transformer layer's names; group 1 is its number."""
    return encoder + r"\.layers\.(\d+)\."


def skip_layers(encoder: str, first: int, total: int) -> list[Rule]:
    """Rules that skip the last layers.

    Args:
      encoder: regular expression for the name of the encoder.
      first: index of the first skipped layer, from 0.
      total: number of layers.
    """
    numbers = "|".join(str(i) for i in range(first, total))
    return [Rule(rf"{encoder}\.layers\.(?:{numbers})\..*", None)] if numbers else []


def linear_rules(source: str, target: str) -> list[Rule]:
    """Rules for a torch Linear or Conv1d, whose axes are reversed."""
    return [
        Rule(source + r"\.weight", target + "/kernel", table.transpose),
        Rule(source + r"\.bias", target + "/bias"),
    ]


def norm_rules(source: str, target: str | None) -> list[Rule]:
    """Rules for a norm; it is skipped if `target` is None."""
    return [
        Rule(source + r"\.weight", target and target + "/scale"),
        Rule(source + r"\.bias", target and target + "/bias"),
    ]
