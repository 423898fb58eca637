"""Text tokenizers: a prompt string, with its markers and units, to ids and back.

Three kinds, told apart by what the folder holds:

* `tokenizer.model` with the markers and units as pieces of it: SentencePiece does all of it, so the
  dummy prefix space stands once, at the start of the whole string;
* `tokenizer.model` of text alone: the string is split at markers and units first, and each piece
  of text is encoded by itself, with a dummy prefix of its own (legacy Llama behaviour);
* `tokenizer.json`, Hugging Face `tokenizers`, for other Llamas: split in the same way.
"""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import sentencepiece
import tokenizers

from spirit_jax.errors import InputError
from spirit_jax.vocab import Vocab


class TextTokenizer(Protocol):
    """What every kind can do.

    Attributes:
      word_prefix: what must stand between a marker and a word for the word's usual first piece:
        a space, or nothing where the tokenizer puts one there by itself.
    """

    word_prefix: str

    def encode(self, string: str) -> list[int]:
        """Ids of a prompt string, BOS first, no EOS.

        Names of special tokens, such as `<s>`, are text.

        Raises:
          InputError: the string is no Unicode text (it holds half a surrogate pair).
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The string of ids; markers and units verbatim, BOS and EOS left out."""


class PieceTokenizer:
    """SentencePiece with the markers and units among its pieces."""

    word_prefix = " "  # the dummy prefix stands once, before the whole string

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, vocab: Vocab):
        self._processor, self._vocab = processor, vocab

    def encode(self, string: str) -> list[int]:
        """See `TextTokenizer`."""
        _check_unicode(string)
        return [self._vocab.bos, *self._processor.encode(string)]

    def decode(self, ids: Sequence[int]) -> str:
        """See `TextTokenizer`."""
        return self._processor.decode([i for i in ids if i < self._vocab.size])


class SplitTokenizer:
    """Markers and units are split off; a text tokenizer does the rest, a piece at a time."""

    def __init__(
        self,
        encode_text: Callable[[str], list[int]],
        decode_text: Callable[[list[int]], str],
        vocab: Vocab,
    ):
        self._encode_text, self._decode_text, self._vocab = encode_text, decode_text, vocab
        strings = vocab.token_strings()
        self._ids = {string: vocab.text_size + i for i, string in enumerate(strings)}
        self._strings = {token: string for string, token in self._ids.items()}
        first, second = encode_text("x"), encode_text("x x")
        self.word_prefix = "" if second[len(second) - len(first) :] == first else " "

    def encode(self, string: str) -> list[int]:
        """See `TextTokenizer`."""
        _check_unicode(string)
        ids, text = [self._vocab.bos], ""
        for part in re.split(r"(\[(?:Text|Speech|(?:Hu|Pi|St)\d+)\])", string):
            if part not in self._ids:  # text, or a unit that this model does not have
                text += part
                continue
            ids += self._encode_text(text) if text else []
            ids.append(self._ids[part])
            text = ""
        return ids + (self._encode_text(text) if text else [])

    def decode(self, ids: Sequence[int]) -> str:
        """See `TextTokenizer`."""
        parts, text = [], []
        for token in [*ids, None]:
            if token is not None and token < self._vocab.text_size:
                text.append(token)
                continue
            parts.append(self._decode_text(text) if text else "")
            parts.append(self._strings.get(token, ""))
            text = []
        return "".join(parts)


def load_text_tokenizer(folder: str | Path, vocab: Vocab) -> TextTokenizer:
    """The tokenizer of a folder that holds `tokenizer.model` or `tokenizer.json`.

    Raises:
      InputError: neither is there, one is damaged, or its pieces are not those of `vocab`.
    """
    folder = Path(folder)
    if (folder / "tokenizer.model").is_file():
        processor = load_sentencepiece(folder / "tokenizer.model")
        if processor.piece_to_id("[Text]") == vocab.text_marker:
            if processor.get_piece_size() < vocab.size:
                raise InputError(
                    f"{folder}: tokenizer.model has {processor.get_piece_size()} pieces, and the "
                    f"vocabulary {vocab.size} tokens."
                )
            return PieceTokenizer(processor, vocab)
        _check_size(folder, processor.get_piece_size(), vocab)
        return SplitTokenizer(processor.encode, processor.decode, vocab)
    if (folder / "tokenizer.json").is_file():
        tokenizer = load_tokenizers(folder / "tokenizer.json")
        strings = vocab.token_strings()
        if any(tokenizer.token_to_id(s) != i for i, s in enumerate(strings, vocab.text_size)):
            raise InputError(
                f"{folder}: its tokenizer.json does not have the markers and units from id "
                f"{vocab.text_size} on."
            )
        tokenizer.encode_special_tokens = True  # else <s> in a text would be BOS
        return SplitTokenizer(
            lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
            lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
            vocab,
        )
    raise InputError(f"{folder}: holds no tokenizer.model or tokenizer.json.")


def learn_text_tokenizer(folder: str | Path, lines: Iterable[str], pieces: int) -> None:
    """Writes a `tokenizer.model` as Llama's are: BPE, with bytes for characters it has not seen.

    Args:
      folder: to write to.
      lines: of text to learn from.
      pieces: of the vocabulary, the 256 bytes and <unk>, <s>, </s> among them.

    Raises:
      InputError: the text does not suffice for so many pieces, or has more characters than that.
    """
    learnt = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=learnt,
            vocab_size=pieces,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            max_sentence_length=1 << 30,  # bytes; longer lines would be left out
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError(f"A tokenizer of {pieces} pieces cannot be learnt ({error}).") from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(learnt.getvalue())


def load_sentencepiece(path: str | Path) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece model; raises `InputError` for a file that is none."""
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise InputError(f"{path}: is not a whole SentencePiece model.") from error


def load_tokenizers(path: str | Path) -> tokenizers.Tokenizer:
    """A Hugging Face `tokenizers` model; raises `InputError` for a file that is none."""
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise InputError(f"{path}: is not a tokenizer.json that can be read.") from error


def _check_unicode(string: str) -> None:
    try:
        string.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"The text {string[:40]!a} is not valid Unicode: it has half a character at "
            f"{error.start}."
        ) from error


def _check_size(folder: Path, pieces: int, vocab: Vocab) -> None:
    if pieces != vocab.text_size:
        raise InputError(
            f"{folder}: has {pieces} text pieces, and the vocabulary {vocab.text_size}."
        )
