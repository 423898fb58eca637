"""Lack of memory, disk or open files is reported as such by every library, never as a bad file."""

import errno
import io
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import sentencepiece
import soundfile
import tokenizers
from omegaconf import OmegaConf

from spirit_jax import checksums, config, files, orbax_folder, tensor_file, text
from spirit_jax.audio import load_audio, write_wav
from spirit_jax.audio_decoding import decode
from spirit_jax.data import align_words, records, report
from spirit_jax.data.configs import PrepareConfig
from spirit_jax.data.encode_items import encode_items
from spirit_jax.data.items import Item
from spirit_jax.data.manifest import Row, read_source
from spirit_jax.data.toy import make_utterances
from spirit_jax.data.word_times import read_textgrid, read_whisperx
from spirit_jax.errors import InputError, ResourceError
from spirit_jax.evaluation import scoring
from spirit_jax.evaluation.configs import EvalConfig
from spirit_jax.training import recording_cache

LACKS = {
    "memory": (MemoryError(), "memory is used up"),
    "numpy's memory": (np._core._exceptions._ArrayMemoryError((9,), np.dtype("f8")), "memory is"),
    "open files": (OSError(errno.EMFILE, "Too many open files"), "too many files are open"),
    "disk": (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
    "a library's message": (RuntimeError("x: Too many open files Error #24"), "too many files"),
}
BLAME = ("damaged", "truncated", "cut short", "not a", "is no ", "wrong type", "valid", "no such")


def make_files(folder):
    """Valid files of all kinds."""
    samples = np.zeros(4_000)
    for name, form in (("a.wav", "WAV"), ("a.flac", "FLAC"), ("a.mp3", "MP3")):
        soundfile.write(folder / name, samples, 16_000, format=form)
    (folder / "b.txt").write_text("hello there")
    (folder / "m.jsonl").write_text('{"id": "a", "text": "hello"}\n')
    (folder / "run.yaml").write_text("seed: 1\n")
    np.savez(folder / "cached.npz", digest="x", lengths=[1], labels=[1])
    records.write_shard(folder / "s.arrayrecord", make_utterances(2))


READERS = {  # (the library call that fails, a function that makes it)
    "text": ("builtins.open", lambda d: files.read_text(d / "b.txt")),
    "JSON lines": ("builtins.open", lambda d: list(files.read_json_lines(d / "m.jsonl"))),
    "manifest": ("builtins.open", lambda d: list(read_source(str(d / "m.jsonl")))),
    "text source": ("builtins.open", lambda d: list(read_source(str(d / "b.txt")))),
    "TextGrid": ("builtins.open", lambda d: read_textgrid(d / "b.txt")),
    "WhisperX": ("builtins.open", lambda d: read_whisperx(d / "m.jsonl")),
    "checksum": ("builtins.open", lambda d: checksums.of_file(d / "b.txt")),
    "config": ("builtins.open", lambda d: config.read(EvalConfig, d / "run.yaml")),
    "YAML": (
        "spirit_jax.config._parse_yaml",
        lambda d: config.read(EvalConfig, d / "run.yaml"),
    ),
    "config values": (
        (OmegaConf, "to_object"),
        lambda d: config.from_dict(EvalConfig, {"seed": 1}),
    ),
    "override": ((OmegaConf, "from_dotlist"), lambda d: config.override({"a": 1}, ["a=2"])),
    "override's key": ((OmegaConf, "update"), lambda d: config.override({"a": 1}, ["a=2"])),
    "audio file": ("builtins.open", lambda d: load_audio(d / "a.wav")),
    "WAV": ((soundfile.SoundFile, "read"), lambda d: load_audio(d / "a.wav")),
    "FLAC": ((soundfile.SoundFile, "__init__"), lambda d: load_audio(d / "a.flac")),
    "MP3": ((soundfile.SoundFile, "__init__"), lambda d: load_audio(d / "a.mp3")),
    "resampling": ("soxr.resample", lambda d: load_audio((np.zeros(4_000), 8_000))),
    "writing WAV": ("pathlib.Path.write_bytes", lambda d: write_wav(d / "new.wav", np.zeros(9))),
    "SentencePiece": (
        (sentencepiece.SentencePieceProcessor, "__init__"),
        lambda d: text.load_sentencepiece(d / "b.txt"),
    ),
    "SentencePiece's trainer": (
        (sentencepiece.SentencePieceTrainer, "train"),
        lambda d: text.learn_text_tokenizer(d / "new", ["a"], 300),
    ),
    "tokenizers": ((tokenizers, "Tokenizer"), lambda d: text.load_tokenizers(d / "b.txt")),
    "shard": (
        (records.array_record_module, "ArrayRecordReader"),
        lambda d: records.count_records(d / "s.arrayrecord"),
    ),
    "cache": ("numpy.load", lambda d: recording_cache._load_whole(d / "cached.npz")),
    "arrays": ("orbax.checkpoint.v1.metadata", lambda d: orbax_folder.read_shapes(d)),
    "tensors": ((tensor_file, "safe_open"), lambda d: tensor_file.read_shapes(d / "b.txt")),
    "judge": ((subprocess, "run"), lambda d: scoring.ask_judge(["x"], ["line"])),
}


def patch(monkeypatch, target, error):
    """Makes a library's call raise `error`."""

    class Failing:
        def __init__(self, *_, **__):
            raise error

        from_file = __init__

    def fail(*_, **__):
        raise error

    if isinstance(target, str):
        monkeypatch.setattr(target, fail)
    else:
        is_class = isinstance(getattr(*target), type)
        monkeypatch.setattr(*target, Failing if is_class else fail)


def can_raise(reader, lack):
    """Whether a call can fail so: decoding in memory, for example, opens no file."""
    if reader in ("WAV", "FLAC", "MP3", "resampling"):
        return "memory" in lack
    python = ("builtins.open", "pathlib.Path.write_bytes", (subprocess, "run"))
    return lack != "a library's message" or READERS[reader][0] not in python


@pytest.mark.parametrize(
    ("reader", "lack"),
    [(reader, lack) for reader in READERS for lack in LACKS if can_raise(reader, lack)],
)
def test_the_lack_is_reported_and_no_file_is_called_damaged(reader, lack, tmp_path, monkeypatch):
    make_files(tmp_path)
    target, read = READERS[reader]
    error, expected = LACKS[lack]
    with monkeypatch.context() as patched, pytest.raises(InputError) as raised:
        patch(patched, target, error)
        read(tmp_path)
    message = str(raised.value)
    assert expected in message
    assert not any(word in message for word in BLAME), message


@pytest.mark.parametrize("lack", ["memory", "open files"])
def test_no_item_is_skipped_for_a_lack_of_memory_or_open_files(lack, tmp_path, monkeypatch):
    make_files(tmp_path)
    item = Item("a", tmp_path / "a.wav")
    row = Row(1, {"audio": "a.wav"}, item)
    with monkeypatch.context() as patched:  # pytest itself opens files after the test
        patch(patched, "builtins.open", LACKS[lack][0])
        with pytest.raises(ResourceError):
            words = SimpleNamespace(load=lambda item: load_audio(item.audio))
            align_words.read(words, tmp_path / "out.jsonl", row)
        with pytest.raises(ResourceError):
            tokenizer = SimpleNamespace(devices=1)
            list(encode_items([item], tokenizer, PrepareConfig(threads=1), report.Counts()))
        with pytest.raises(ResourceError):
            list(read_source(str(tmp_path / "b.txt")))


def test_a_file_without_read_permission_is_not_a_lack():
    error = files.unreadable("a", PermissionError(errno.EACCES, "Permission denied"), "")
    assert not isinstance(error, ResourceError) and "permission is denied" in str(error)


def test_an_empty_file_is_reported_as_empty(tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    for audio in (tmp_path / "empty.wav", b""):
        with pytest.raises(InputError, match="is empty"):
            decode(audio)


def test_wav_files_equal_those_of_soundfile(tmp_path):
    samples = np.linspace(-1.2, 1.2, 999)
    write_wav(tmp_path / "a.wav", samples)
    expected = io.BytesIO()
    soundfile.write(expected, samples, 16_000, subtype="PCM_16", format="WAV")
    assert (tmp_path / "a.wav").read_bytes() == expected.getvalue()
