"""Convert HuBERT and its quantizer, from the release or from Hugging Face and centroids.

spirit-jax convert hubert --checkpoint mhubert_base_25hz.pt --quantizer L11_quantizer_500.pt --output DIR
spirit-jax convert hubert --hf HF_DIR [--kmeans centroids.npy] --output DIR

Writes the networks `DIR/hubert` and `DIR/quantizer`.
"""  # noqa: E501

import ast
import contextlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer

from spirit_jax import checkpoint, config, files
from spirit_jax.cli.running import Output, UsageError, run
from spirit_jax.errors import InputError
from spirit_jax.models.hubert import HubertConfig, QuantizerConfig, make_quantizer
from spirit_jax.models.wav2vec2 import Trunk, TrunkConfig, abstract_params

from . import kmeans_files, table, torch_files, weights
from .main import reading_config, require_one
from .table import Rule, show
from .trunk import (
    FEATURE_DEFAULTS,
    HF_DEFAULTS,
    check_layer,
    hf_rules,
    layer_pattern,
    linear_rules,
    norm_rules,
    read_activation,
    read_hf_tensors,
    read_hf_trunk,
    read_preprocessor,
    require_settings,
    skip_layers,
)

FAIRSEQ_CONV_LAYERS = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
FAIRSEQ_EXTRACTOR_MODES = {"default": "group", "layer_norm": "layer"}
FAIRSEQ_INPUT_NORM_EPS = 1e-5
MAX_EXPRESSION = 1000  # characters; the release's has 46
MAX_CONV_LAYERS = 64
MAX_KMEANS_BYTES = 1 << 28


def parse_conv_layers(expression: Any, where: str) -> tuple[tuple[int, int, int], ...]:
    """(channels, kernel, stride) triples from fairseq's Python expression.

    The syntax tree may only have whole numbers, lists, tuples, + and *; nothing is executed.

    Raises:
      InputError: the expression is of another form, or has too many layers.
    """
    problem = InputError(
        f"{where}: conv_feature_layers is {str(expression)[:100]!r}, expected a list of "
        f"(channels, kernel, stride), at most {MAX_CONV_LAYERS}, written with + and * only."
    )
    if not isinstance(expression, str) or len(expression) > MAX_EXPRESSION:
        raise problem
    try:
        layers = _evaluate(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, RecursionError) as error:
        raise problem from error
    if not isinstance(layers, list | tuple) or not 0 < len(layers) <= MAX_CONV_LAYERS:
        raise problem
    for layer in layers:
        is_whole = isinstance(layer, list | tuple) and all(type(n) is int and n > 0 for n in layer)
        if not is_whole or len(layer) != 3:
            raise problem
    return tuple(tuple(layer) for layer in layers)


def _evaluate(node: ast.AST) -> Any:
    match node:
        case ast.Constant(value=int()):
            return node.value
        case ast.List():
            return [_evaluate(item) for item in node.elts]
        case ast.Tuple():
            return tuple(_evaluate(item) for item in node.elts)
        case ast.BinOp(op=ast.Add()):
            return _evaluate(node.left) + _evaluate(node.right)
        case ast.BinOp(op=ast.Mult()):
            left, right = _evaluate(node.left), _evaluate(node.right)
            if isinstance(left, int):
                left, right = right, left
            # Checked first: a short expression can describe a list that does not fit in memory.
            if not isinstance(left, int) and len(left) * right > MAX_CONV_LAYERS:
                raise ValueError("too long")
            return left * right
        case _:
            raise ValueError(f"{type(node).__name__} is not allowed")


def read_release_encoder(path: str | Path, layer: int = 11) -> tuple[HubertConfig, dict[str, Any]]:
    """Config and parameters of a fairseq HuBERT file, up to transformer layer `layer` (from 1).

    Raises:
      InputError: the file is damaged, or has another network.
    """
    saved = torch_files.load_parts(path, "model_cfg", "model_weight")
    cfg, task = saved["model_cfg"], saved.get("task_cfg") or {}
    if not isinstance(task, Mapping):
        raise InputError(f"{path}: task_cfg is {show(task)}; expected a mapping.")
    total = cfg.get("encoder_layers", 12)
    check_layer(path, layer, total)
    require_settings(
        path, cfg, pos_conv_depth=1, layer_type="transformer", conv_pos_batch_norm=False
    )
    with reading_config(path):
        trunk = _read_release_trunk(path, cfg, layer)
        trunk["input_norm_eps"] = FAIRSEQ_INPUT_NORM_EPS if task.get("normalize") else None
        values = {"trunk": trunk, "sample_rate": task.get("sample_rate", 16000)}
        torch_files.check_plain(values, path)
        network = config.from_dict(HubertConfig, values, source=str(path))
    rules = release_rules(network.trunk, total)
    state = table.select(saved["model_weight"], rules)
    table.check_count(state, r"encoder\.layers\.(\d+)\.", layer, str(path), "layers up to it")
    tensors = table.fold_weight_norm(torch_files.as_float32(state, path), 2, str(path))
    params = table.convert(tensors, rules, abstract_params(Trunk(network.trunk)), str(path))
    return network, params


def _read_release_trunk(path: str | Path, cfg: Mapping[str, Any], layer: int) -> dict[str, Any]:
    """The fields of `TrunkConfig` from fairseq's config, with fairseq's defaults."""
    mode = cfg.get("extractor_mode", "default")
    norm_first = cfg.get("layer_norm_first", False)
    conv_layers = parse_conv_layers(
        cfg.get("conv_feature_layers", FAIRSEQ_CONV_LAYERS), where=str(path)
    )
    width = cfg.get("encoder_embed_dim", 768)
    return {
        "conv_layers": conv_layers,
        "conv_norm": FAIRSEQ_EXTRACTOR_MODES.get(mode, mode),
        "conv_bias": cfg.get("conv_bias", False),
        "feature_projection": conv_layers[-1][0] != width,
        "conv_pos": cfg.get("conv_pos", 128),
        "conv_pos_groups": cfg.get("conv_pos_groups", 16),
        "hidden_size": width,
        "num_layers": layer,
        "num_heads": cfg.get("encoder_attention_heads", 12),
        "ffn_size": cfg.get("encoder_ffn_embed_dim", 3072),
        "activation": read_activation(path, cfg.get("activation_fn", "gelu")),
        "norm_first": norm_first,
        # fairseq's TransformerEncoder applies its final LayerNorm only if no layer is selected, so
        # it is not applied even to the output of the last layer.
        "final_norm": not norm_first,
    }


def release_rules(cfg: TrunkConfig, total_layers: int) -> list[Rule]:
    """Rules from fairseq's names to this package's, for the first `cfg.num_layers` layers."""
    conv, layer = r"feature_extractor\.conv_layers\.(\d+)\.", layer_pattern("encoder")
    return [
        *norm_rules(conv + (r"2\.1" if cfg.conv_norm == "layer" else "2"), r"conv/\1/norm"),
        *linear_rules(conv + "0", r"conv/\1"),
        *norm_rules("layer_norm", "feature_norm"),
        *linear_rules("post_extract_proj", "feature_projection"),
        *linear_rules(r"encoder\.pos_conv\.0", "pos_conv"),
        *norm_rules(r"encoder\.layer_norm", "norm" if cfg.final_norm else None),
        *skip_layers("encoder", cfg.num_layers, total_layers),
        *linear_rules(layer + r"self_attn\.(q|k|v|out)_proj", r"layers/\1/attention/\2"),
        *norm_rules(layer + r"self_attn_layer_norm", r"layers/\1/attention_norm"),
        *linear_rules(layer + r"(fc1|fc2)", r"layers/\1/\2"),
        *norm_rules(layer + r"final_layer_norm", r"layers/\1/ffn_norm"),
        # Only needed for training.
        Rule(r"label_embs_concat|mask_emb|final_proj\..*", None),
    ]


def read_hf_encoder(
    folder: str | Path, layer: int | None = 11, padding: int = 0
) -> tuple[HubertConfig, dict[str, Any]]:
    """Config and parameters of a Hugging Face HubertModel folder.

    Args:
      folder: the folder.
      layer: the layer whose output is quantized, from 1, before any norm that follows the last
        layer; None for the output of the network.
      padding: samples of silence to add at both ends of a recording.

    Raises:
      InputError: the folder is incomplete, or has another network.
    """
    path = Path(folder) / "config.json"
    hf = config.read_mapping(path)
    trunk = read_hf_trunk(folder, hf, ("hubert", "wav2vec2"), layer)
    sample_rate = (read_preprocessor(folder) or FEATURE_DEFAULTS)["sampling_rate"]
    values = {"trunk": trunk, "sample_rate": sample_rate, "padding": padding}
    network = config.from_dict(HubertConfig, values, source=str(path))
    total = hf.get("num_hidden_layers", HF_DEFAULTS["num_hidden_layers"])
    rules = [
        *hf_rules(network.trunk, total, r"(?:hubert\.|wav2vec2\.)?"),
        # Heads, and tensors that are only needed for training.
        Rule(r"label_embs_concat|(?:final_proj|lm_head|projector|classifier)\..*", None),
        Rule(r"(?:quantizer|project_hid|project_q)\..*", None),
    ]
    tensors = read_hf_tensors(folder, rules, network.trunk.num_layers)
    return network, table.convert(
        tensors, rules, abstract_params(Trunk(network.trunk)), str(folder)
    )


def read_release_quantizer(path: str | Path) -> tuple[QuantizerConfig, dict[str, Any]]:
    """Config and parameters of the release's quantizer file.

    Raises:
      InputError: the file is damaged, or has another network.
    """
    saved = torch_files.load_parts(path, "model_cfg", "model_weight")
    cfg = saved["model_cfg"]
    with reading_config(path):
        torch_files.check_plain(dict(cfg), path)
        vocab_size, dim = cfg["vocab_size"], cfg["dim"]
        middle = cfg["upstream_dim"] - (vocab_size + 1)
        hidden = (dim - middle // 4, dim - middle // 2)
    if min(hidden) < 1:
        raise InputError(f"{path}: model_cfg asks for layers of {hidden} channels.")
    values = {"kind": "mlp", "vocab_size": vocab_size, "dim": dim, "hidden_sizes": hidden}
    quantizer = config.from_dict(QuantizerConfig, values, source=str(path))
    # Every second numbered layer is a leaky ReLU without parameters.
    rules = [rule for i in range(3) for rule in linear_rules(str(2 * i), f"linear{i}")]
    tensors = torch_files.as_float32(saved["model_weight"], path)
    return quantizer, table.convert(tensors, rules, quantizer_shapes(quantizer), str(path))


def read_kmeans(path: str | Path) -> tuple[QuantizerConfig, dict[str, Any]]:
    """Config and parameters of a file of centroids, (units, channels).

    Args:
      path: a `.npy` file; a `.npz`, `.safetensors`, `.pt` or `.bin` file with one matrix; or a
        scikit-learn k-means that joblib or pickle wrote (see `kmeans_files`).

    Raises:
      InputError: another kind of file, or not exactly one matrix in it.
    """
    path = Path(path)
    matrices = [array for array in _read_arrays(path) if array.ndim == 2 and array.size]
    if len(matrices) != 1:
        raise InputError(f"{path}: has {len(matrices)} matrices; expected one, of centroids.")
    if matrices[0].dtype.kind not in "fiu":
        raise InputError(f"{path}: its centroids are of type {matrices[0].dtype}, not numbers.")
    with np.errstate(over="ignore"):
        centroids = np.asarray(matrices[0], np.float32)
    if not np.isfinite(centroids).all():
        raise InputError(f"{path}: its centroids are not all finite.")
    cfg = QuantizerConfig("kmeans", vocab_size=centroids.shape[0], dim=centroids.shape[1])
    return cfg, {"centroids": centroids}


def _read_arrays(path: Path) -> list[np.ndarray]:
    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    if path.suffix in (".npy", ".npz"):
        try:
            if path.suffix == ".npz":
                with zipfile.ZipFile(path) as archive:
                    if sum(part.file_size for part in archive.infolist()) > MAX_KMEANS_BYTES:
                        raise InputError(f"{path}: is too large for centroids.")
            saved = np.load(path, allow_pickle=False, mmap_mode="r")
            return [saved] if path.suffix == ".npy" else [saved[name] for name in saved]
        except InputError:
            raise
        except Exception as error:  # numpy raises many kinds for a damaged header
            reason = "is not a whole numpy file of numbers."
            raise files.unreadable(path, error, reason) from error
    if path.suffix == ".safetensors":
        return list(weights.SafetensorsFile(path).values())
    if path.suffix == ".pt" or zipfile.is_zipfile(path):
        return torch_files.read_arrays(path)
    return [kmeans_files.read_centroids(path)]


def convert_hubert(
    output: str | Path,
    encoder: tuple[HubertConfig, dict[str, Any]],
    quantizer: tuple[QuantizerConfig, dict[str, Any]] | None = None,
) -> None:
    """Writes the network folders `hubert` and `quantizer` in `output`.

    Args:
      output: the folder to write; an existing folder gets the networks as new subfolders.
      encoder: from `read_release_encoder` or `read_hf_encoder`.
      quantizer: from `read_release_quantizer` or `read_kmeans`.

    Raises:
      InputError: the two do not match, or a network folder exists.
    """
    networks = {"hubert": encoder} | ({"quantizer": quantizer} if quantizer else {})
    if quantizer and quantizer[0].dim != encoder[0].trunk.hidden_size:
        raise InputError(
            f"The quantizer needs {quantizer[0].dim} channels, but the encoder has "
            f"{encoder[0].trunk.hidden_size}."
        )
    output = files.as_path(output)
    for name in networks:
        files.refuse_existing(output / name)
    if output.is_dir():
        with contextlib.ExitStack() as stack:  # none gets its name before all are written
            for name, (cfg, params) in networks.items():
                folder = stack.enter_context(files.whole_folder(output / name))
                checkpoint.save_network(folder, cfg, params)
        return
    with files.whole_folder(output) as folder:
        for name, (cfg, params) in networks.items():
            checkpoint.save_network(folder / name, cfg, params)


def quantizer_shapes(cfg: QuantizerConfig) -> dict[str, Any]:
    """The parameters of a quantizer as `jax.ShapeDtypeStruct`."""
    features = jax.ShapeDtypeStruct((1, 1, cfg.dim), jnp.float32)
    return jax.eval_shape(make_quantizer(cfg).init, jax.random.key(0), features)["params"]


def main(
    output: Output,
    checkpoint: Annotated[Path | None, typer.Option(help="The release's HuBERT file (.pt)")] = None,
    hf: Annotated[
        Path | None, typer.Option(help="Instead: Hugging Face folder of a HubertModel")
    ] = None,
    quantizer: Annotated[
        Path | None, typer.Option(help="The release's quantizer file (.pt)")
    ] = None,
    kmeans: Annotated[
        Path | None,
        typer.Option(
            help="Instead: centroids (.npy, .npz, .safetensors, .pt), or a pickled k-means"
        ),
    ] = None,
    layer: Annotated[
        int,
        typer.Option(
            min=0, help="Layer whose output is quantized, from 1; 0: output of the network"
        ),
    ] = 11,
    padding: Annotated[
        int, typer.Option(min=0, help="Silent samples to add at both ends; 40 for the open stack")
    ] = 0,
) -> None:
    """Runs the command that the module's docstring describes."""
    require_one("--checkpoint", "--hf", given=(checkpoint, hf))
    require_one("--quantizer", "--kmeans", given=(quantizer, kmeans), required=False)
    if padding and not hf:
        raise UsageError("--padding is for --hf; the release adds no silence.")
    files.refuse_existing(output)
    encoder = (
        read_hf_encoder(hf, layer or None, padding)
        if hf
        else read_release_encoder(checkpoint, layer)
    )
    units = None
    if quantizer:
        units = read_release_quantizer(quantizer)
    elif kmeans:
        units = read_kmeans(kmeans)
    convert_hubert(output, encoder, units)
    layers = encoder[0].trunk.num_layers
    summary = {"output": str(output), "layers": layers, "width": encoder[0].trunk.hidden_size}
    print(json.dumps(summary | {"units": units[0].vocab_size if units else None}))


if __name__ == "__main__":
    run(main)
