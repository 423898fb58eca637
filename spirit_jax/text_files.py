"""The files of a text tokenizer: pieces of text, and the tokens that are added behind them.

`tokenizer.model` (SentencePiece) holds pieces alone; a Hugging Face folder lists tokens that were
added later, and how text is split at them, in `tokenizer_config.json`. `tokenizer.json` holds both.
A model folder's added tokens of text come before its markers and units.
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
SPACE = "\u2581"  # as SentencePiece writes a space
Entry = Mapping[str, Any]  # of an added token: its content and FLAGS


class PieceText:
    """Text to ids of SentencePiece and of tokens added behind its pieces, as transformers does it.

    `legacy` and `add_prefix_space` are the settings of `LlamaTokenizer`: a piece of text between
    added tokens begins with a space of its own (legacy), or only the first of the whole string
    does, if it has none; or none does (no `add_prefix_space`). Added tokens that are special, such
    as those of chats, are text here, as BOS is: text must not be able to spell them.
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
        # Of several that fit, the longest is taken.
        order = sorted(plain, key=lambda i: -len(plain[i]["content"]))
        self._pattern = re.compile("|".join(f"(?P<t{i}>{_pattern(plain[i])})" for i in order))
        self._splits = bool(order)

    @property
    def size(self) -> int:
        """Pieces and added tokens."""
        return self._first_added + len(self._added)

    def encode(self, text: str, first: bool = True) -> list[int]:
        """The ids of a text; `first` if it begins the whole string."""
        ids, place = [], 0
        for match in self._pattern.finditer(text) if self._splits else ():
            ids += self._encode_run(text[place : match.start()], first and not place)
            ids.append(int(match.lastgroup[1:]))
            place = match.end()
        return ids + self._encode_run(text[place:], first and not place)

    def decode(self, ids: Sequence[int], first: bool = True) -> str:
        """The text of ids; special tokens are left out."""
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
        return self._bare.encode(text)

    def _decode_run(self, ids: list[int], first: bool) -> str:
        if self._legacy and self._prefix:
            return self._processor.decode(ids)
        text = self._bare.decode(ids)
        return text.removeprefix(" ") if first and self._prefix else text

    @functools.cached_property
    def _bare(self) -> sentencepiece.SentencePieceProcessor:
        """SentencePiece that adds no space before a text."""
        model = self._processor.serialized_model_proto()
        bare = sentencepiece.SentencePieceProcessor(model_proto=model)
        bare.override_normalizer_spec(add_dummy_prefix=False)
        return bare


def load_piece_text(
    folder: str | Path, processor: sentencepiece.SentencePieceProcessor, text_size: int
) -> PieceText:
    """The text pieces of a folder with `tokenizer.model`, and its added tokens below `text_size`.

    Raises:
      InputError: `tokenizer_config.json` cannot be read.
    """
    path = Path(folder) / SETTINGS
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
    """What a folder's `tokenizer_config.json` holds; empty where there is none."""
    path = Path(folder) / SETTINGS
    return config.read_mapping(path) if path.is_file() else {}


def read_flag(settings: Mapping[str, Any], name: str, path: Path) -> bool:
    """A setting that is true where it is not given."""
    value = settings.get(name)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{path}: {name} is {str(value)[:40]}; expected true or false.")
    return value is not False


def read_added(settings: Mapping[str, Any], path: Path) -> dict[int, Entry]:
    """The tokens of `added_tokens_decoder` by their ids, in order."""
    listed = settings.get("added_tokens_decoder") or {}
    try:
        added = {int(token): dict(entry) for token, entry in listed.items()}
        if all(isinstance(entry["content"], str) and entry["content"] for entry in added.values()):
            return dict(sorted(added.items()))
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise InputError(f"{path}: added_tokens_decoder is no mapping of ids to tokens.")


def make_entry(content: str, special: bool = False) -> dict[str, Any]:
    """An added token as `tokenizer_config.json` lists it."""
    return {"content": content} | dict.fromkeys(FLAGS, False) | {"special": special}


def write_tokenizer(
    source: str | Path, target: str | Path, vocab: Vocab, settings: Mapping[str, Any] | None = None
) -> None:
    """Writes a tokenizer's files with the markers and units of `vocab` after its text.

    Args:
      source: a folder with `tokenizer.model` or `tokenizer.json`; what it lists from
        `vocab.text_size` on is replaced.
      target: the folder to write to.
      vocab: of the new tokenizer, with the text of the old one.
      settings: for `tokenizer_config.json`; those of `source` if not given.
    """
    source, target = Path(source), Path(target)
    settings = dict(read_settings(source) if settings is None else settings)
    strings = vocab.token_strings()
    listed = {vocab.text_size + i: make_entry(string) for i, string in enumerate(strings)}
    target.mkdir(parents=True, exist_ok=True)
    if (source / "tokenizer.model").is_file():
        (target / "tokenizer.model").write_bytes(files.read_bytes(source / "tokenizer.model"))
        if _are_pieces(source / "tokenizer.model", vocab):
            listed = {}
        added = read_added(settings, source / SETTINGS)
        listed = {i: entry for i, entry in added.items() if i < vocab.text_size} | listed
        if listed:
            settings["added_tokens_decoder"] = {str(i): entry for i, entry in listed.items()}
        settings["legacy"] = read_flag(settings, "legacy", source / SETTINGS)
        settings.setdefault("tokenizer_class", "LlamaTokenizer")
        settings.setdefault("add_bos_token", True)
    else:
        path = source / "tokenizer.json"
        content = config.read_mapping(path)
        try:
            kept = [entry for entry in content["added_tokens"] if entry["id"] < vocab.text_size]
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: its added_tokens cannot be read.") from error
        added = read_added(settings, source / SETTINGS)
        listed = {i: entry for i, entry in added.items() if i < vocab.text_size} | listed
        if "added_tokens_decoder" in settings:
            settings["added_tokens_decoder"] = {str(i): entry for i, entry in listed.items()}
        known = {entry["id"] for entry in kept}
        flags = dict.fromkeys(FLAGS, False)
        kept += [{"id": i} | flags | dict(entry) for i, entry in listed.items() if i not in known]
        content["added_tokens"] = sorted(kept, key=lambda entry: entry["id"])
        content |= {"truncation": None, "padding": None}
        text = json.dumps(content, ensure_ascii=False, indent=2)
        (target / "tokenizer.json").write_text(text, encoding="utf-8")
        settings.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    settings.pop("auto_map", None)  # names code that is not copied
    files.write_json(target / SETTINGS, settings)


def _are_pieces(path: Path, vocab: Vocab) -> bool:
    """Whether the markers and units are pieces of a `tokenizer.model`."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    if processor.piece_to_id("[Text]") != vocab.text_marker:
        return False
    for i, string in enumerate(vocab.token_strings(), vocab.text_size):
        if i >= processor.get_piece_size() or processor.id_to_piece(i) != string:
            raise InputError(
                f"{path}: its units are pieces of it, which cannot be changed; {string} would "
                f"have to be {i}."
            )
    return True


def _pattern(entry: Entry) -> str:
    """What an added token matches: as transformers, it may take the spaces beside it."""
    pattern = re.escape(entry["content"])
    if entry.get("single_word"):
        pattern = rf"(?<!\w){pattern}(?!\w)"
    before, after = (r"\s*" if entry.get(name) else "" for name in ("lstrip", "rstrip"))
    return before + pattern + after
