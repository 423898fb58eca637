"""Convert a Wav2Vec2ForCTC of Hugging Face, including MMS, to a CTC aligner.

spirit-jax convert ctc --hf HF_DIR --output DIR [--language eng]

MMS folders have many languages: vocab.json is nested, and adapter.LANGUAGE.safetensors has the
language adapter.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from spirit_jax import checkpoint, config, files
from spirit_jax.cli.running import Output, run
from spirit_jax.errors import InputError
from spirit_jax.models.ctc import CtcConfig, CtcModel
from spirit_jax.models.wav2vec2 import abstract_params

from . import table, weights
from .table import Rule, show
from .trunk import (
    FEATURE_DEFAULTS,
    hf_rules,
    layer_pattern,
    linear_rules,
    norm_rules,
    read_hf_tensors,
    read_hf_trunk,
    read_preprocessor,
)

TRUNK = r"wav2vec2\."
BLANKS = ("<pad>", "[PAD]", "<blank>", "<ctc_blank>")
SEPARATORS = ("|", " ", "\u2581", "<space>", "[SPACE]")


def convert_ctc(folder: str | Path, output: str | Path, language: str | None = None) -> CtcConfig:
    """Writes the network folder of an aligner.

    Args:
      folder: the Hugging Face folder.
      output: the network folder to write.
      language: of an MMS folder; by default its `target_lang`.

    Returns:
      The config of the aligner.

    Raises:
      InputError: the folder is incomplete, has another network or lacks the language, or `output`
        exists.
    """
    folder = Path(folder)
    path = folder / "config.json"
    hf = config.read_mapping(path)
    trunk = read_hf_trunk(folder, hf, ("wav2vec2",), normalize=True)
    if trunk["norm_first"]:  # other networks have no adapter, whatever the config has
        trunk["adapter_size"] = hf.get("adapter_attn_dim") or 0
    tokenizer = _read_if_there(folder / "tokenizer_config.json")
    vocab = config.read_mapping(folder / "vocab.json")
    skipped = [Rule(TRUNK + "masked_spec_embed", None)]
    tensors = read_hf_tensors(folder, skipped, trunk["num_layers"])
    if not vocab:
        raise InputError(f"{folder / 'vocab.json'}: has no labels.")
    if all(isinstance(labels, Mapping) for labels in vocab.values()):
        default = tokenizer.get("target_lang")
        selected = language or default
        vocab = _pick_language(folder, vocab, selected)
        if selected != default or _find_adapter(folder, selected):
            tensors |= _read_adapter(folder, selected)
    elif language is not None:
        raise InputError(f"{folder / 'vocab.json'}: has one language; leave out --language.")
    if "lm_head.bias" not in tensors or tensors["lm_head.bias"].ndim != 1:
        raise InputError(f"{folder}: has no vector lm_head.bias; expected a Wav2Vec2ForCTC.")
    labels = _list_labels(folder / "vocab.json", vocab, len(tensors["lm_head.bias"]))
    values = {
        "trunk": trunk,
        "labels": labels,
        "blank": find_blank(hf, tokenizer, labels),
        "separator": find_separator(tokenizer, labels),
        "sample_rate": (read_preprocessor(folder) or FEATURE_DEFAULTS)["sampling_rate"],
    }
    cfg = config.from_dict(CtcConfig, values, source=str(path))
    params = table.convert(tensors, rules(cfg), abstract_params(CtcModel(cfg)), str(folder))
    with files.whole_folder(output) as unfinished:
        checkpoint.save_network(unfinished, cfg, params)
    return cfg


def rules(cfg: CtcConfig) -> list[Rule]:
    """Rules from Hugging Face's names to this package's."""
    adapter = layer_pattern(TRUNK + "encoder") + r"adapter_layer\."
    target = r"trunk/layers/\1/adapter/"
    return [
        *hf_rules(cfg.trunk, cfg.trunk.num_layers, TRUNK, "trunk/"),
        *norm_rules(adapter + "norm", target + "norm"),
        *linear_rules(adapter + "linear_1", target + "narrow"),
        *linear_rules(adapter + "linear_2", target + "widen"),
        *linear_rules("lm_head", "head"),
    ]


def _pick_language(folder: Path, vocab: Mapping[str, Any], language: str | None) -> Mapping:
    if not isinstance(language, str) or language not in vocab:
        known = ", ".join(sorted(vocab)[:10]) + (", ..." if len(vocab) > 10 else "")
        raise InputError(
            f"{folder / 'vocab.json'}: has no language '{language}'; choose one of its "
            f"{len(vocab)} ({known}) with --language."
        )
    return vocab[language]


def _find_adapter(folder: Path, language: str) -> Path | None:
    names = (f"adapter.{language}.{suffix}" for suffix in ("safetensors", "bin"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_adapter(folder: Path, language: str) -> dict[str, np.ndarray]:
    path = _find_adapter(folder, language)
    if path is None:
        raise InputError(f"{folder}: has no adapter.{language}.safetensors.")
    tensors = weights.Tensors(dict.fromkeys(weights.tensor_names(path), path))
    return {name: np.asarray(tensors[name], np.float32) for name in tensors}


def _list_labels(path: Path, vocab: Mapping[str, Any], count: int) -> list[str]:
    """The labels by index; raises `InputError` for an invalid or duplicate index."""
    labels = [""] * count
    for label, number in vocab.items():
        if type(number) is not int or not 0 <= number < count:
            raise InputError(
                f"{path}: '{label}' is {show(number)}; the network has {count} labels."
            )
        if labels[number]:
            raise InputError(f"{path}: '{labels[number]}' and '{label}' are both label {number}.")
        labels[number] = label
    return labels


def find_blank(hf: Mapping[str, Any], tokenizer: Mapping[str, Any], labels: Sequence[str]) -> int:
    """The index of the CTC blank, which is Hugging Face's padding token; 0 by default.

    Args:
      hf: `config.json`.
      tokenizer: `tokenizer_config.json`.
      labels: of the network.
    """
    if hf.get("pad_token_id") is not None:
        return hf["pad_token_id"]  # `CtcConfig` refuses what is no label's number
    for name in (_text_of(tokenizer.get("pad_token")), *BLANKS):
        if name and name in labels:
            return labels.index(name)
    return 0


def find_separator(tokenizer: Mapping[str, Any], labels: Sequence[str]) -> str:
    """The label between words; "" if the network has none."""
    named = _text_of(tokenizer.get("word_delimiter_token", CtcConfig.separator))
    return next((name for name in (named, *SEPARATORS) if name and name in labels), "")


def _text_of(token: Any) -> str:
    """The text of a token, which is a string or an object in tokenizer_config.json."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else ""


def _read_if_there(path: Path) -> dict[str, Any]:
    return config.read_mapping(path) if path.is_file() else {}


def main(
    hf: Annotated[Path, typer.Option(help="Hugging Face folder to convert")],
    output: Output,
    language: Annotated[str | None, typer.Option(help="Of MMS, such as eng")] = None,
) -> None:
    """Runs the command that the module's docstring describes."""
    convert_ctc(hf, output, language)
    print(f"wrote {output}")


if __name__ == "__main__":
    run(main)
