"""The style encoder: from a Hugging Face folder of a Wav2Vec2ForSequenceClassification.

python -m convert.style --checkpoint HF_DIR --output DIR
"""

from pathlib import Path

from convert import table
from convert.main import convert_folder, run_main
from convert.table import Rule
from convert.trunk import hf_rules, linear_rules, read_hf_tensors, read_hf_trunk
from spirit_jax import checkpoint, config
from spirit_jax.errors import InputError
from spirit_jax.models.style import StyleConfig, StyleEncoder
from spirit_jax.models.wav2vec2 import abstract_params


def convert_style(folder: str | Path, output: str | Path) -> StyleConfig:
    """Writes the network folder of a style encoder, and gives its config.

    Raises:
      InputError: the folder is not whole or holds another network, or `output` is there already.
    """
    path = Path(folder) / "config.json"
    hf = config.read_mapping(path)
    labels = hf.get("num_labels") or len(hf.get("id2label") or ())
    if not labels or "classifier_proj_size" not in hf:
        raise InputError(f"{path}: needs classifier_proj_size, and num_labels or id2label.")
    values = {
        "trunk": read_hf_trunk(folder, hf, ("wav2vec2",), normalize=True),
        "projection_size": hf["classifier_proj_size"],
        "num_styles": labels,
    }
    cfg = config.from_dict(StyleConfig, values, source=str(path))
    rules = [
        *hf_rules(cfg.trunk, cfg.trunk.num_layers, r"wav2vec2\.", "trunk/"),
        *linear_rules("(projector|classifier)", r"\1"),
        Rule("_float_tensor", None),
    ]
    tensors = read_hf_tensors(folder)
    params = table.convert(tensors, rules, abstract_params(StyleEncoder(cfg)), str(folder))
    checkpoint.save_network(output, cfg, params)
    return cfg


def main() -> None:
    convert_folder(__doc__, convert_style)


if __name__ == "__main__":
    run_main(main)
