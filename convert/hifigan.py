"""Converts a unit HiFi-GAN of the release (config.json, generator.pt, speakers.txt, styles.txt).

spirit-jax convert hifigan --checkpoint FOLDER --output DIR
"""

from pathlib import Path

import numpy as np

from spirit_jax import checkpoint, config, files
from spirit_jax.cli.running import Output, run
from spirit_jax.errors import InputError
from spirit_jax.models.hifigan import HifiGan, HifiGanConfig, abstract_params

from . import table, torch_files
from .main import Checkpoint, reading_config
from .table import Rule, show
from .trunk import linear_rules, norm_rules, refuse

DEFAULT_SPEAKER, DEFAULT_STYLE = 2, 8  # of the release
NUM_SPEAKERS, NUM_STYLES = 200, 100  # of the release, if its config has no number


def convert_hifigan(folder: str | Path, output: str | Path) -> HifiGanConfig:
    """Writes the network folder of a vocoder, and returns its config.

    Raises:
      InputError: the folder is incomplete or has another network, or `output` exists.
    """
    folder = Path(folder)
    cfg = read_config(folder)
    path = folder / "generator.pt"
    state = torch_files.load_parts(path, "generator")["generator"]
    stages, blocks = len(cfg.upsample_rates), len(cfg.resblock_kernels)
    table.check_count(state, r"ups\.(\d+)\.", stages, str(path), "upsampling layers")
    table.check_count(state, r"resblocks\.(\d+)\.", stages * blocks, str(path), "blocks")
    folded = table.fold_weight_norm(torch_files.as_float32(state, path), 0, str(path))
    params = table.convert(folded, rules(cfg), abstract_params(HifiGan(cfg)), str(folder))
    with files.whole_folder(output) as unfinished:
        checkpoint.save_network(unfinished, cfg, params)
    return cfg


def read_config(folder: Path) -> HifiGanConfig:
    """Converts the config of a release folder."""
    path = folder / "config.json"
    h = config.read_mapping(path)
    # Older vocoders take F0 or bins of it as input; they are not supported.
    refuse(path, h, f0=None, f0_quant_num_bin=0, embedder_params=None, resblock="1")
    with reading_config(path):
        duration = h.get("dur_predictor_params") or {}
        num_speakers = (h.get("num_speakers") or NUM_SPEAKERS) if h.get("multispkr") else 0
        num_style_ids = (h.get("num_styles") or NUM_STYLES) if h.get("multistyle") else 0
        cfg = HifiGanConfig(
            num_codes=h["num_embeddings"],
            num_pitch=h.get("num_f0_tokens") or 0,
            num_style=h.get("num_style_tokens") or 0,
            num_speakers=num_speakers,
            num_style_ids=num_style_ids,
            speakers=_read_names(folder / "speakers.txt", num_speakers),
            styles=_read_names(folder / "styles.txt", num_style_ids),
            default_speaker=min(DEFAULT_SPEAKER, max(num_speakers - 1, 0)),
            default_style=min(DEFAULT_STYLE, max(num_style_ids - 1, 0)),
            embedding_dim=h["embedding_dim"],
            upsample_rates=tuple(h["upsample_rates"]),
            upsample_kernels=tuple(h["upsample_kernel_sizes"]),
            initial_channels=h["upsample_initial_channel"],
            resblock_kernels=tuple(h["resblock_kernel_sizes"]),
            resblock_dilations=tuple(tuple(row) for row in h["resblock_dilation_sizes"]),
            duration_hidden=duration.get("var_pred_hidden_dim", 0),
            duration_kernel=duration.get("var_pred_kernel_size", 3),
            code_hop=h["code_hop_size"],
            pitch_hop=h.get("f0_hop_size") or HifiGanConfig.pitch_hop,
            style_hop=h.get("style_hop_size") or HifiGanConfig.style_hop,
        )
    width = cfg.embedding_dim * len(cfg.channels)
    if h.get("model_in_dim", width) != width:
        raise InputError(
            f"{path}: model_in_dim is {show(h['model_in_dim'])}, but {len(cfg.channels)} channels "
            f"({', '.join(cfg.channels)}) of {cfg.embedding_dim} give {width}."
        )
    return cfg


def rules(cfg: HifiGanConfig) -> list[Rule]:
    """Rules from the release's names to this package's."""
    names = {"dict": "code", "f0_dict": "pitch", "style_dict": "style"}
    names |= {"spkr": "speaker", "style": "style_id"}
    table_rules = [
        Rule(rf"{source}\.weight", f"embed_{target}/embedding") for source, target in names.items()
    ]
    for i in range(2):
        table_rules += linear_rules(rf"dur_predictor\.conv{i + 1}\.0", f"duration/conv{i}")
        table_rules += norm_rules(rf"dur_predictor\.ln{i + 1}", f"duration/norm{i}")
    table_rules += linear_rules(r"dur_predictor\.proj", "duration/out")
    table_rules += linear_rules(r"(conv_pre|conv_post)", r"generator/\1")
    table_rules.append(Rule(r"ups\.(\d+)\.weight", r"generator/up\1/kernel", _transpose_conv))
    table_rules.append(Rule(r"ups\.(\d+)\.bias", r"generator/up\1/bias"))
    blocks = len(cfg.resblock_kernels)
    for j in range(blocks * len(cfg.upsample_rates)):
        target = f"generator/res{j // blocks}_{j % blocks}"
        table_rules += linear_rules(rf"resblocks\.{j}\.convs1\.(\d+)", target + r"/dilated\1")
        table_rules += linear_rules(rf"resblocks\.{j}\.convs2\.(\d+)", target + r"/plain\1")
    return table_rules


def _transpose_conv(array: np.ndarray) -> np.ndarray:
    """torch's ConvTranspose1d (in, out, k) to (k, in, out)."""
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def _read_names(path: Path, count: int) -> tuple[str, ...]:
    """The lines of a file, if it exists; raises `InputError` for more than `count`."""
    if not count or not path.is_file():
        return ()
    text = files.read_text(path).rstrip("\n")
    names = tuple(line.strip() for line in text.split("\n")) if text else ()
    if len(names) > count:
        raise InputError(f"{path}: has {len(names)} names, but the vocoder has {count}.")
    return names


def main(checkpoint: Checkpoint, output: Output) -> None:
    """The command; see the module."""
    convert_hifigan(checkpoint, output)
    print(f"wrote {output}")


if __name__ == "__main__":
    run(main)
