"""Exports the networks of a speech tokenizer in the formats of PyTorch.

HuBERT becomes a Hugging Face folder, the quantizer a file of the release or of centroids, and the
vocoder a folder of the release. `spirit-jax convert hubert` and `spirit-jax convert hifigan` read
them.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from spirit_jax import checkpoint, config, files, model_folder
from spirit_jax.audio import SAMPLE_RATE
from spirit_jax.errors import InputError
from spirit_jax.models import hifigan, hubert
from spirit_jax.models.speech_configs import TrunkConfig
from spirit_jax.models.vocoder_configs import HifiGanConfig

from . import table, trunk
from .hifigan import BLOCK_PARTS, EMBEDDINGS
from .table import Rule
from .torch_files import import_torch

HF_NORM_EPS = 1e-5  # of the norms after convs, which transformers does not configure


def export_speech(tokenizer: str | Path, output: str | Path) -> dict[str, str]:
    """Writes the folders `hubert` and `hifigan` and the quantizer.

    Args:
      tokenizer: a model folder, a speech tokenizer, or the name of a packaged model.
      output: the folder to write.

    Returns:
      For each network that the formats cannot express, and that is left out, the reason.

    Raises:
      InputError: transformers has no HuBERT like this one, or `output` exists.
    """
    source = model_folder.find_speech_tokenizer(tokenizer)
    about = config.read(model_folder.SpeechTokenizerConfig, source / model_folder.CONFIG_NAME)
    folders = {name: model_folder.find_network(source, name) for name in about.hashes}
    left_out = dict.fromkeys(folders, "there is no such format")
    with files.whole_folder(output) as folder:
        model, params = hubert.load(folders["hubert"], folders["quantizer"])
        export_hubert(model.config, params["hubert"], folder / "hubert", str(folders["hubert"]))
        left_out |= {
            "hubert": "",
            "quantizer": export_quantizer(model.quantizer, params["quantizer"], folder),
        }
        if "hifigan" in folders:
            vocoder, params = hifigan.load(folders["hifigan"])
            left_out["hifigan"] = export_hifigan(vocoder.config, params, folder / "hifigan")
    return {name: reason for name, reason in left_out.items() if reason}


def export_hubert(
    cfg: hubert.HubertConfig, params: Mapping[str, Any], output: Path, where: str
) -> None:
    """Writes a HubertModel folder: `config.json`, `preprocessor_config.json` and the weights.

    Args:
      cfg: of the encoder.
      params: its parameters.
      output: the folder to write.
      where: the network's folder, for messages.

    Raises:
      InputError: transformers has no such network.
    """
    t = cfg.trunk
    limits = {
        "adapter_size": (t.adapter_size, 0),
        "feature_projection": (t.feature_projection, True),
        "conv_norm_eps": (t.conv_norm_eps, HF_NORM_EPS),
        "input_norm_eps": (t.input_norm_eps or trunk.HF_INPUT_NORM_EPS, trunk.HF_INPUT_NORM_EPS),
    }
    for name, (value, expected) in limits.items():
        if value != expected:
            raise InputError(
                f"{where}: {name} is {value}; a HubertModel of transformers has {expected}."
            )
    flat = checkpoint.flatten(params)
    tensors = dict(_turn(flat, _hubert_rules(t), where))
    if not t.final_norm:  # it comes after the last layer, so hidden_states are without it
        tensors["encoder.layer_norm.weight"] = np.ones(t.hidden_size, np.float32)
        tensors["encoder.layer_norm.bias"] = np.zeros(t.hidden_size, np.float32)
    conv = "encoder.pos_conv_embed.conv."
    names = (f"{conv}parametrizations.weight.original{i}" for i in range(2))
    tensors |= zip(names, _unfold(tensors.pop(conv + "weight"), dim=2), strict=True)
    output.mkdir()
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    config.write(_hubert_config(t), output / "config.json")
    settings = {
        "feature_extractor_type": trunk.FEATURE_EXTRACTOR,
        "do_normalize": t.input_norm_eps is not None,
        "sampling_rate": cfg.sample_rate,
        "feature_size": 1,
        "padding_value": 0.0,
        "return_attention_mask": t.conv_norm == "layer",
    }
    config.write(settings, output / "preprocessor_config.json")


def _hubert_config(t: TrunkConfig) -> dict[str, Any]:
    names = {name: hf_name for hf_name, name in trunk.ACTIVATIONS.items()}  # the last name of each
    names |= {"gelu": "gelu", "silu": "silu"}
    channels, kernels, strides = zip(*t.conv_layers, strict=True)
    return {
        "architectures": ["HubertModel"],
        "model_type": "hubert",
        "conv_dim": list(channels),
        "conv_kernel": list(kernels),
        "conv_stride": list(strides),
        "num_feat_extract_layers": len(channels),
        "feat_extract_norm": t.conv_norm,
        "conv_bias": t.conv_bias,
        "feat_extract_activation": names[t.conv_activation],
        "feat_proj_layer_norm": t.feature_norm,
        "num_conv_pos_embeddings": t.conv_pos,
        "num_conv_pos_embedding_groups": t.conv_pos_groups,
        "conv_pos_batch_norm": False,
        "hidden_size": t.hidden_size,
        "num_hidden_layers": t.num_layers,
        "num_attention_heads": t.num_heads,
        "intermediate_size": t.ffn_size,
        "hidden_act": names[t.activation],
        "do_stable_layer_norm": t.norm_first,
        "layer_norm_eps": t.norm_eps,
        "mask_time_prob": 0.0,
        "mask_feature_prob": 0.0,
        "torch_dtype": "float32",
    }


def _hubert_rules(t: TrunkConfig) -> list[Rule]:
    """Rules from this package's names of a trunk to transformers', the inverse of `hf_rules`."""
    conv, layer = r"feature_extractor.conv_layers.\1.", r"encoder.layers.\1."
    return [
        *_norm(r"conv/(\d+)/norm", conv + "layer_norm"),
        *_linear(r"conv/(\d+)", conv + "conv"),
        *_norm("feature_norm", "feature_projection.layer_norm"),
        *_linear("feature_projection", "feature_projection.projection"),
        *_linear("pos_conv", "encoder.pos_conv_embed.conv"),
        *_norm("norm", "encoder.layer_norm"),
        *_linear(r"layers/(\d+)/attention/(q|k|v|out)", layer + r"attention.\2_proj"),
        *_norm(r"layers/(\d+)/attention_norm", layer + "layer_norm"),
        *_linear(r"layers/(\d+)/fc1", layer + "feed_forward.intermediate_dense"),
        *_linear(r"layers/(\d+)/fc2", layer + "feed_forward.output_dense"),
        *_norm(r"layers/(\d+)/ffn_norm", layer + "final_layer_norm"),
    ]


def export_quantizer(cfg: hubert.QuantizerConfig, params: Mapping[str, Any], output: Path) -> str:
    """Writes `centroids.npy` of a k-means, or `quantizer.pt` of an MLP.

    Args:
      cfg: of the quantizer.
      params: its parameters.
      output: an existing folder.

    Returns:
      "", or the reason why it cannot be written in the release's form.
    """
    if cfg.kind == "kmeans":
        np.save(output / "centroids.npy", params["centroids"])
        return ""

    # The release's config has one number for the widths of both hidden layers.
    first, second = (cfg.dim - size for size in (*cfg.hidden_sizes, 0, 0)[:2])
    middle = next((m for m in (2 * second, 2 * second + 1) if m // 4 == first), None)
    if middle is None or len(cfg.hidden_sizes) != 2:
        return f"the release has no hidden layers of {cfg.hidden_sizes} channels"
    torch = import_torch(f"{output}/quantizer.pt: is written")
    rules = [rule for i in range(3) for rule in _linear(f"linear{i}", str(2 * i))]
    state = {
        name: torch.from_numpy(array)
        for name, array in _turn(checkpoint.flatten(params), rules, "quantizer")
    }
    upstream = middle + cfg.vocab_size + 1
    sizes = {"vocab_size": cfg.vocab_size, "dim": cfg.dim, "upstream_dim": upstream}
    _save({"model_cfg": sizes, "model_weight": state}, output / "quantizer.pt")
    return ""


def export_hifigan(cfg: HifiGanConfig, params: Mapping[str, Any], output: Path) -> str:
    """Writes a vocoder folder of the release: `config.json`, `generator.pt` and names.

    Args:
      cfg: of the vocoder.
      params: its parameters.
      output: the folder to write.

    Returns:
      "", or the reason why it cannot be written in the release's form.
    """
    for name in ("source_harmonics", "frame_blocks"):
        if getattr(cfg, name):
            return f"its {name} is {getattr(cfg, name)}, and the release's vocoders have none"
    torch = import_torch(f"{output}/generator.pt: is written")
    state: dict[str, np.ndarray] = {}
    for name, array in _turn(checkpoint.flatten(params), _hifigan_rules(cfg), "hifigan"):
        if re.match(r"(?:conv_pre|conv_post|ups|resblocks)\b.*\.weight", name):
            g, v = _unfold(array, dim=0)
            state |= {f"{name}_g": g, f"{name}_v": v}
        else:
            state[name] = array
    output.mkdir()
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    _save({"generator": tensors}, output / "generator.pt")
    config.write(_hifigan_config(cfg), output / "config.json")
    for name, lines in (("speakers", cfg.speakers), ("styles", cfg.styles)):
        if lines:
            (output / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ""


def _save(values: Mapping[str, Any], path: Path) -> None:
    """Writes a file of `torch.save`, whose own writer does not say that a disk is full."""
    import torch

    data = io.BytesIO()
    torch.save(values, data)
    path.write_bytes(data.getbuffer())


def _hifigan_config(cfg: HifiGanConfig) -> dict[str, Any]:
    duration = {
        "encoder_embed_dim": cfg.embedding_dim,
        "var_pred_hidden_dim": cfg.duration_hidden,
        "var_pred_kernel_size": cfg.duration_kernel,
        "var_pred_dropout": 0.5,
    }
    values = {
        "resblock": "1",
        "num_embeddings": cfg.num_codes,
        "embedding_dim": cfg.embedding_dim,
        "model_in_dim": cfg.embedding_dim * len(cfg.channels),
        "upsample_rates": list(cfg.upsample_rates),
        "upsample_kernel_sizes": list(cfg.upsample_kernels),
        "upsample_initial_channel": cfg.initial_channels,
        "resblock_kernel_sizes": list(cfg.resblock_kernels),
        "resblock_dilation_sizes": [list(row) for row in cfg.resblock_dilations],
        "num_f0_tokens": cfg.num_pitch,
        "num_style_tokens": cfg.num_style,
        "multispkr": "_" if cfg.num_speakers else None,
        "num_speakers": cfg.num_speakers or None,
        "multistyle": "_" if cfg.num_style_ids else None,
        "num_styles": cfg.num_style_ids or None,
        "dur_predictor_params": duration if cfg.duration_hidden else None,
        "sampling_rate": SAMPLE_RATE,
        "code_hop_size": cfg.code_hop,
        "f0_hop_size": cfg.pitch_hop,
        "style_hop_size": cfg.style_hop,
        # Not in the release's files, which have no such choice.
        "default_speaker": cfg.default_speaker,
        "default_style": cfg.default_style,
        "common_style": cfg.common_style,
    }
    return {name: value for name, value in values.items() if value is not None}


def _hifigan_rules(cfg: HifiGanConfig) -> list[Rule]:
    """Rules from this package's names to the release's, the inverse of `hifigan.rules`."""
    rules = [
        Rule(f"embed_{name}/embedding", f"{release_name}.weight")
        for release_name, name in EMBEDDINGS.items()
    ]
    for i in range(2):
        rules += _linear(f"duration/conv{i}", f"dur_predictor.conv{i + 1}.0")
        rules += _norm(f"duration/norm{i}", f"dur_predictor.ln{i + 1}")
    rules += _linear("duration/out", "dur_predictor.proj")
    rules += _linear("generator/(conv_pre|conv_post)", r"\1")
    rules.append(
        Rule(r"generator/up(\d+)/kernel", r"ups.\1.weight", lambda a: a.transpose(1, 2, 0))
    )
    rules.append(Rule(r"generator/up(\d+)/bias", r"ups.\1.bias"))
    blocks = len(cfg.resblock_kernels)
    for j in range(blocks * len(cfg.upsample_rates)):
        block = f"generator/res{j // blocks}_{j % blocks}/"
        for name, release_name in BLOCK_PARTS.items():
            rules += _linear(rf"{block}{name}(\d+)", rf"resblocks.{j}.{release_name}.\1")
    return rules


def _turn(
    flat: Mapping[str, np.ndarray], rules: Sequence[Rule], where: str
) -> Iterator[tuple[str, np.ndarray]]:
    """The float32 tensors of parameters, by their other names."""
    for path, array in flat.items():
        rule, match = table.find_rule(path, rules, where)
        turned = rule.turn(np.asarray(array, np.float32))
        yield match.expand(rule.target), np.ascontiguousarray(turned)


def _unfold(weight: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The two tensors of weight normalisation, the inverse of `table.fold_weight_norm`.

    A part of norm 0 has the direction 1, since 0 has none.
    """
    norm = table.norm_over(weight, dim)
    return norm, np.where(norm == 0, np.float32(1), weight)


def _linear(source: str, target: str) -> list[Rule]:
    return [
        Rule(source + "/kernel", target + ".weight", table.transpose),
        Rule(source + "/bias", target + ".bias"),
    ]


def _norm(source: str, target: str) -> list[Rule]:
    return [Rule(source + "/scale", target + ".weight"), Rule(source + "/bias", target + ".bias")]
