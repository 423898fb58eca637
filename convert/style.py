"""Convert the style encoder, a Wav2Vec2ForSequenceClassification of Hugging Face.

spirit-jax convert style --checkpoint HF_DIR --output DIR
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spirit_jax import checkpoint, config, files
from spirit_jax.cli.running import Output, run
from spirit_jax.errors import InputError
from spirit_jax.models.style import StyleConfig, StyleEncoder
from spirit_jax.models.wav2vec2 import abstract_params

from . import table
from .main import Checkpoint
from .table import Rule
from .trunk import hf_rules, linear_rules, read_hf_tensors, read_hf_trunk, require_settings


def convert_style(folder: str | Path, output: str | Path) -> StyleConfig:
    """Writes the network folder of a style encoder, and returns its config.

    Raises:
      InputError: the folder is incomplete or has another network, or `output` exists.
    """
    path = Path(folder) / "config.json"
    hf = config.read_mapping(path)
    require_settings(path, hf, use_weighted_layer_sum=False)
    values = {
        "trunk": read_hf_trunk(folder, hf, ("wav2vec2",), normalize=True),
        "projection_size": hf.get("classifier_proj_size", 256),  # transformers' default
        "num_styles": _count_labels(path, hf),
    }
    cfg = config.from_dict(StyleConfig, values, source=str(path))
    rules = [
        *hf_rules(cfg.trunk, cfg.trunk.num_layers, r"wav2vec2\.", "trunk/"),
        *linear_rules("(projector|classifier)", r"\1"),
        Rule("_float_tensor", None),
    ]
    tensors = read_hf_tensors(folder, rules, cfg.trunk.num_layers)
    params = table.convert(tensors, rules, abstract_params(StyleEncoder(cfg)), str(folder))
    with files.whole_folder(output) as unfinished:
        checkpoint.save_network(unfinished, cfg, params)
    return cfg


def _count_labels(path: Path, hf: Mapping[str, Any]) -> Any:
    labels = hf.get("id2label")
    if hf.get("num_labels") is not None:
        return hf["num_labels"]
    if not isinstance(labels, Mapping) or not labels:
        raise InputError(f"{path}: needs num_labels or id2label.")
    return len(labels)


def main(checkpoint: Checkpoint, output: Output) -> None:
    """Runs the command that the module's docstring describes."""
    convert_style(checkpoint, output)
    print(f"wrote {output}")


if __name__ == "__main__":
    run(main)
