"""What the conversions of HuBERT and wav2vec 2.0 share: Hugging Face's trunk, parts of tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert import table, torch_files
from convert.main import reading_config
from convert.table import Rule, show
from spirit_jax import config, limits
from spirit_jax.errors import InputError
from spirit_jax.models.wav2vec2 import TrunkConfig

HF_INPUT_NORM_EPS = 1e-7
# What transformers takes for a setting that a config.json does not have.
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
# Theirs to ours; what fairseq calls fast or accurate is the approximation by tanh.
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
    """The fields of `TrunkConfig` that a Hugging Face folder asks for.

    Args:
      folder: the folder; see `read_preprocessor`.
      hf: its `config.json`.
      model_types: which of them are expected.
      named: the layer whose output is wanted, as in transformers' `hidden_states`; the network's
        output if not given.
      normalize: whether to normalise the waveform where the folder has no audio settings.
    """
    path = Path(folder) / "config.json"
    if hf.get("model_type") not in model_types:
        expected = " or ".join(repr(name) for name in model_types)
        raise InputError(
            f"{path}: model_type is {show(hf.get('model_type'))}, expected {expected}."
        )
    refuse(path, hf, add_adapter=False, quantization_config=None)
    is_hubert = hf["model_type"] == "hubert"  # the others do not read these two settings
    if is_hubert:
        refuse(path, hf, conv_pos_batch_norm=False)
    hf = HF_DEFAULTS | hf
    with reading_config(path):
        total = hf["num_hidden_layers"]
        layer = total if named is None else named
        check_layer(path, layer, total)
        convs = (hf["conv_dim"], hf["conv_kernel"], hf["conv_stride"])
        if len({len(numbers) for numbers in convs}) != 1:
            raise InputError(f"{path}: conv_dim, conv_kernel and conv_stride differ in length.")
        normalize = (read_preprocessor(folder) or {"do_normalize": normalize})["do_normalize"]
        return {
            "input_norm_eps": HF_INPUT_NORM_EPS if normalize else None,
            "conv_layers": tuple(zip(*convs, strict=True)),
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
            # transformers 5 applies a pre-norm encoder's norm after the last layer, but its
            # hidden_states are the layers' own outputs, that of the last one too.
            "final_norm": not hf["do_stable_layer_norm"] or named is None,
            "norm_eps": hf["layer_norm_eps"],
        }


def hf_rules(cfg: TrunkConfig, total_layers: int, prefix: str = "", target: str = "") -> list[Rule]:
    """Hugging Face's names of a HubertModel or Wav2Vec2Model to ours.

    `prefix` (a regular expression without groups) is what stands before every name, `target` the
    path of the trunk in our parameters, with its final slash.
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
    """The float32 weights of a Hugging Face folder, the positional conv's weight norm folded.

    Args:
      folder: that holds them.
      rules: what they say is not needed is not read.
      layers: the transformer layers that the config asks for.
    """
    tensors = torch_files.open_folder(folder)
    table.check_count(tensors, r".*\blayers\.(\d+)\.", layers, str(folder), "layers")
    arrays = {
        name: np.asarray(tensors[name], np.float32)
        for name in table.select(dict.fromkeys(tensors), rules)
    }
    return table.fold_weight_norm(arrays, dim=2)


def check_layer(path: str | Path, layer: int, total: Any) -> None:
    """Raises `InputError` unless a network of `total` layers has a layer `layer`, from 1."""
    most = limits.LAYERS[1]
    if type(total) is not int or not 1 <= total <= most:
        raise InputError(
            f"{path}: has {show(total)} layers; expected a whole number from 1 to {most}."
        )
    if not 1 <= layer <= total:
        raise InputError(f"{path}: has {total} layers, so there is no layer {layer}.")


def refuse(path: str | Path, cfg: Mapping[str, Any], **expected: Any) -> None:
    """Raises `InputError` where a setting is there and is not the one that is known here."""
    for name, value in expected.items():
        if cfg.get(name, value) != value:
            raise InputError(f"{path}: {name} is {show(cfg[name])}; only {value!r} is known here.")


def read_activation(path: str | Path, name: Any) -> str:
    """Our name of an activation function; raises `InputError` where there is none."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise InputError(f"{path}: activation {show(name)} is none of {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def read_preprocessor(folder: str | Path) -> dict[str, Any]:
    """The audio settings of a Hugging Face folder; empty where it has none.

    As transformers 5 reads them: from the feature extractor's part of `processor_config.json`, else
    from `preprocessor_config.json`; a setting that is not there has the class's default.

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
        refuse(path, settings, feature_extractor_type=FEATURE_EXTRACTOR, feature_size=1)
        settings = FEATURE_DEFAULTS | settings
        if not isinstance(settings["do_normalize"], bool):
            raise InputError(f"{path}: do_normalize is {show(settings['do_normalize'])}.")
        return settings
    return {}


def layer_pattern(encoder: str) -> str:
    """What the names of a transformer layer's tensors begin with; its number is a group."""
    return encoder + r"\.layers\.(\d+)\."


def skip_layers(encoder: str, first: int, total: int) -> list[Rule]:
    """That the layers from `first` (from 0) to the last of `total` are known and not needed."""
    numbers = "|".join(str(i) for i in range(first, total))
    return [Rule(rf"{encoder}\.layers\.(?:{numbers})\..*", None)] if numbers else []


def linear_rules(source: str, target: str) -> list[Rule]:
    """The two tensors of a torch Linear or Conv1d, their axes reversed."""
    return [
        Rule(source + r"\.weight", target + "/kernel", table.transpose),
        Rule(source + r"\.bias", target + "/bias"),
    ]


def norm_rules(source: str, target: str | None) -> list[Rule]:
    """The two tensors of a norm; not needed where `target` is None."""
    return [
        Rule(source + r"\.weight", target and target + "/scale"),
        Rule(source + r"\.bias", target and target + "/bias"),
    ]
