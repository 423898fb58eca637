"""Convert a unit HiFi-GAN of the release, or of textlesslib, whose vocoders have the same form.

spirit-jax convert hifigan --checkpoint FOLDER --output DIR
spirit-jax convert hifigan --checkpoint hifigan.pt --output DIR

A folder has `config.json` and `generator.pt`, and may have `speakers.txt` and `styles.txt`. The
config of a file `NAME.pt` is `NAME_config.json` or `config.json` beside it.
"""

import math
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from spirit_jax import checkpoint, config, files
from spirit_jax.audio import SAMPLE_RATE
from spirit_jax.cli.running import Output, run
from spirit_jax.errors import InputError
from spirit_jax.models.hifigan import HifiGan, HifiGanConfig, abstract_params

from . import table, torch_files
from .main import reading_config
from .table import Rule, show
from .trunk import linear_rules, norm_rules, require_settings

RELEASE_DEFAULTS = 2, 8  # speaker and style
# Names of the release to this package's: tables of embeddings, and convs of residual blocks.
EMBEDDINGS = {
    "dict": "code",
    "f0_dict": "pitch",
    "style_dict": "style",
    "spkr": "speaker",
    "style": "style_id",
}
BLOCK_PARTS = {"dilated": "convs1", "plain": "convs2"}
NUM_SPEAKERS, NUM_STYLES = 200, 100  # of the release, if its config has no number


def convert_hifigan(source: str | Path, output: str | Path) -> HifiGanConfig:
    """Writes the network folder of a vocoder, and returns its config.

    Args:
      source: a folder or a file; see the module.
      output: the network folder to write.

    Raises:
      InputError: a file is missing or has another network, or `output` exists.
    """
    path, config_path, defaults = _find_files(Path(source))
    cfg = read_config(config_path, defaults)
    state = torch_files.load_parts(path, "generator")["generator"]
    stages, blocks = len(cfg.upsample_rates), len(cfg.resblock_kernels)
    table.check_count(state, r"ups\.(\d+)\.", stages, str(path), "upsampling layers")
    table.check_count(state, r"resblocks\.(\d+)\.", stages * blocks, str(path), "blocks")
    folded = table.fold_weight_norm(torch_files.as_float32(state, path), 0, str(path))
    params = table.convert(folded, rules(cfg), abstract_params(HifiGan(cfg)), str(source))
    with files.whole_folder(output) as unfinished:
        checkpoint.save_network(unfinished, cfg, params)
    return cfg


def _find_files(source: Path) -> tuple[Path, Path, tuple[int, int]]:
    """The weights and the config of a vocoder, and its default speaker and style."""
    if source.is_dir() or source.suffix != ".pt":
        files.require_folder(source)
        return source / "generator.pt", source / "config.json", RELEASE_DEFAULTS
    names = (f"{source.stem}_config.json", "config.json")
    configs = [path for name in names if (path := source.parent / name).is_file()]
    if not configs:
        raise InputError(f"{source}: its config is missing; expected {' or '.join(names)} beside.")
    return source, configs[0], (0, 0)


def read_config(path: Path, defaults: tuple[int, int] = RELEASE_DEFAULTS) -> HifiGanConfig:
    """Converts the config of a vocoder.

    Args:
      path: its file; `speakers.txt` and `styles.txt` beside it are read if the vocoder has several.
      defaults: default speaker and style, of vocoders that have as many.
    """
    folder, h = path.parent, config.read_mapping(path)
    # Older vocoders take F0 or bins of it as input; they are not supported.
    for name in ("f0", "f0_quant_num_bin", "embedder_params"):
        if h.get(name):
            raise InputError(f"{path}: {name} is {show(h[name])}, which is not supported.")
    require_settings(path, h, resblock="1", sampling_rate=SAMPLE_RATE)
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
            default_speaker=h.get("default_speaker", min(defaults[0], max(num_speakers - 1, 0))),
            default_style=h.get("default_style", min(defaults[1], max(num_style_ids - 1, 0))),
            common_style=h.get("common_style", HifiGanConfig.common_style),
            embedding_dim=h["embedding_dim"],
            upsample_rates=tuple(h["upsample_rates"]),
            upsample_kernels=tuple(h["upsample_kernel_sizes"]),
            initial_channels=h["upsample_initial_channel"],
            resblock_kernels=tuple(h["resblock_kernel_sizes"]),
            resblock_dilations=tuple(tuple(row) for row in h["resblock_dilation_sizes"]),
            duration_hidden=duration.get("var_pred_hidden_dim", 0),
            duration_kernel=duration.get("var_pred_kernel_size", 3),
            code_hop=h.get("code_hop_size") or math.prod(h["upsample_rates"]),
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
    table_rules = [
        Rule(rf"{source}\.weight", f"embed_{target}/embedding")
        for source, target in EMBEDDINGS.items()
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
        for name, release_name in BLOCK_PARTS.items():
            source = rf"resblocks\.{j}\.{release_name}\.(\d+)"
            table_rules += linear_rules(source, rf"{target}/{name}\1")
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


def main(
    checkpoint: Annotated[Path, typer.Option(help="Folder or .pt file to convert")],
    output: Output,
) -> None:
    """Runs the command that the module's docstring describes."""
    convert_hifigan(checkpoint, output)
    print(f"wrote {output}")


if __name__ == "__main__":
    run(main)
