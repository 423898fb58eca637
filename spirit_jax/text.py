"""Text tokenizers: convert a prompt string, with its markers and units, to token ids and back.

Prompt strings are defined in `markup`; escaped text gets the same ids as with a vocabulary that has
no markers and units. There are three kinds, chosen by the files of the tokenizer folder:

* `tokenizer.model` that contains the markers and units as pieces: SentencePiece encodes the whole
  string, so there is one dummy prefix space, at the start of the string;
* `tokenizer.model` with text pieces only: the string is split at markers and units, and each text
  is encoded separately, each with its own dummy prefix (legacy Llama behaviour);
* `tokenizer.json` of Hugging Face `tokenizers`, for other Llamas: split in the same way.
"""

import functools
import io
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import sentencepiece
import tokenizers

from spirit_jax import checksums, files, markup
from spirit_jax.errors import InputError
from spirit_jax.text_files import load_piece_text
from spirit_jax.vocab import Vocab


class TextTokenizer(Protocol):
    """The interface of all text tokenizers.

    Attributes:
      word_prefix: what to put between a marker and a word so that the word is encoded as it is
        after a space: " ", or "" if the tokenizer adds a space itself.
      markup: reads and writes prompt strings.
    """

    word_prefix: str
    markup: markup.Markup

    def encode(self, string: str) -> list[int]:
        """Ids of a prompt string, BOS first if the model has one, no EOS.

        Names of special tokens, such as `<s>`, are treated as text, and so are units that the
        vocabulary does not have.

        Raises:
          InputError: not a string, or not valid Unicode (half a surrogate pair).
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The readable string of ids: markers and units as "[Hu5]", without BOS and EOS.

        Text that looks like a marker or unit is not escaped; see `decode_prompt`.

        Raises:
          InputError: an id is not a whole number, or is not in the vocabulary.
        """

    def decode_prompt(self, ids: Sequence[int]) -> str:
        """The prompt string of ids: as `decode`, but text that looks like a token is escaped."""


class PieceTokenizer:
    """SentencePiece whose pieces include the markers and units."""

    word_prefix = " "  # there is only one dummy prefix, at the start of the string

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, vocab: Vocab):
        self._processor, self._vocab, self.markup = processor, vocab, vocab.markup
        self._ids = _token_ids(vocab)
        self._strings = {token: string for string, token in self._ids.items()}

    def encode(self, string: str) -> list[int]:
        """See `TextTokenizer`."""
        parts = _split(string, self._ids, self.markup)
        texts = [part.string for part in parts if not part.is_token]
        ids = _first_ids(self._vocab)
        if not any(
            part.is_token for text in texts for part in _split(text, self._ids, self.markup)
        ):
            # No text looks like a token: encode the whole string at once, as the release does.
            names = [
                self.markup.name_of(part.string) if part.is_token else part.string for part in parts
            ]
            return [*ids, *self._processor.encode("".join(names))]
        if parts[0].is_token:
            ids += self._processor.encode(self._vocab.token_strings()[0])[:-1]  # the dummy prefix
        for number, part in enumerate(parts):
            if part.is_token:
                ids.append(self._ids[part.string])
            else:
                ids += self._text_processors[number == 0].encode(part.string)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `TextTokenizer`."""
        return _show(self._parts(ids), self.markup)

    def decode_prompt(self, ids: Sequence[int]) -> str:
        """See `TextTokenizer`."""
        return self.markup.render(self._parts(ids))

    def _parts(self, ids: Sequence[int]) -> Iterator[markup.Part]:
        is_first = True  # SentencePiece strips the dummy prefix at the start of the string only
        for token, text_ids in _runs(ids, self._vocab):
            if token is None:
                part = markup.Part(self._text_processors[is_first].decode(text_ids))
            else:
                part = markup.Part(self._strings[token], is_token=True)
            yield part
            is_first = is_first and not part.string

    @functools.cached_property
    def _text_processors(self) -> dict[bool, sentencepiece.SentencePieceProcessor]:
        """SentencePiece with text pieces only, with (True) and without (False) a dummy prefix."""
        model = _keep_pieces(self._processor.serialized_model_proto(), self._vocab.text_size)
        with_prefix, without = (
            sentencepiece.SentencePieceProcessor(model_proto=model) for _ in range(2)
        )
        without.override_normalizer_spec(add_dummy_prefix=False)
        return {True: with_prefix, False: without}


class SplitTokenizer:
    """Splits a string at markers and units, and encodes each text between them separately.

    `encode_text` and `decode_text` also get whether the text is at the start of the string.
    """

    def __init__(
        self,
        encode_text: Callable[[str, bool], list[int]],
        decode_text: Callable[[list[int], bool], str],
        vocab: Vocab,
    ):
        self._encode_text, self._decode_text, self._vocab = encode_text, decode_text, vocab
        self.markup = vocab.markup
        self._ids = _token_ids(vocab)
        self._strings = {token: string for string, token in self._ids.items()}
        word, two_words = encode_text("x", False), encode_text("x x", True)
        self.word_prefix = "" if two_words[len(two_words) - len(word) :] == word else " "

    def encode(self, string: str) -> list[int]:
        """See `TextTokenizer`."""
        ids = _first_ids(self._vocab)
        for number, part in enumerate(_split(string, self._ids, self.markup)):
            if part.is_token:
                ids.append(self._ids[part.string])
            else:
                ids += self._encode_text(part.string, number == 0)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `TextTokenizer`."""
        return _show(self._parts(ids), self.markup)

    def decode_prompt(self, ids: Sequence[int]) -> str:
        """See `TextTokenizer`."""
        return self.markup.render(self._parts(ids))

    def _parts(self, ids: Sequence[int]) -> Iterator[markup.Part]:
        for number, (token, text_ids) in enumerate(_runs(ids, self._vocab)):
            if token is None:
                yield markup.Part(self._decode_text(text_ids, number == 0))
            else:
                yield markup.Part(self._strings[token], is_token=True)


def load_text_tokenizer(folder: str | Path, vocab: Vocab) -> TextTokenizer:
    """The tokenizer of a folder that holds `tokenizer.model` or `tokenizer.json`.

    Raises:
      InputError: neither file exists, a file is damaged, or its pieces do not match `vocab`.
    """
    folder = files.as_path(folder)
    files.require_folder(folder)
    if (folder / "tokenizer.model").is_file():
        processor = load_sentencepiece(folder / "tokenizer.model")
        names = vocab.token_strings()
        if processor.piece_to_id(names[0]) == vocab.text_size:
            if processor.get_piece_size() < vocab.size:
                raise InputError(
                    f"{folder}: tokenizer.model has {processor.get_piece_size()} pieces, but the "
                    f"vocabulary has {vocab.size} tokens."
                )
            return PieceTokenizer(processor, vocab)
        pieces = load_piece_text(folder, processor, vocab.text_size)
        _check_size(folder, pieces.size, vocab)
        return SplitTokenizer(pieces.encode, pieces.decode, vocab)
    if (folder / "tokenizer.json").is_file():
        tokenizer = load_tokenizers(folder / "tokenizer.json")
        strings = vocab.token_strings()
        if any(tokenizer.token_to_id(s) != i for i, s in enumerate(strings, vocab.text_size)):
            raise InputError(
                f"{folder}: its tokenizer.json does not have the markers and units at the ids from "
                f"{vocab.text_size}."
            )
        # Text that looks like a special token gets the ids of its characters. The string is split
        # at markers and units before, so within a text they are text too.
        tokenizer.add_special_tokens(strings)
        tokenizer.encode_special_tokens = True
        return SplitTokenizer(
            lambda text, first: tokenizer.encode(text, add_special_tokens=False).ids,
            lambda ids, first: tokenizer.decode(ids, skip_special_tokens=True),
            vocab,
        )
    raise InputError(f"{folder}: holds no tokenizer.model or tokenizer.json.")


def check_unicode(string: str) -> None:
    """Raises `InputError` unless the argument is a string without half a surrogate pair."""
    if not isinstance(string, str):
        raise InputError(f"A text must be a string, not {type(string).__name__}.")
    try:
        string.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"The text {string[:40]!a} is not valid Unicode: it has half a surrogate pair at "
            f"position {error.start}."
        ) from error


def learn_text_tokenizer(folder: str | Path, lines: Iterable[str], pieces: int) -> None:
    """Trains a `tokenizer.model` like Llama's: BPE with byte fallback for unseen characters.

    All spaces are kept, including repeated, leading and trailing ones.

    Args:
      folder: the folder to write to.
      lines: the training text.
      pieces: size of the vocabulary, including the 256 bytes and <unk>, <s>, </s>.

    Raises:
      InputError: the text is too short for the number of pieces, has more different characters
        than pieces, or is not valid Unicode.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_training_lines(lines),
            model_writer=model,
            vocab_size=pieces,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=1 << 30,  # bytes; longer lines would be left out
            minloglevel=2,
        )
    except InputError:  # raised by `_training_lines`
        raise
    except (RuntimeError, TypeError, ValueError, OSError, MemoryError) as error:
        reason = files.describe(error)
        largest = re.search(r"value <= (\d+)", reason)
        smallest = re.search(r"required_chars\. \d+ vs (\d+)", reason)
        if largest:
            reason = f"the text is enough for at most {largest[1]}; give more text or fewer pieces"
        elif smallest:
            reason = f"its characters and the 256 bytes need at least {smallest[1]}"
        raise InputError(f"A tokenizer of {pieces} pieces cannot be trained ({reason}).") from error
    with files.whole_file(files.as_path(folder) / "tokenizer.model") as unfinished:
        unfinished.write_bytes(model.getvalue())


def _training_lines(lines: Iterable[str]) -> Iterator[str]:
    """Lines, split at the characters for which SentencePiece's trainer would skip a whole line."""
    for line in lines:
        check_unicode(line)
        yield from filter(None, re.split("[\\0\t\n\u2585]", line))


def load_sentencepiece(path: str | Path) -> sentencepiece.SentencePieceProcessor:
    """Loads a SentencePiece model; raises `InputError` if the file is damaged or something else."""
    checksums.check_file(path)
    try:
        with files.local_copy(path) as local:
            return sentencepiece.SentencePieceProcessor(model_file=str(local))
    except (RuntimeError, OSError, MemoryError) as error:
        raise files.unreadable(path, error, "is not a whole SentencePiece model.") from error


def load_tokenizers(path: str | Path) -> tokenizers.Tokenizer:
    """Loads a Hugging Face `tokenizers` model.

    Truncation, padding, BPE dropout and Unigram sampling, which the file may have switched on, are
    switched off.

    Raises:
      InputError: the file is damaged or something else.
    """
    checksums.check_file(path)
    try:
        with files.local_copy(path) as local:
            tokenizer = tokenizers.Tokenizer.from_file(str(local))
    except Exception as error:  # the library raises a bare Exception
        reason = "is not a valid tokenizer.json."
        raise files.unreadable(path, error, reason) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for name in ("dropout", "alpha", "nbest_size"):
        if getattr(tokenizer.model, name, None) is not None:
            setattr(tokenizer.model, name, None)
    return tokenizer


def _token_ids(vocab: Vocab) -> dict[str, int]:
    return {string: vocab.text_size + i for i, string in enumerate(vocab.prompt_tokens())}


def _first_ids(vocab: Vocab) -> list[int]:
    return [] if vocab.bos is None else [vocab.bos]


def _show(parts: Iterable[markup.Part], notation: markup.Markup) -> str:
    return "".join(notation.name_of(p.string) if p.is_token else p.string for p in parts)


def _split(string: str, ids: Mapping[str, int], notation: markup.Markup) -> list[markup.Part]:
    """The texts and tokens of a prompt string; tokens that are not in `ids` become text."""
    check_unicode(string)
    parts: list[markup.Part] = []
    for part in notation.parse(string):
        if part.is_token and part.string not in ids:
            part = markup.Part(notation.name_of(part.string))
        if parts and not part.is_token and not parts[-1].is_token:
            part = markup.Part(parts.pop().string + part.string)
        parts.append(part)
    return parts


def _runs(ids: Sequence[int], vocab: Vocab) -> Iterator[tuple[int | None, list[int]]]:
    """Splits ids into (id of a marker or unit, []) and (None, text ids between two of them).

    Ids of padding rows of the embedding are dropped.
    """
    try:
        tokens = [operator.index(token) for token in ids]
    except TypeError as error:
        raise InputError("Token ids are a list of whole numbers.") from error
    text: list[int] = []
    for token in tokens:
        if not 0 <= token < vocab.padded_size:
            raise InputError(f"Token {token} does not exist.")
        if token < vocab.text_size:
            text.append(token)
        elif token < vocab.size:
            if text:
                yield None, text
            yield token, []
            text = []
    if text:
        yield None, text


def _keep_pieces(model: bytes, count: int) -> bytes:
    """A serialized SentencePiece model with only its first `count` pieces.

    The model is a protocol buffer message in which field 1 is repeated, once for each piece
    (sentencepiece_model.proto). Its other fields are copied without decoding them.
    """
    fields, position, pieces = [], 0, 0
    while position < len(model):
        start = position
        key, position = _read_varint(model, position)
        field, wire_type = key >> 3, key & 7
        if wire_type == 0:
            _, position = _read_varint(model, position)
        elif wire_type == 2:
            length, position = _read_varint(model, position)
            position += length
        else:
            position += {1: 8, 5: 4}[wire_type]
        pieces += field == 1
        if field != 1 or pieces <= count:
            fields.append(model[start:position])
    return b"".join(fields)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """(value, end position) of a protocol buffer varint: seven bits a byte, lowest first."""
    number = shift = 0
    while True:
        number |= (data[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if not data[position - 1] & 0x80:
            return number, position


def _check_size(folder: Path, pieces: int, vocab: Vocab) -> None:
    if pieces != vocab.text_size:
        raise InputError(
            f"{folder}: has {pieces} text pieces, but the vocabulary has {vocab.text_size}."
        )
