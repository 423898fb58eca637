"""Convert the F0 estimator FCPE, from the weights in the PyPI package torchfcpe (MIT).

spirit-jax convert fcpe --weights fcpe_c_v001.pt --output DIR
spirit-jax convert fcpe --weights fcpe_c_v001.pt --model MODEL_DIR

The second form adds FCPE to a model folder that was converted without it. To get the weights, run
`pip download --no-deps torchfcpe==0.0.4`; the wheel is a zip file with the weights in
torchfcpe/assets.
"""

import importlib.util
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from spirit_jax import checkpoint, config, files, model_folder
from spirit_jax.cli.running import run
from spirit_jax.errors import InputError
from spirit_jax.files import lock
from spirit_jax.models.fcpe import Fcpe, FcpeConfig
from spirit_jax.models.wav2vec2 import abstract_params

from . import table, torch_files
from .main import reading_config, require_one
from .table import Rule
from .trunk import linear_rules, norm_rules, require_settings

ASSET = "assets/fcpe_c_v001.pt"


def find_weights(path: str | Path | None = None) -> Path | None:
    """The weight file: `path`, else $SPIRIT_FCPE_PT, else that of an installed torchfcpe.

    None if there is none. The package is not imported.
    """
    path = path or os.environ.get("SPIRIT_FCPE_PT")
    if path:
        return Path(path)
    package = importlib.util.find_spec("torchfcpe")
    if package is None or package.origin is None:
        return None
    asset = Path(package.origin).parent / ASSET
    return asset if asset.is_file() else None


def convert_fcpe(path: str | Path, output: str | Path) -> FcpeConfig:
    """Writes the network folder of FCPE, and returns its config.

    Raises:
      InputError: the file is not a supported FCPE checkpoint, or `output` exists.
    """
    state = torch_files.load_parts(path, "model", "config_dict")
    cfg = read_config(path, state["config_dict"])
    needed = table.select(state["model"], RULES)
    table.check_count(needed, _LAYER, cfg.num_layers, str(path), "layers")
    folded = table.fold_weight_norm(torch_files.as_float32(needed, path), 0, str(path))
    params = table.convert(folded, RULES, abstract_params(Fcpe(cfg)), str(path))
    with files.whole_folder(output) as folder:
        checkpoint.save_network(folder, cfg, params)
    return cfg


def read_config(path: str | Path, values: Mapping[str, Any]) -> FcpeConfig:
    """Converts the file's `config_dict`."""
    with reading_config(path):
        torch_files.check_plain(dict(values), path)
        mel, model = values["mel"], values["model"]
        require_settings(path, model, type="CFNaiveMelPE", conv_only=True, use_harmonic_emb=False)
        require_settings(path, mel, win_size=mel["n_fft"], type="default")
        return FcpeConfig(
            sample_rate=mel["sr"],
            window=mel["n_fft"],
            hop=mel["hop_size"],
            num_mels=mel["num_mels"],
            fmin=float(mel["fmin"]),
            fmax=float(mel["fmax"]),
            hidden_size=model["hidden_dims"],
            num_layers=model["n_layers"],
            num_bins=model["out_dims"],
        )


_LAYER = r"net\.encoder_layers\.(\d+)\."
RULES = [
    *linear_rules(r"input_stack\.0", "conv0"),
    *norm_rules(r"input_stack\.1", "group_norm"),
    *linear_rules(r"input_stack\.3", "conv1"),
    *norm_rules(_LAYER + r"conformer\.net\.0", r"layers_\1/norm"),
    Rule(_LAYER + r"conformer\.net\.2\.weight", r"layers_\1/widen/kernel", lambda x: x[..., 0].T),
    Rule(_LAYER + r"conformer\.net\.2\.bias", r"layers_\1/widen/bias"),
    *linear_rules(_LAYER + r"conformer\.net\.4\.conv", r"layers_\1/depthwise"),
    Rule(_LAYER + r"conformer\.net\.6\.weight", r"layers_\1/narrow/kernel", lambda x: x[..., 0].T),
    Rule(_LAYER + r"conformer\.net\.6\.bias", r"layers_\1/narrow/bias"),
    Rule(_LAYER + r"norm\..*", None),  # of attention layers, which these weights do not have
    *norm_rules("norm", "norm"),
    *linear_rules("output_proj", "out"),
    Rule("cent_table", "cents"),
    Rule("gaussian_blurred_cent_mask", None),  # used in training only
]


def add_to_model(path: str | Path, model: str | Path) -> None:
    """Adds FCPE to the speech tokenizer of a model folder, with its hash."""
    if model_folder.find_model(model) != Path(model):
        raise InputError(f"{model}: is a packaged model, which cannot be changed; copy it first.")
    folder = Path(model) / model_folder.SPEECH_TOKENIZER
    config_path = folder / model_folder.CONFIG_NAME
    if not config_path.is_file():
        raise InputError(f"{model}: has no speech tokenizer.")
    with lock.hold(folder, "fcpe.lock", model, "model"):
        cfg = config.read(model_folder.SpeechTokenizerConfig, config_path)
        if "fcpe" not in cfg.hashes:  # an earlier conversion was killed before it wrote the hash
            shutil.rmtree(folder / "fcpe", ignore_errors=True)
        convert_fcpe(path, folder / "fcpe")
        model_folder.add_hash(folder, "fcpe")


def main(
    weights: Annotated[
        Path | None, typer.Option(help="fcpe_c_v001.pt; $SPIRIT_FCPE_PT by default")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Network folder to write")] = None,
    model: Annotated[Path | None, typer.Option(help="Instead: model folder to add it to")] = None,
) -> None:
    """Runs the command that the module's docstring describes."""
    require_one("--output", "--model", given=(output, model))
    weights = find_weights(weights)
    if weights is None:
        raise InputError("Give --weights fcpe_c_v001.pt, or set SPIRIT_FCPE_PT.")
    if model:
        add_to_model(weights, model)
    else:
        convert_fcpe(weights, output)
    print(json.dumps({"output": str(output or model), "weights": str(weights)}))


if __name__ == "__main__":
    run(main)
