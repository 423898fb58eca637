"""Convert the pitch VQ-VAE of the release (config.yaml, model.pt).

spirit-jax convert pitch --checkpoint FOLDER --output DIR
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spirit_jax import checkpoint, config, files
from spirit_jax.cli.running import Output, run
from spirit_jax.errors import InputError
from spirit_jax.models.pitch import PitchConfig, PitchVqVae, StackConfig, abstract_params

from . import table, torch_files
from .main import Checkpoint, reading_config
from .table import Rule, show
from .trunk import linear_rules, require_settings

MAX_DOWNS = 16  # strided convolutions


def convert_pitch(folder: str | Path, output: str | Path) -> PitchConfig:
    """Writes the network folder of a pitch VQ-VAE, and returns its config.

    Raises:
      InputError: the folder is incomplete or has another network, or `output` exists.
    """
    folder = Path(folder)
    cfg = read_config(folder / "config.yaml")
    path = folder / "model.pt"
    state = table.select(torch_files.load_parts(path, "model")["model"], rules(cfg))
    strided = r"encoder\.level_blocks\.0\.model\.(\d+)\."
    table.check_count(state, strided, len(cfg.downs) + 1, str(path), "convs of its encoder")
    for part, stack in (("encoder", cfg.encoder), ("decoder", cfg.decoder)):
        blocks = rf"{part}\.level_blocks\.0\.model\.1\.\d\.model\.(\d+)\.model\."
        blocks = blocks if part == "decoder" else blocks.replace(r"model\.1\.", r"model\.0\.", 1)
        table.check_count(state, blocks, stack.depth, str(path), f"blocks of its {part}")
    arrays = torch_files.as_float32(state, path)
    params = table.convert(arrays, rules(cfg), abstract_params(PitchVqVae(cfg)), str(folder))
    with files.whole_folder(output) as unfinished:
        checkpoint.save_network(unfinished, cfg, params)
    return cfg


def read_config(path: str | Path) -> PitchConfig:
    """Converts the release's `config.yaml`."""
    values = config.read_mapping(path)
    with reading_config(path):
        encoder, decoder, vq = (values[f"{name}_params"] for name in ("encoder", "decoder", "vq"))
        for params in (encoder, decoder, vq):
            if not isinstance(params, Mapping):
                raise InputError(
                    f"{path}: encoder_params, decoder_params and vq_params must be mappings."
                )
            require_settings(path, params, levels=1, dilation_cycle=None, res_scale=False)
        for name in ("downs_t", "strides_t", "input_emb_width", "output_emb_width"):
            if encoder[name] != decoder[name]:
                raise InputError(f"{path}: {name} of the encoder and the decoder differ.")
        if encoder["input_emb_width"] != 2 or encoder["output_emb_width"] != vq["emb_width"]:
            raise InputError(
                f"{path}: expected input_emb_width 2, and output_emb_width as vq's emb_width."
            )
        return PitchConfig(
            features=values["features"],
            speaker_norm=bool(values.get("speaker_norm", False)),
            downs=read_downs(path, encoder["downs_t"][0], encoder["strides_t"][0]),
            encoder=_read_stack(encoder, reverse=False),
            decoder=_read_stack(decoder, decoder.get("reverse_decoder_dilation", False)),
            num_codes=vq["l_bins"],
            code_dim=vq["emb_width"],
        )


def read_downs(path: str | Path, count: int, strides: Any) -> tuple[tuple[int, int, int], ...]:
    """(stride, kernel, padding) of each strided convolution.

    The kernel is twice the stride, and one more for an odd stride in a list of strides.

    Args:
      path: the config file, for messages.
      count: number of convolutions.
      strides: one stride for all, or a list.

    Raises:
      InputError: the numbers are out of range or do not match.
    """
    if type(count) is not int or not 1 <= count <= MAX_DOWNS:
        raise InputError(f"{path}: downs_t is {show(count)}; expected 1 to {MAX_DOWNS}.")
    if isinstance(strides, int):
        return ((strides, 2 * strides, strides // 2),) * count
    if len(strides) != count:
        raise InputError(f"{path}: has {count} strided convs, but strides {strides}.")
    return tuple((s, 2 * s + s % 2, s // 2 + s % 2) for s in strides)


def rules(cfg: PitchConfig) -> list[Rule]:
    """Rules from the release's names to this package's."""
    n = len(cfg.downs)
    level = r"(?:encoder|decoder)\.level_blocks\.0\.model\."
    encoder, decoder = level.replace("|decoder", ""), level.replace("encoder|", "")
    table_rules = [Rule(r"vq\.level_blocks\.0\.k", "codebook")]
    table_rules += [Rule(r"vq\.level_blocks\.0\.k_(?:sum|elem)", None)]  # only for training
    table_rules += linear_rules(encoder + str(n), "encoder/out")
    table_rules += linear_rules(decoder + "0", "decoder/in")
    table_rules += linear_rules(r"decoder\.out", "decoder/out")
    for i in range(n):
        up = decoder + str(i + 1)
        table_rules += linear_rules(rf"{encoder}{i}\.0", f"encoder/down{i}")
        table_rules += _block_rules(rf"{encoder}{i}\.1", f"encoder/blocks{i}")
        table_rules += _block_rules(rf"{up}\.0", f"decoder/blocks{i}")
        table_rules.append(Rule(rf"{up}\.1\.weight", f"decoder/up{i}/kernel", _transpose_conv))
        table_rules.append(Rule(rf"{up}\.1\.bias", f"decoder/up{i}/bias"))
    return table_rules


def _block_rules(source: str, target: str) -> list[Rule]:
    block = source + r"\.model\.(\d+)\.model\."
    return [
        *linear_rules(block + "1", target + r"/\1_wide"),
        *linear_rules(block + "3", target + r"/\1_narrow"),
    ]


def _transpose_conv(array: np.ndarray) -> np.ndarray:
    """torch's ConvTranspose1d (in, out, k) to Flax's (k, in, out), with k reversed."""
    return np.ascontiguousarray(array.transpose(2, 0, 1)[::-1])


def _read_stack(values: Mapping[str, Any], reverse: bool) -> StackConfig:
    return StackConfig(
        width=values["width"],
        hidden=int(float(values.get("m_conv", 1.0)) * values["width"]),
        depth=values["depth"],
        growth=values.get("dilation_growth_rate", 1),
        reverse=bool(reverse),
    )


def main(checkpoint: Checkpoint, output: Output) -> None:
    """Runs the command that the module's docstring describes."""
    convert_pitch(checkpoint, output)
    print(f"wrote {output}")


if __name__ == "__main__":
    run(main)
