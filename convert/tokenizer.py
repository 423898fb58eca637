"""Text tokenizers of Hugging Face Llama folders: the id layout, and what a model folder keeps."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from spirit_jax import checkpoint, config
from spirit_jax.errors import InputError
from spirit_jax.text import load_sentencepiece, load_tokenizers
from spirit_jax.vocab import Vocab


def convert_tokenizer(folder: str | Path, kind: str, output: str | Path, add: bool) -> Vocab:
    """Writes `vocab.json` and `text_tokenizer/` of a model folder.

    Args:
      folder: a Hugging Face Llama folder with `tokenizer.model` or `tokenizer.json`.
      kind: "base" or "expressive".
      output: the model folder.
      add: the speech tokens are not there yet and come after the text pieces; otherwise they are
        there, as pieces of `tokenizer.model` or as added tokens, and their ids are read.

    Raises:
      InputError: no tokenizer, or speech tokens that are absent (present, with `add`), out of
        order, or not of this kind.
    """
    folder, target = Path(folder), Path(output) / "text_tokenizer"
    hf = config.read_mapping(folder / "config.json")
    rows = hf.get("vocab_size")
    if not isinstance(rows, int):
        raise InputError(f"{folder / 'config.json'}: vocab_size is {rows}; expected a number.")
    known = _known_tokens(folder)
    if add:
        if "[Text]" in known:
            raise InputError(f"{folder}: has speech tokens already; convert it as it is.")
        vocab = Vocab.make(kind, _text_size(folder), *_bos_eos(folder, hf))
        vocab = dataclasses.replace(vocab, padded_size=max(vocab.padded_size, rows))
    else:
        if "[Text]" not in known:
            raise InputError(f"{folder}: its tokenizer has no token [Text]; is this a Spirit LM?")
        vocab = Vocab.make(kind, known["[Text]"], *_bos_eos(folder, hf), rows)
        for place, string in enumerate(vocab.token_strings(), start=vocab.text_size):
            if known.get(string) != place:
                raise InputError(
                    f"{folder}: the token {string} has the id {known.get(string)}, and {place} was "
                    f"expected for a model of kind {kind}."
                )
        if not vocab.pitch_units and "[Pi0]" in known:
            raise InputError(f"{folder}: has pitch tokens, which a model of kind {kind} has not.")
    _write_files(folder, target, vocab)
    config.write(vocab, Path(output) / "vocab.json")
    checkpoint.list_texts(output)
    return vocab


def find_kind(folder: str | Path) -> str:
    """The kind of a Spirit LM: "expressive" if its tokenizer has pitch tokens, else "base"."""
    return "expressive" if "[Pi0]" in _known_tokens(Path(folder)) else "base"


def _known_tokens(folder: Path) -> dict[str, int]:
    """Ids of the markers and units, wherever the folder lists them."""
    known: dict[str, int] = {}
    if (folder / "tokenizer.model").is_file():
        processor = load_sentencepiece(folder / "tokenizer.model")
        known |= {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    elif (folder / "tokenizer.json").is_file():
        known |= load_tokenizers(folder / "tokenizer.json").get_vocab(with_added_tokens=True)
    else:
        raise InputError(f"{folder}: holds no tokenizer.model or tokenizer.json.")
    if (folder / "tokenizer_config.json").is_file():
        added = config.read_mapping(folder / "tokenizer_config.json").get(
            "added_tokens_decoder", {}
        )
        try:
            known |= {entry["content"]: int(token) for token, entry in added.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{folder / 'tokenizer_config.json'}: added_tokens_decoder cannot be read."
            ) from error
    if (folder / "added_tokens.json").is_file():
        known |= config.read_mapping(folder / "added_tokens.json")
    return known


def _text_size(folder: Path) -> int:
    if (folder / "tokenizer.model").is_file():
        return load_sentencepiece(folder / "tokenizer.model").get_piece_size()
    return load_tokenizers(folder / "tokenizer.json").get_vocab_size(with_added_tokens=True)


def _bos_eos(folder: Path, hf: dict[str, Any]) -> tuple[int, tuple[int, ...]]:
    """BOS and EOS; `generation_config.json` lists every EOS of a model that has several."""
    generation = {}
    if (folder / "generation_config.json").is_file():
        generation = config.read_mapping(folder / "generation_config.json")
    values = {**hf, **{k: v for k, v in generation.items() if v is not None}}
    bos, eos = values.get("bos_token_id"), values.get("eos_token_id")
    ends = tuple(eos) if isinstance(eos, list) else (eos,)
    if not all(isinstance(token, int) for token in (bos, *ends)):
        raise InputError(
            f"{folder / 'config.json'}: has no number for bos_token_id ({bos}) or eos_token_id "
            f"({eos})."
        )
    return bos, ends


def _write_files(folder: Path, target: Path, vocab: Vocab) -> None:
    """Copies the tokenizer, with the markers and units listed so that transformers knows them."""
    target.mkdir(parents=True, exist_ok=True)
    strings = vocab.token_strings()
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if (folder / "tokenizer.model").is_file():
        settings = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True}
    if (folder / "tokenizer_config.json").is_file():
        settings = config.read_mapping(folder / "tokenizer_config.json")
    if (folder / "tokenizer.model").is_file():
        shutil.copyfile(folder / "tokenizer.model", target / "tokenizer.model")
        if load_sentencepiece(folder / "tokenizer.model").get_piece_size() == vocab.text_size:
            added = settings.setdefault("added_tokens_decoder", {})
            added |= {str(vocab.text_size + i): _added(s) for i, s in enumerate(strings)}
    else:
        tokenizer = load_tokenizers(folder / "tokenizer.json")
        tokenizer.add_tokens(strings)
        wrong = [s for i, s in enumerate(strings, vocab.text_size) if tokenizer.token_to_id(s) != i]
        if wrong:
            raise InputError(
                f"{folder}: the ids of its tokenizer.json have gaps before {wrong[0]}."
            )
        tokenizer.save(str(target / "tokenizer.json"))
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def _added(string: str) -> dict[str, Any]:
    flags = ("lstrip", "normalized", "rstrip", "single_word", "special")
    return {"content": string} | dict.fromkeys(flags, False)
