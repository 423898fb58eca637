"""Export the language model of a model folder as a Hugging Face folder, or its speech networks.

spirit-jax convert export --model MODEL_DIR --output HF_DIR
spirit-jax convert export --model MODEL_DIR --speech --output DIR

HuBERT becomes a Hugging Face folder, and the vocoder a folder of the PyTorch release; see
docs/convert.md.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from safetensors.numpy import save_file

from spirit_jax import checkpoint, config, files, model_folder, text_files
from spirit_jax.cli.running import Output, run
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.text import load_text_tokenizer
from spirit_jax.vocab import Vocab

from . import table
from .export_speech import export_speech
from .llama import export_rules
from .llama_config import write_config

SHARD_BYTES = 2 << 30


def export_llama(
    network: str | Path, output: str | Path, bos: int | None, eos: int | list[int]
) -> None:
    """Writes a network folder as `config.json` and (sharded) safetensors, a shard at a time.

    Args:
      network: the network folder of the language model.
      output: the Hugging Face folder to write.
      bos: id of BOS; None if the model has none.
      eos: id or ids of EOS.

    Raises:
      InputError: `output` exists, or the network folder is incomplete.
    """
    network = files.as_path(network)
    cfg = config.read(LlamaConfig, network / "config.json")
    cfg.check_float(network)
    stored = checkpoint.flatten(checkpoint.read_shapes(network))
    steps = [_step(path, cfg, str(network)) for path in stored]
    shards = _split(steps, {path: _bytes(leaf) for path, leaf in stored.items()})
    with files.whole_folder(output) as folder:
        weight_map: dict[str, str] = {}
        for i, shard in enumerate(shards, start=1):
            name = f"model-{i:05}-of-{len(shards):05}.safetensors"
            name = "model.safetensors" if len(shards) == 1 else name
            tree = checkpoint.unflatten({s.source: stored[s.source] for s in shard})
            host = checkpoint.flatten(checkpoint.load_params(network, tree))
            tensors = {s.target: np.ascontiguousarray(s.turn(host[s.source])) for s in shard}
            save_file(tensors, folder / name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, name)
        if len(shards) > 1:
            total = sum(_bytes(leaf) for leaf in stored.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            config.write(index, folder / "model.safetensors.index.json")
        dtype = str(stored["embed/embedding"].dtype)
        config.write(write_config(cfg, eos, bos, dtype), folder / "config.json")


def _step(path: str, cfg: LlamaConfig, where: str) -> table.Step:
    rule, match = table.find_rule(path, export_rules(cfg), where)
    return table.Step(path, match.expand(rule.target), rule.turn)


def _split(steps: list[table.Step], sizes: dict[str, int]) -> list[list[table.Step]]:
    shards: list[list[table.Step]] = [[]]
    for step in steps:
        if shards[-1] and sum(sizes[s.source] for s in [*shards[-1], step]) > SHARD_BYTES:
            shards.append([])
        shards[-1].append(step)
    return shards


def _bytes(leaf) -> int:
    return int(np.prod(leaf.shape)) * leaf.dtype.itemsize


def export_model(model: str | Path, output: str | Path) -> None:
    """Exports the language model and the text tokenizer of a model folder.

    Args:
      model: the model folder, or the name of a packaged model.
      output: the Hugging Face folder to write.

    Raises:
      InputError: `output` exists, or the model folder is incomplete.
    """
    model = model_folder.find_language_model(model)
    vocab = config.read(Vocab, model / "vocab.json")
    load_text_tokenizer(model / "text_tokenizer", vocab)  # raises if it is damaged
    with files.whole_folder(output) as folder:
        export_llama(model / "llama", folder / "llama", vocab.bos, list(vocab.eos))
        for file in (folder / "llama").iterdir():
            file.rename(folder / file.name)
        (folder / "llama").rmdir()
        text_files.write_tokenizer(model / "text_tokenizer", folder, vocab)


def main(
    model: Annotated[Path, typer.Option(help="Model folder, or a packaged model's name")],
    output: Output,
    speech: Annotated[
        bool, typer.Option("--speech", help="The speech networks, not the language model")
    ] = False,
) -> None:
    """Runs the command that the module's docstring describes."""
    left_out = export_speech(model, output) if speech else {}
    if not speech:
        export_model(model, output)
    print(f"wrote {output}")
    for name, reason in left_out.items():
        print(f"left out the network {name}: {reason}")


if __name__ == "__main__":
    run(main)
