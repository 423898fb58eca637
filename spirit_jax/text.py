"""Text tokenizers: a prompt string, with its markers and units, to ids and back.

Prompt strings are those of `markup`: text that is escaped there gets the ids that it has without
any markers and units in the vocabulary. Three kinds, told apart by what the folder holds:

* `tokenizer.model` with the markers and units as pieces of it: SentencePiece does all of it, so the
  dummy prefix space stands once, at the start of the whole string;
* `tokenizer.model` of text alone: the string is split at markers and units first, and each piece
  of text is encoded by itself, with a dummy prefix of its own (legacy Llama behaviour);
* `tokenizer.json`, Hugging Face `tokenizers`, for other Llamas: split in the same way.
"""

import functools
import io
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
    """What every kind can do.

    Attributes:
      word_prefix: what must stand between a marker and a word for the word's usual first piece:
        a space, or nothing where the tokenizer puts one there by itself.
    """

    word_prefix: str

    def encode(self, string: str) -> list[int]:
        """Ids of a prompt string, BOS first, no EOS.

        Names of special tokens, such as `<s>`, are text, and so are units that the vocabulary does
        not have.

        Raises:
          InputError: no string, or no Unicode text (it holds half a surrogate pair).
        """

    def decode(self, ids: Sequence[int]) -> str:
        """What ids say, to be read: markers and units as they are written, BOS and EOS left out.

        Text that spells a marker or unit cannot be told from it here; see `decode_prompt`.

        Raises:
          InputError: a negative id.
        """

    def decode_prompt(self, ids: Sequence[int]) -> str:
        """The prompt string of ids: as `decode`, with text that looks like a token escaped."""


class PieceTokenizer:
    """SentencePiece with the markers and units among its pieces."""

    word_prefix = " "  # the dummy prefix stands once, before the whole string

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, vocab: Vocab):
        self._processor, self._vocab = processor, vocab
        self._ids = _token_ids(vocab)
        self._strings = {token: string for string, token in self._ids.items()}

    def encode(self, string: str) -> list[int]:
        """See `TextTokenizer`."""
        parts = _split(string, self._ids)
        texts = [part.string for part in parts if not part.is_token]
        if not any(part.is_token for text in texts for part in _split(text, self._ids)):
            # The whole at once, as the release does it.
            ids = self._processor.encode("".join(part.string for part in parts))
            return [self._vocab.bos, *ids]
        ids = [self._vocab.bos]
        if parts[0].is_token:
            ids += self._processor.encode("[Text]")[:-1]  # the dummy prefix alone
        for place, part in enumerate(parts):
            if part.is_token:
                ids.append(self._ids[part.string])
            else:
                ids += self._text_processors[place == 0].encode(part.string)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `TextTokenizer`."""
        return "".join(part.string for part in self._parts(ids))

    def decode_prompt(self, ids: Sequence[int]) -> str:
        """See `TextTokenizer`."""
        return markup.render(self._parts(ids))

    def _parts(self, ids: Sequence[int]) -> Iterator[markup.Part]:
        first = True  # SentencePiece strips the dummy prefix where nothing precedes it
        for token, text_ids in _runs(ids, self._vocab):
            if token is None:
                part = markup.Part(self._text_processors[first].decode(text_ids))
            else:
                part = markup.Part(self._strings[token], is_token=True)
            yield part
            first = first and not part.string

    @functools.cached_property
    def _text_processors(self) -> dict[bool, sentencepiece.SentencePieceProcessor]:
        """SentencePiece of text alone, with (True) and without (False) the dummy prefix."""
        model = _keep_pieces(self._processor.serialized_model_proto(), self._vocab.text_size)
        with_prefix, without = (
            sentencepiece.SentencePieceProcessor(model_proto=model) for _ in range(2)
        )
        without.override_normalizer_spec(add_dummy_prefix=False)
        return {True: with_prefix, False: without}


class SplitTokenizer:
    """Markers and units are split off; a text tokenizer does the rest, a piece at a time.

    It is told of every text whether the whole string begins with it.
    """

    def __init__(
        self,
        encode_text: Callable[[str, bool], list[int]],
        decode_text: Callable[[list[int], bool], str],
        vocab: Vocab,
    ):
        self._encode_text, self._decode_text, self._vocab = encode_text, decode_text, vocab
        self._ids = _token_ids(vocab)
        self._strings = {token: string for string, token in self._ids.items()}
        first, second = encode_text("x", False), encode_text("x x", True)
        self.word_prefix = "" if second[len(second) - len(first) :] == first else " "

    def encode(self, string: str) -> list[int]:
        """See `TextTokenizer`."""
        ids = [self._vocab.bos]
        for part in _split(string, self._ids):
            if part.is_token:
                ids.append(self._ids[part.string])
            else:
                ids += self._encode_text(part.string, len(ids) == 1)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `TextTokenizer`."""
        return "".join(part.string for part in self._parts(ids))

    def decode_prompt(self, ids: Sequence[int]) -> str:
        """See `TextTokenizer`."""
        return markup.render(self._parts(ids))

    def _parts(self, ids: Sequence[int]) -> Iterator[markup.Part]:
        for place, (token, text) in enumerate(_runs(ids, self._vocab)):
            if token is None:
                yield markup.Part(self._decode_text(text, place == 0))
            else:
                yield markup.Part(self._strings[token], is_token=True)


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
        pieces = load_piece_text(folder, processor, vocab.text_size)
        _check_size(folder, pieces.size, vocab)
        return SplitTokenizer(pieces.encode, pieces.decode, vocab)
    if (folder / "tokenizer.json").is_file():
        tokenizer = load_tokenizers(folder / "tokenizer.json")
        strings = vocab.token_strings()
        if any(tokenizer.token_to_id(s) != i for i, s in enumerate(strings, vocab.text_size)):
            raise InputError(
                f"{folder}: its tokenizer.json does not have the markers and units from id "
                f"{vocab.text_size} on."
            )
        # Text that spells a special token gets the ids of its characters. The markers and units
        # are split off before, so that inside a text they are text too.
        tokenizer.add_special_tokens(strings)
        tokenizer.encode_special_tokens = True
        return SplitTokenizer(
            lambda text, first: tokenizer.encode(text, add_special_tokens=False).ids,
            lambda ids, first: tokenizer.decode(ids, skip_special_tokens=True),
            vocab,
        )
    raise InputError(f"{folder}: holds no tokenizer.model or tokenizer.json.")


def check_unicode(string: str) -> None:
    """Raises `InputError` for what is no string, or one with half a surrogate pair."""
    if not isinstance(string, str):
        raise InputError(f"A text must be a string, not {type(string).__name__}.")
    try:
        string.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"The text {string[:40]!a} is not valid Unicode: it has half a character at "
            f"{error.start}."
        ) from error


def learn_text_tokenizer(folder: str | Path, lines: Iterable[str], pieces: int) -> None:
    """Writes a `tokenizer.model` as Llama's are: BPE, with bytes for characters it has not seen.

    Spaces are kept as they are: several, and those at the ends.

    Args:
      folder: to write to.
      lines: of text to learn from.
      pieces: of the vocabulary, the 256 bytes and <unk>, <s>, </s> among them.

    Raises:
      InputError: the text does not suffice for so many pieces, or has more characters than that;
        or it is no Unicode text.
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
    except InputError:  # of a line
        raise
    except (RuntimeError, TypeError, ValueError, OSError, MemoryError) as error:
        reason = files.describe(error)
        largest = re.search(r"value <= (\d+)", reason)  # the trainer names its source line too
        if largest:
            reason = f"the text suffices for at most {largest[1]}; give more text or fewer pieces"
        raise InputError(f"A tokenizer of {pieces} pieces cannot be learnt ({reason}).") from error
    with files.whole_file(Path(folder) / "tokenizer.model") as unfinished:
        unfinished.write_bytes(model.getvalue())


def _training_lines(lines: Iterable[str]) -> Iterator[str]:
    """Lines without the characters for which SentencePiece's trainer skips a line."""
    for line in lines:
        check_unicode(line)
        yield from filter(None, re.split("[\\0\t\n\u2585]", line))


def load_sentencepiece(path: str | Path) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece model; raises `InputError` for a file that is none."""
    checksums.check_file(path)
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError, MemoryError) as error:
        raise files.unreadable(path, error, "is not a whole SentencePiece model.") from error


def load_tokenizers(path: str | Path) -> tokenizers.Tokenizer:
    """A Hugging Face `tokenizers` model; raises `InputError` for a file that is none.

    What a file may keep of its last use is switched off: truncation and padding, and the random
    choices of BPE dropout and of Unigram sampling, which are for training.
    """
    checksums.check_file(path)
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        reason = "is not a tokenizer.json that can be read."
        raise files.unreadable(path, error, reason) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for name in ("dropout", "alpha", "nbest_size"):
        if getattr(tokenizer.model, name, None) is not None:
            setattr(tokenizer.model, name, None)
    return tokenizer


def _token_ids(vocab: Vocab) -> dict[str, int]:
    return {string: vocab.text_size + i for i, string in enumerate(vocab.token_strings())}


def _split(string: str, ids: Mapping[str, int]) -> list[markup.Part]:
    """The texts of a prompt string, and the tokens that a vocabulary has; others are text."""
    check_unicode(string)
    parts: list[markup.Part] = []
    for part in markup.parse(string):
        if part.is_token and part.string not in ids:
            part = markup.Part(part.string)
        if parts and not part.is_token and not parts[-1].is_token:
            part = markup.Part(parts.pop().string + part.string)
        parts.append(part)
    return parts


def _runs(ids: Sequence[int], vocab: Vocab) -> Iterator[tuple[int | None, list[int]]]:
    """(id of a marker or unit, []), or (None, the ids of the text between two of them).

    Padding rows, which no token has, are left out.
    """
    text: list[int] = []
    for token in ids:
        if token < 0:
            raise InputError(f"There is no token {token}.")
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
    """A serialized SentencePiece model with its first `count` pieces alone.

    It is a protocol buffer message, whose field 1 is repeated, a piece each
    (sentencepiece_model.proto). The message is cut without decoding the rest of it.
    """
    kept, place, pieces = [], 0, 0
    while place < len(model):
        start = place
        key, place = _read_varint(model, place)
        field, wire_type = key >> 3, key & 7
        if wire_type == 0:
            _, place = _read_varint(model, place)
        elif wire_type == 2:
            length, place = _read_varint(model, place)
            place += length
        else:
            place += {1: 8, 5: 4}[wire_type]
        pieces += field == 1
        if field != 1 or pieces <= count:
            kept.append(model[start:place])
    return b"".join(kept)


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    """(a number in seven bits a byte, the place behind it)."""
    number = shift = 0
    while True:
        number |= (data[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not data[place - 1] & 0x80:
            return number, place


def _check_size(folder: Path, pieces: int, vocab: Vocab) -> None:
    if pieces != vocab.text_size:
        raise InputError(
            f"{folder}: has {pieces} text pieces, and the vocabulary {vocab.text_size}."
        )
