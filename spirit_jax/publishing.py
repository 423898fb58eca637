"""Uploads model folders to the Hugging Face hub, each with a model card."""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spirit_jax import checkpoint, config, files, hub, model_copy, model_folder, network_folder
from spirit_jax.errors import InputError
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.vocab import Vocab

CARD = "README.md"


@dataclasses.dataclass(frozen=True)
class CardInfo:
    """What a model card says beside what the model folder tells.

    Attributes:
      license: the identifier of the licence on the hub, such as "apache-2.0"; "" for none.
      datasets: names of data sets on the hub.
      data: a description of the training data, in Markdown.
      figures: scores by name for each task, as `spirit-jax eval` writes them to figures.json.
    """

    license: str = ""
    datasets: tuple[str, ...] = ()
    data: str = ""
    figures: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)


def push(
    model: str | Path,
    repository: str,
    info: CardInfo,
    revision: str | None = None,
    private: bool = False,
) -> str:
    """Uploads a model folder in one commit, with its arrays as safetensors.

    The folder and the card are checked before anything is sent.

    Args:
      model: a model folder, or the name of a packaged model.
      repository: such as "org/name"; it is created if it does not exist.
      info: for the card.
      revision: a branch, which is created if it does not exist; None for the main branch.
      private: whether a new repository is private.

    Returns:
      The address of the commit.

    Raises:
      InputError: the folder is not whole, the name or the card is refused, or the upload
        fails.
    """
    name = hub.parse_name(repository)
    if name is None or name[1] is not None:
        raise InputError(f"{repository}: expected a name such as org/name; a branch is --revision.")
    folder = model_folder.find_language_model(model)
    _check(folder)
    with tempfile.TemporaryDirectory() as scratch:
        if _is_publishable(folder) and not files.is_bucket(folder):
            ready = folder
        else:
            ready = Path(scratch) / "model"
            model_copy.copy_model(folder, ready, "safetensors")
        card = write_card(ready, repository, info)
        return hub.upload(repository, ready, {CARD: card}, revision, private)


def _check(folder: Path) -> None:
    """Raises `InputError` if a model folder lacks something, or an array of it is damaged."""
    if missing := hub.find_missing(folder):
        raise InputError(f"{folder}: is not whole; it lacks {missing[0]}.")
    for path in _networks(folder):
        for name, leaf in checkpoint.flatten(checkpoint.read_shapes(path)).items():
            checkpoint.load_params(path, checkpoint.unflatten({name: leaf}))


def _networks(folder: Path) -> list[Path]:
    return [
        path.parent
        for path in folder.rglob("config.json")
        if network_folder.has_arrays(path.parent)
    ]


def _is_publishable(folder: Path) -> bool:
    """Whether a folder can be uploaded as it is: its own networks only, all as safetensors."""
    path = folder / model_folder.SPEECH_TOKENIZER / model_folder.CONFIG_NAME
    shared = path.is_file() and config.read(model_folder.SpeechTokenizerConfig, path).shared
    forms = {network_folder.find_arrays(path)[0] for path in _networks(folder)}
    return not shared and forms == {"safetensors"}


def write_card(folder: Path, repository: str, info: CardInfo) -> str:
    """The model card of a folder: a header for the hub, and Markdown.

    Raises:
      InputError: a field of the header has no such value.
    """
    from huggingface_hub import ModelCardData

    fields: dict[str, Any] = {
        "library_name": "spirit_jax",
        "tags": ["spirit-lm", "jax", "flax", "speech", "text-to-speech", "speech-recognition"],
        "license": info.license or None,
        "datasets": list(info.datasets) or None,
    }
    try:
        header = ModelCardData(**{k: v for k, v in fields.items() if v is not None}).to_yaml()
    except (TypeError, ValueError) as error:
        raise InputError(f"The model card is refused ({files.describe(error)}).") from error
    title = repository.partition("/")[2]
    parts = [
        f"---\n{header}\n---",
        f"# {title}",
        _describe(folder),
        "## How to load it",
        f"""```bash
pip install spirit-jax
spirit-jax generate {repository} --help
```

```python
from spirit_jax import SpiritLM

lm = SpiritLM.from_pretrained("{repository}")
```""",
    ]
    if info.data or info.datasets:
        names = "".join(f"\n* [{d}](https://huggingface.co/datasets/{d})" for d in info.datasets)
        parts += ["## Training data", "\n".join(filter(None, (info.data, names.strip())))]
    if info.figures:
        parts += ["## Figures", "By `spirit-jax eval`.", _figure_table(info.figures)]
    parts += ["## Licence", info.license or "No licence is stated: ask the authors before use."]
    return "\n\n".join(parts) + "\n"


def _describe(folder: Path) -> str:
    """What the model is, by its configs."""
    vocab = config.read(Vocab, folder / "vocab.json")
    lines = ["A Spirit LM: a language model of text and speech, as one sequence of tokens."]
    if (folder / "llama" / "config.json").is_file():
        cfg = config.read(LlamaConfig, folder / "llama" / "config.json")
        shapes = checkpoint.flatten(checkpoint.read_shapes(folder / "llama")).values()
        count = sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in shapes)
        kinds = " and ".join(sorted({str(leaf.dtype) for leaf in shapes}))
        lines.append(
            f"* Language model: {count / 1e6:,.1f} million parameters ({kinds}), {cfg.num_layers} "
            f"layers of width {cfg.hidden_size}, at most {cfg.max_positions} positions."
        )
    lines.append(
        f"* Tokens: {vocab.text_size} of text, {vocab.hubert_units} phonetic, {vocab.pitch_units} "
        f"pitch and {vocab.style_units} style units."
    )
    path = folder / model_folder.SPEECH_TOKENIZER / model_folder.CONFIG_NAME
    if path.is_file():
        tokenizer_config = config.read(model_folder.SpeechTokenizerConfig, path)
        networks = ", ".join(tokenizer_config.hashes)
        lines.append(f"* Speech tokenizer: {tokenizer_config.kind}, with {networks}.")
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def _figure_table(figures: Mapping[str, Mapping[str, float]]) -> str:
    rows = ["| task | items | figures |", "|---|---|---|"]
    for name, scores in figures.items():
        if not isinstance(scores, Mapping):
            raise InputError(f"The figures of '{name}' are not scores by name.")
        values = ", ".join(f"{key} {value:.1f}" for key, value in scores.items() if key != "items")
        rows.append(f"| {name} | {scores.get('items', '')} | {values} |")
    return "\n".join(rows)
