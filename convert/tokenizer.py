"""Converts the text tokenizers of Hugging Face Llama folders."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from spirit_jax import config, files, model_folder, text_files
from spirit_jax.errors import InputError
from spirit_jax.text import load_sentencepiece, load_tokenizers
from spirit_jax.vocab import Vocab

from .main import reading_config
from .table import show

# Settings that name a special token, in the order in which transformers 5 adds new ones.
NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
LISTS = ("extra_special_tokens", "additional_special_tokens")  # the second before transformers 5
NO_CLASS = (None, "PreTrainedTokenizerFast", "TokenizersBackend")


def convert_tokenizer(folder: str | Path, kind: str, output: str | Path, add: bool) -> Vocab:
    """Writes `vocab.json` and `text_tokenizer/` of a model folder.

    Added tokens of the text keep their ids; markers and units have ids after them.

    Args:
      folder: a Hugging Face Llama folder with `tokenizer.model` or `tokenizer.json`.
      kind: "base" or "expressive".
      output: the model folder.
      add: whether to add speech tokens. Otherwise the tokenizer must have them, as pieces of
        `tokenizer.model` or as added tokens.

    Returns:
      The id layout.

    Raises:
      InputError: there is no tokenizer, its ids have gaps, or its speech tokens are missing (with
        `add`: present), out of order or of another kind.
    """
    folder, target = Path(folder), Path(output) / "text_tokenizer"
    hf = config.read_mapping(folder / "config.json")
    rows = hf.get("vocab_size")
    if type(rows) is not int:
        raise InputError(
            f"{folder / 'config.json'}: vocab_size is {show(rows)}; expected a number."
        )
    source = read_source(folder)
    if add:
        if "[Text]" in source.ids:
            raise InputError(f"{folder}: has speech tokens already; convert it as it is.")
        with reading_config(folder / "config.json"):
            vocab = Vocab.make(kind, source.size, *_bos_eos(folder, source, hf))
            vocab = dataclasses.replace(vocab, padded_size=max(vocab.padded_size, rows))
        taken = next((name for name in vocab.token_strings() if name in source.ids), None)
        if taken:
            raise InputError(f"{folder}: its tokenizer has the speech token {taken} as text.")
    else:
        vocab = _read_layout(folder, source, kind, hf, rows)
    text_files.write_tokenizer(folder, target, vocab, source.settings)
    if not (folder / "tokenizer.model").is_file():
        _check_json(folder, target / "tokenizer.json", vocab)
    config.write(vocab, Path(output) / "vocab.json")
    model_folder.list_texts(output)
    return vocab


def find_kind(folder: str | Path) -> str | None:
    """The kind of a Spirit LM: "expressive" if its tokenizer has pitch tokens, else "base".

    None for a model without speech tokens.
    """
    ids = read_source(Path(folder)).ids
    if "[Text]" not in ids:
        return None
    return "expressive" if "[Pi0]" in ids else "base"


@dataclasses.dataclass(frozen=True)
class Source:
    """The tokens of a folder.

    Attributes:
      ids: of all pieces and added tokens, by string.
      size: number of ids, which have no gaps.
      settings: for `tokenizer_config.json`, with all added tokens.
    """

    ids: Mapping[str, int]
    size: int
    settings: dict[str, Any]


def read_source(folder: Path) -> Source:
    """The tokens of a folder with `tokenizer.model` or `tokenizer.json`.

    Raises:
      InputError: there is no tokenizer, it is damaged, or its ids have gaps.
    """
    files.require_folder(folder)
    settings = text_files.read_settings(folder)
    path = folder / text_files.SETTINGS
    if (folder / "tokenizer.model").is_file():
        processor = load_sentencepiece(folder / "tokenizer.model")
        pieces = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
        _check_same_pieces(folder, pieces)
        if settings.get("tokenizer_class") in NO_CLASS:
            settings["tokenizer_class"] = "LlamaTokenizer"
    elif (folder / "tokenizer.json").is_file():
        tokenizer = load_tokenizers(folder / "tokenizer.json")
        pieces = tokenizer.get_vocab(with_added_tokens=True)
        _check_listed_ids(folder / "tokenizer.json", tokenizer)
    else:
        raise InputError(f"{folder}: has no tokenizer.model or tokenizer.json.")
    entries = _read_entries(folder, settings, path)
    ids = dict(pieces)
    for token, entry in entries.items():
        content = entry["content"]
        if ids.get(content, token) != token or (content not in ids and token < len(pieces)):
            raise InputError(
                f"{folder}: the added token {show(content)} has the id {token}, which is not free."
            )
        ids[content] = token
    size = len(ids)
    if max(ids.values(), default=-1) + 1 != size:
        wrong = next(token for token in range(size) if token not in set(ids.values()))
        raise InputError(f"{folder}: the ids of its tokenizer have a gap; no token has {wrong}.")
    if "[Text]" not in ids:  # otherwise new tokens would come after the units
        for content in _named_tokens(folder, settings):
            if content not in ids:  # transformers adds it when it reads the folder
                ids[content] = len(ids)
                entries[ids[content]] = text_files.make_entry(content, special=True)
    for name, value in settings.items():  # transformers expects names here
        if name.endswith("_token") and isinstance(value, Mapping):
            settings[name] = value.get("content")
    listed = {str(token): entry for token, entry in sorted(entries.items())}
    if listed or "added_tokens_decoder" in settings:
        settings["added_tokens_decoder"] = listed
    return Source(ids, len(ids), settings)


def _check_listed_ids(path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    """Checks the ids: the library renumbers added tokens that are duplicates, or also pieces."""
    for entry in config.read_mapping(path).get("added_tokens") or ():
        token = tokenizer.token_to_id(entry["content"])
        if token != entry["id"]:
            raise InputError(
                f"{path}: lists the added token {show(entry['content'])} with the id "
                f"{entry['id']}, and its id is {token}."
            )


def _check_same_pieces(folder: Path, pieces: Mapping[str, int]) -> None:
    """Raises `InputError` if `tokenizer.json`, which transformers prefers, has other pieces."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    json_pieces = load_tokenizers(path).get_vocab(with_added_tokens=True)
    if any(json_pieces.get(piece) != token for piece, token in pieces.items()):
        raise InputError(
            f"{folder}: tokenizer.model and tokenizer.json have different pieces; remove the one "
            "that is out of date."
        )


def _read_entries(folder: Path, settings: dict[str, Any], path: Path) -> dict[int, dict[str, Any]]:
    """The added tokens of a folder, from the files that transformers 5 reads."""
    if "added_tokens_decoder" in settings:
        return {i: dict(entry) for i, entry in text_files.read_added(settings, path).items()}
    special = folder / "special_tokens_map.json"
    if special.is_file():
        for name, value in config.read_mapping(special).items():
            settings.setdefault(name, value)
    listed: dict[str, Any] = {}
    if (folder / "added_tokens.json").is_file():
        names = set(_named_tokens(folder, settings))
        for content, token in config.read_mapping(folder / "added_tokens.json").items():
            entry = text_files.make_entry(content, content in names)
            listed[str(token)] = entry | {"normalized": content not in names}
    if (folder / "tokenizer.json").is_file() and (folder / "tokenizer.model").is_file():
        for entry in config.read_mapping(folder / "tokenizer.json").get("added_tokens") or ():
            if isinstance(entry, Mapping) and "id" in entry:
                listed[str(entry["id"])] = {k: v for k, v in entry.items() if k != "id"}
    return {
        i: dict(entry)
        for i, entry in text_files.read_added({"added_tokens_decoder": listed}, path).items()
    }


def _named_tokens(folder: Path, settings: Mapping[str, Any]) -> list[str]:
    """The special tokens in the settings, in the order in which transformers adds them."""
    values = [settings.get(name) for name in NAMED]
    extra = next((settings[name] for name in LISTS if settings.get(name)), [])
    if not isinstance(extra, list | Mapping):
        raise InputError(
            f"{folder / text_files.SETTINGS}: its special tokens are {show(extra)}, not a list."
        )
    values += extra.values() if isinstance(extra, Mapping) else extra
    # add_bos_token and add_eos_token are switches.
    others = [k for k in settings if k.endswith("_token") and not k.startswith("add_")]
    values += [settings[k] for k in others if k not in NAMED]
    names = []
    for value in values:
        value = value.get("content") if isinstance(value, Mapping) else value
        if value is not None and not isinstance(value, str):
            raise InputError(
                f"{folder / text_files.SETTINGS}: {show(value)} is named as a special token; "
                "expected a text."
            )
        if value:
            names.append(value)
    return list(dict.fromkeys(names))


def _read_layout(
    folder: Path, source: Source, kind: str, hf: Mapping[str, Any], rows: int
) -> Vocab:
    """The id layout of a folder that has speech tokens."""
    ids = source.ids
    if "[Text]" not in ids:
        raise InputError(f"{folder}: its tokenizer has no token [Text]; is this a Spirit LM?")
    if kind == "base" and "[Pi0]" in ids:
        raise InputError(f"{folder}: has pitch tokens, but a model of kind {kind} has none.")
    units = tuple(_count_units(ids, name) or 1 for name in ("Hu", "Pi", "St"))
    vocab = Vocab.make(kind, ids["[Text]"], *_bos_eos(folder, source, hf), rows, units)
    for token, string in enumerate(vocab.token_strings(), start=vocab.text_size):
        if ids.get(string) != token:
            raise InputError(
                f"{folder}: the token {string} has the id {ids.get(string)}; expected {token} for "
                f"a model of kind {kind}."
            )
    if source.size > vocab.size:
        after = next(name for name, token in ids.items() if token == vocab.size)
        raise InputError(f"{folder}: has the token {show(after)} after its units.")
    return vocab


def _count_units(ids: Mapping[str, int], name: str) -> int:
    count = 0
    while f"[{name}{count}]" in ids:
        count += 1
    return count


def _bos_eos(
    folder: Path, source: Source, hf: Mapping[str, Any]
) -> tuple[int | None, tuple[int, ...]]:
    """BOS and EOS ids; `generation_config.json` lists several EOS if the model has them.

    Without a BOS in the config, it is the one that the tokenizer puts before a text, if any.
    """
    generation = {}
    if (folder / "generation_config.json").is_file():
        generation = config.read_mapping(folder / "generation_config.json")
    values = {**hf, **{k: v for k, v in generation.items() if v is not None}}
    bos, eos = values.get("bos_token_id"), values.get("eos_token_id")
    ends = tuple(eos) if isinstance(eos, list) else (eos,)
    if bos is None:
        bos = find_bos(folder, source)
    if not ends or not all(type(token) is int for token in (0 if bos is None else bos, *ends)):
        raise InputError(
            f"{folder / 'config.json'}: has no number for bos_token_id ({show(bos)}) or "
            f"eos_token_id ({show(eos)})."
        )
    return bos, ends


def _check_json(folder: Path, path: Path, vocab: Vocab) -> None:
    tokenizer: tokenizers.Tokenizer = load_tokenizers(path)
    strings = vocab.token_strings()
    wrong = [s for i, s in enumerate(strings, vocab.text_size) if tokenizer.token_to_id(s) != i]
    if wrong:
        raise InputError(f"{folder}: the ids of its tokenizer.json have gaps before {wrong[0]}.")


def find_bos(folder: Path, source: Source) -> int | None:
    """The id that a tokenizer puts before a text, as transformers 5 reads it; None for none.

    Raises:
      InputError: it puts several ids there.
    """
    if not (folder / "tokenizer.json").is_file():  # otherwise add_bos_token has no effect
        adds = source.settings.get("add_bos_token", True)
        return source.ids.get(source.settings.get("bos_token", "<s>")) if adds else None
    tokenizer = load_tokenizers(folder / "tokenizer.json")
    text, whole = (tokenizer.encode("x", add_special_tokens=add).ids for add in (False, True))
    start = next(i for i in range(len(whole) + 1) if whole[i : i + len(text)] == text)
    if start > 1:
        raise InputError(
            f"{folder}: its tokenizer puts {start} tokens before a text; expected one."
        )
    return whole[0] if start else None
