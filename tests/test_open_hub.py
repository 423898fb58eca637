"""`spirit-jax convert open --model`: the parts come from the hub, and files of textlesslib."""

import functools
import hashlib
import json
from pathlib import Path

import pytest
from hub_server import Hub, run_client

pytest.importorskip("torch")

from convert import sources  # noqa: E402

FOLDER = Path(__file__).parents[2] / "shared" / "golden" / "open_tiny"
if not FOLDER.is_dir():
    pytest.skip(f"the golden stack is not at {FOLDER}", allow_module_level=True)

# Converts with each list of arguments: [exit status, errors] of each.
CLIENT = """
import contextlib, io, json, sys
from convert import open, sources
from spirit_jax.cli import running
sources.FILES_URL, sources.HASHES = json.loads(sys.argv[1])
results = []
for arguments in json.loads(sys.argv[2]):
    sys.argv, status, err = ["convert.open", *arguments], 0, io.StringIO()
    with contextlib.redirect_stdout(err), contextlib.redirect_stderr(err):
        try:
            running.run(open.main)
        except SystemExit as stop:
            status = stop.code or 0
    results.append([status, err.getvalue()])
print(json.dumps(results))
"""
FILES = {
    sources.KMEANS: "km500.bin",
    sources.VOCODER: "hifigan.pt",
    sources.VOCODER.replace(".pt", "_config.json"): "hifigan_config.json",
}


def read(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    hub = Hub(tmp_path_factory.mktemp("hub"))
    hub.add("slprl/SIMS-7B", read(FOLDER / "speech_lm") | {"checkpoint/big.safetensors": b"?"})
    hub.add(sources.ENCODER, read(FOLDER / "mhubert"))
    hub.add("Qwen/Qwen2.5-7B", read(FOLDER / "text_tokenizer") | {"model.safetensors": b"?"})
    hub.add("org/files", {name: (FOLDER / source).read_bytes() for name, source in FILES.items()})
    hub.large = 10_000
    return hub


@pytest.fixture
def convert(hub, tmp_path):
    run = functools.partial(run_client, hub, tmp_path, CLIENT)

    def convert(*commands, damaged=(), url=f"{hub.url}/org/files/resolve/main/", **environment):
        hashes = {
            name: "0" * 64 if name in damaged else sources.hash_file(FOLDER / source)
            for name, source in FILES.items()
        }
        done = run(json.dumps([url, hashes]), json.dumps(commands), **environment)
        return json.loads(done.stdout.splitlines()[-1])

    return convert


@pytest.mark.slow
def test_a_stack_is_fetched_and_converted(hub, convert, tmp_path):
    ((status, printed),) = convert(["--model", "slprl/SIMS-7B", "--output", "fetched"])
    assert status == 0, printed
    paths = [path for _, path in hub.requests]
    assert not [path for path in paths if path.endswith("/checkpoint/big.safetensors")]
    assert not [path for path in paths if "Qwen2.5-7B/" in path and "model.safe" in path]
    local = {"encoder": "mhubert", "kmeans": "km500.bin", "vocoder": "hifigan.pt"}
    local |= {"language-model": "speech_lm", "text-tokenizer": "text_tokenizer"}
    options = [part for name, path in local.items() for part in (f"--{name}", str(FOLDER / path))]
    before = len(hub.requests)
    # All of it is in the cache now.
    results = convert(
        ["--model", "slprl/SIMS-7B", "--output", "offline"],
        [*options, "--output", "local"],
        HF_HUB_OFFLINE="1",
        url="http://127.0.0.1:9/",
    )
    assert [status for status, _ in results] == [0, 0], results
    assert len(hub.requests) == before
    fetched, offline, given = (read(tmp_path / "here" / n) for n in ("fetched", "offline", "local"))
    assert fetched == offline == given


def test_what_cannot_be_fetched_is_named(convert, tmp_path):
    results = convert(
        ["--model", "org/none", "--output", "a"],
        ["--model", "slprl/SIMS-7B@v9", "--output", "a"],
        ["--model", "slprl/SIMS-7B", "--text-tokenizer", "org/none", "--output", "a"],
        ["--model", "slprl/SIMS-7B", "--output", "a"],
        ["--language-model", "x", "--output", "a"],
        ["--output", "a"],
        damaged=[sources.VOCODER],
    )
    for (status, error), message in zip(
        results,
        (
            "org/none: there is no such folder",
            "has no revision 'v9'",
            f"{sources.VOCODER}: what was fetched is not the published file",
            f"{sources.VOCODER}: what was fetched is not the published file",
            "With --language-model, give --encoder too",
            "Give one of --model and --language-model",
        ),
        strict=True,
    ):
        *progress, line = error.splitlines()
        assert status in (1, 2) and line.startswith("error: ") and message in line, error
        assert all("Fetching" in line or not line for line in progress), error
    ((status, error),) = convert(
        ["--model", "slprl/SIMS-7B", "--output", "a"], url="http://127.0.0.1:9/"
    )
    assert status == 1 and "cannot be fetched (" in error and "give --kmeans" in error
    assert not list((tmp_path / "here").iterdir())


def test_a_file_of_textlesslib_is_fetched_once(tmp_path, monkeypatch):
    data = b"x" * 100
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.bin").write_bytes(data)
    monkeypatch.setattr(sources, "FILES_URL", f"{source.as_uri()}/")
    monkeypatch.setattr(sources, "HASHES", {"a.bin": hashlib.sha256(data).hexdigest()})
    path = sources.find_published("a.bin", tmp_path / "cache")
    (source / "a.bin").unlink()
    assert sources.find_published("a.bin", tmp_path / "cache") == path
    assert path.read_bytes() == data
