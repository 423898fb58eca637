"""The files of a text tokenizer: text pieces, and added tokens with ids after them.

`tokenizer.model` (SentencePiece) has pieces only. A Hugging Face folder lists added tokens, and how
text is split at them, in `tokenizer_config.json`; `tokenizer.json` has both. In a model folder the
ids of added text tokens are before those of the markers and units.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from spirit_jax import config, files
from spirit_jax.errors import InputError
from spirit_jax.vocab import Vocab

SETTINGS = "tokenizer_config.json"
FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")
SPACE = "\u2581"  # SentencePiece's character for a space
Entry = Mapping[str, Any]  # an added token: its content and FLAGS


class PieceText:
    """SentencePiece with added tokens, encoding text like `transformers`.

    `legacy` and `add_prefix_space` are the settings of `LlamaTokenizer`. Legacy: every text between
    added tokens gets a space before it. Not legacy: only the text at the start of the string does,
    unless it has one. Without `add_prefix_space` no text does. Special added tokens, such as those
    of chat formats, are encoded as plain text, like BOS: text must not produce them.
    """

    def __init__(
        self,
        processor: sentencepiece.SentencePieceProcessor,
        added: Mapping[int, Entry],
        legacy: bool = True,
        add_prefix_space: bool = True,
    ):
        self._processor, self._added = processor, added
        self._legacy, self._prefix = legacy, add_prefix_space
        self._first_added = processor.get_piece_size()
        plain = {i: entry for i, entry in added.items() if not entry.get("special")}
        # The longest of several matching tokens is used.
        order = sorted(plain, key=lambda i: -len(plain[i]["content"]))
        self._pattern = re.compile("|".join(f"(?P<t{i}>{_pattern(plain[i])})" for i in order))
        self._splits = bool(order)

    @property
    def size(self) -> int:
        """Number of pieces and added tokens."""
        return self._first_added + len(self._added)

    def encode(self, text: str, first: bool = True) -> list[int]:
        """The ids of a text; `first` says whether it is at the start of the string."""
        ids, end = [], 0
        for match in self._pattern.finditer(text) if self._splits else ():
            ids += self._encode_run(text[end : match.start()], first and not end)
            ids.append(int(match.lastgroup[1:]))
            end = match.end()
        return ids + self._encode_run(text[end:], first and not end)

    def decode(self, ids: Sequence[int], first: bool = True) -> str:
        """The text of ids, without special tokens; `first` as in `encode`."""
        parts, run = [], []
        for token in [*ids, None]:
            if token is not None and token < self._first_added:
                run.append(token)
                continue
            if run:
                parts.append(self._decode_run(run, first and not parts))
            entry = self._added.get(token, {})
            parts.append("" if entry.get("special") else entry.get("content", ""))
            run = []
        return "".join(parts)

    def _encode_run(self, text: str, first: bool) -> list[int]:
        if not text:
            return []
        if self._legacy and self._prefix:
            return self._processor.encode(text)
        if first and self._prefix and text[0] not in (" ", SPACE):
            text = SPACE + text
        return self._without_prefix.encode(text)

    def _decode_run(self, ids: list[int], first: bool) -> str:
        if self._legacy and self._prefix:
            return self._processor.decode(ids)
        text = self._without_prefix.decode(ids)
        return text.removeprefix(" ") if first and self._prefix else text

    @functools.cached_property
    def _without_prefix(self) -> sentencepiece.SentencePieceProcessor:
        """SentencePiece that adds no space before a text."""
        model = self._processor.serialized_model_proto()
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        processor.override_normalizer_spec(add_dummy_prefix=False)
        return processor


def load_piece_text(
    folder: str | Path, processor: sentencepiece.SentencePieceProcessor, text_size: int
) -> PieceText:
    """Loads the added tokens and settings of a folder with `tokenizer.model`.

    Args:
      folder: the tokenizer folder.
      processor: its SentencePiece model.
      text_size: number of text ids; added tokens from this id are markers and units.

    Raises:
      InputError: `tokenizer_config.json` cannot be read.
    """
    path = files.as_path(folder) / SETTINGS
    settings = read_settings(folder)
    added = {
        token: entry
        for token, entry in read_added(settings, path).items()
        if processor.get_piece_size() <= token < text_size
    }
    return PieceText(
        processor,
        added,
        legacy=read_flag(settings, "legacy", path),
        add_prefix_space=read_flag(settings, "add_prefix_space", path),
    )


def read_settings(folder: str | Path) -> dict[str, Any]:
    """The content of a folder's `tokenizer_config.json`; empty if there is none."""
    path = files.as_path(folder) / SETTINGS
    return config.read_mapping(path) if path.is_file() else {}


def read_flag(settings: Mapping[str, Any], name: str, path: Path) -> bool:
    """A boolean setting whose default is true.

    Args:
      settings: of `tokenizer_config.json`.
      name: of the setting.
      path: of the file, for messages.

    Raises:
      InputError: the value is not a boolean.
    """
    value = settings.get(name)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{path}: {name} is {str(value)[:40]}; expected true or false.")
    return value is not False


def read_added(settings: Mapping[str, Any], path: Path) -> dict[int, Entry]:
    """The tokens of `added_tokens_decoder`, sorted by id; raises `InputError` if malformed."""
    listed = settings.get("added_tokens_decoder") or {}
    try:
        added = {int(token): dict(entry) for token, entry in listed.items()}
        # int() reads "01", "1_0" and the digits of other scripts too.
        plain = all(str(int(token)) == token for token in listed)
        if plain and all(_is_entry(entry) for entry in added.values()):
            return dict(sorted(added.items()))
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise InputError(f"{path}: added_tokens_decoder is not a mapping of ids to tokens.")


def _is_entry(entry: Entry) -> bool:
    content, flags = entry["content"], (entry.get(name, False) for name in FLAGS)
    return isinstance(content, str) and content != "" and all(type(f) is bool for f in flags)


def make_entry(content: str, special: bool = False) -> dict[str, Any]:
    """An added token as `tokenizer_config.json` lists it."""
    return {"content": content} | dict.fromkeys(FLAGS, False) | {"special": special}


def write_tokenizer(
    source: str | Path, target: str | Path, vocab: Vocab, settings: Mapping[str, Any] | None = None
) -> None:
    """Writes a tokenizer's files with the markers and units of `vocab` after its text ids.

    Args:
      source: a folder with `tokenizer.model` or `tokenizer.json`; its tokens from the id
        `vocab.text_size` are replaced.
      target: the folder to write to.
      vocab: the layout of the new tokenizer, with the text ids of `source`.
      settings: for `tokenizer_config.json`; those of `source` by default.

    Raises:
      InputError: a file of `source` cannot be read, or its own markers and units are pieces with
        other ids.
    """
    source, target = files.as_path(source), files.as_path(target)
    settings = dict(read_settings(source) if settings is None else settings)
    markup_tokens = {
        i: make_entry(string) for i, string in enumerate(vocab.token_strings(), vocab.text_size)
    }
    text_tokens = {
        i: entry
        for i, entry in read_added(settings, source / SETTINGS).items()
        if i < vocab.text_size
    }
    target.mkdir(parents=True, exist_ok=True)
    if (source / "tokenizer.model").is_file():
        (target / "tokenizer.model").write_bytes(files.read_bytes(source / "tokenizer.model"))
        if _are_pieces(source / "tokenizer.model", vocab):
            markup_tokens = {}
        added = text_tokens | markup_tokens
        if added:
            settings["added_tokens_decoder"] = {str(i): entry for i, entry in added.items()}
        settings["legacy"] = read_flag(settings, "legacy", source / SETTINGS)
        read_flag(settings, "add_prefix_space", source / SETTINGS)  # else no one could load it
        settings.setdefault("tokenizer_class", "LlamaTokenizer")
        settings.setdefault("add_bos_token", True)
    else:
        added = text_tokens | markup_tokens
        if "added_tokens_decoder" in settings:
            settings["added_tokens_decoder"] = {str(i): entry for i, entry in added.items()}
        content = _replace_added(source / "tokenizer.json", added, vocab.text_size)
        text = json.dumps(content, ensure_ascii=False, indent=2)
        (target / "tokenizer.json").write_text(text, encoding="utf-8")
        settings.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    settings.pop("auto_map", None)  # refers to code that is not copied
    files.write_json(target / SETTINGS, settings)


def _replace_added(path: Path, added: Mapping[int, Entry], text_size: int) -> dict[str, Any]:
    """The content of a `tokenizer.json` whose added tokens from the id `text_size` are replaced."""
    content = config.read_mapping(path)
    try:
        entries = [entry for entry in content["added_tokens"] if entry["id"] < text_size]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: its added_tokens cannot be read.") from error
    present = {entry["id"] for entry in entries}
    flags = dict.fromkeys(FLAGS, False)
    entries += [{"id": i} | flags | dict(entry) for i, entry in added.items() if i not in present]
    content["added_tokens"] = sorted(entries, key=lambda entry: entry["id"])
    return content | {"truncation": None, "padding": None}


def _are_pieces(path: Path, vocab: Vocab) -> bool:
    """Whether the markers and units are pieces of a `tokenizer.model`."""
    with files.local_copy(path) as local:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(local))
    if processor.piece_to_id(vocab.token_strings()[0]) != vocab.text_size:
        return False
    for i, string in enumerate(vocab.token_strings(), vocab.text_size):
        if i >= processor.get_piece_size() or processor.id_to_piece(i) != string:
            raise InputError(
                f"{path}: its units are SentencePiece pieces, which cannot be changed; {string} "
                f"would need the id {i}."
            )
    return True


def _pattern(entry: Entry) -> str:
    """A regular expression for an added token; as in transformers, it may match adjacent spaces."""
    pattern = re.escape(entry["content"])
    if entry.get("single_word"):
        pattern = rf"(?<!\w){pattern}(?!\w)"
    before, after = (r"\s*" if entry.get(name) else "" for name in ("lstrip", "rstrip"))
    return before + pattern + after
