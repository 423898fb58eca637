"""Conversion commands: one-line errors, no partial output, and no ignored options."""

import sys
from importlib import import_module

import pytest

pytest.importorskip("torch")

from convert import trunk  # noqa: E402
from spirit_jax import files  # noqa: E402
from spirit_jax.cli import running  # noqa: E402
from spirit_jax.errors import InputError  # noqa: E402

COMMANDS = {
    "ctc": ["--hf", "IN", "--output", "OUT"],
    "export": ["--model", "IN", "--output", "OUT"],
    "fcpe": ["--weights", "IN/fcpe.pt", "--output", "OUT"],
    "hifigan": ["--checkpoint", "IN", "--output", "OUT"],
    "hubert": ["--checkpoint", "IN/hubert.pt", "--output", "OUT"],
    "llama": ["--checkpoint", "IN", "--add-speech-tokens", "base", "--output", "OUT"],
    "open": [
        *("--encoder", "IN/hubert", "--kmeans", "IN/km.bin", "--vocoder", "IN/vocoder.pt"),
        *("--language-model", "IN/lm", "--text-tokenizer", "IN/text", "--output", "OUT"),
    ],
    "pitch": ["--checkpoint", "IN", "--output", "OUT"],
    "release": ["--checkpoints", "IN", "--model", "base", "--output", "OUT"],
    "style": ["--checkpoint", "IN", "--output", "OUT"],
    "verify": ["--model", "IN", "--audio", "IN/a.flac"],
}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command with IN and OUT in `tmp_path`: (exit status, its errors)."""

    def run(name, *arguments):
        paths = {"IN": str(tmp_path / "in"), "OUT": str(tmp_path / "out")}
        for short, path in paths.items():
            arguments = [argument.replace(short, path) for argument in arguments]
        monkeypatch.setattr(sys, "argv", [f"convert.{name}", *arguments])
        with pytest.raises(SystemExit) as stop:
            running.run(import_module(f"convert.{name}").main)
        return stop.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_a_missing_input_is_a_one_line_error(name, run, tmp_path):
    status, errors = run(name, *COMMANDS[name])
    assert status == 1 and errors.startswith("error: ") and errors.count("\n") == 1
    assert str(tmp_path / "in") in errors
    assert not list(tmp_path.iterdir())
    assert run(name, "--surprise")[0] == 2
    assert run(name)[0] in ((1, 2) if name == "release" else (2,))  # its arguments have defaults


@pytest.mark.parametrize("name", ["llama", "release"])
def test_a_missing_folder_is_reported_as_such(name, run):
    assert "in: there is no such folder" in run(name, *COMMANDS[name])[1]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("llama", ["--seed", "-1"]),
        ("llama", ["--seed", "1.5"]),
        ("llama", ["--seed", "²"]),
        ("llama", ["--add-speech-tokens", "large"]),
        ("hubert", ["--layer", "x"]),
        ("hubert", ["--hf", "IN"]),  # conflicts with --checkpoint
        ("hubert", ["--quantizer", "a.pt", "--kmeans", "a.npy"]),
        ("fcpe", ["--model", "IN"]),  # conflicts with --output
    ],
)
def test_invalid_arguments_are_usage_errors(name, arguments, run):
    assert run(name, *COMMANDS[name], *arguments)[0] == 2


def test_a_layer_that_is_missing_is_refused_with_the_option_to_change():
    with pytest.raises(InputError, match=r"has 5 layers, so there is no layer 11.*--layer"):
        trunk.check_layer("config.json", 11, 5)


def test_lack_of_memory_or_disk_is_reported_as_such(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["convert"])
    raised: list[BaseException] = []

    def fail() -> None:
        raise raised.pop()

    for error, status, expected in (
        (MemoryError(), "1", "memory is used up"),
        (OSError(28, "No space left on device", "x"), "1", "the disk is full"),
        (PermissionError(13, "Permission denied", "x"), "1", "error: x: "),
    ):
        raised.append(error)
        with pytest.raises(SystemExit, match=status):
            running.run(fail)
        message = capsys.readouterr().err
        assert expected in message and message.count("\n") == 1


def test_packaged_models_are_not_modified(run, tmp_path):
    (tmp_path / "in").write_bytes(b"x")
    status, errors = run("fcpe", "--weights", "IN", "--model", "spirit-tiny-expressive")
    assert status == 1 and "cannot be changed; copy it first" in errors


def test_an_existing_output_is_rejected_before_the_input_is_read(run, tmp_path):
    (tmp_path / "out").mkdir()
    status, errors = run("hubert", *COMMANDS["hubert"])
    assert status == 1 and "exists already" in errors
    assert files.UNFINISHED not in "".join(path.name for path in tmp_path.iterdir())
