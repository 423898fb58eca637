"""Small text tokenizers of the kinds that Llama folders hold, trained on Python's help texts."""

import json
import struct
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

TEXT_SIZE = 1_000
UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"
USER_DEFINED = 4  # SentencePiece's number for this type of piece


@cache
def sentences() -> list[str]:
    """English sentences, the same in every run."""
    lines = "\n".join(topics[name] for name in sorted(topics)).splitlines()
    return [line.strip() for line in lines if line.strip()][:2_000]


def train_sentencepiece(path: Path) -> Path:
    """A model of `TEXT_SIZE` pieces that treats text as Llama's does, written to `path`."""
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences()),
            model_writer=file,
            vocab_size=TEXT_SIZE,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            num_threads=1,
            minloglevel=2,
        )
    return path


def append_pieces(source: Path, target: Path, strings: list[str]) -> Path:
    """Copies a SentencePiece model, and appends user-defined pieces.

    Appending a serialized message to another extends its repeated fields. The pieces are
    field 1: (string piece = 1, float score = 2, enum type = 3).
    """
    added = b""
    for string in strings:
        name = string.encode()
        piece = b"\x0a" + bytes([len(name)]) + name
        piece += b"\x15" + struct.pack("<f", 0.0) + b"\x18" + bytes([USER_DEFINED])
        added += b"\x0a" + bytes([len(piece)]) + piece
    target.write_bytes(source.read_bytes() + added)
    return target


def train_bpe(path: Path) -> Path:
    """A byte-level BPE of `TEXT_SIZE` pieces, as Llama 3's, written to `path`."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_SIZE,
        special_tokens=[UNKNOWN, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    assert tokenizer.get_vocab_size() == TEXT_SIZE
    tokenizer.save(str(path))
    return path


def made_up_bpe(path: Path, size: int) -> Path:
    """A byte-level BPE with `size` pieces, most of them never used, and no merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [UNKNOWN, BOS, EOS, *alphabet]
    pieces += [f"piece{i}" for i in range(size - len(pieces))]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([UNKNOWN, BOS, EOS])
    tokenizer.save(str(path))
    return path


def write_json(path: Path, values: dict) -> None:
    """Writes a mapping."""
    path.write_text(json.dumps(values))


def write_llama_folder(folder: Path, tokenizer: Path, vocab_size: int, **config) -> Path:
    """A Hugging Face Llama folder without weights, for `convert_tokenizer`."""
    folder.mkdir(parents=True)
    (folder / f"tokenizer{tokenizer.suffix}").write_bytes(tokenizer.read_bytes())
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    write_json(folder / "config.json", {"vocab_size": vocab_size, **ids, **config})
    return folder


def add_tokens(path: Path, strings: list[str]) -> Path:
    """Adds tokens to a `tokenizer.json`, in place."""
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.add_tokens(strings)
    tokenizer.save(str(path))
    return path
