"""Models of the hub: names, downloads, the cache, refusals and uploads, by a server on loopback."""

import functools
import json
import os
import shutil

import pytest
from hub_server import TOKEN, Hub, run_client

from spirit_jax import hub, model_folder
from spirit_jax.errors import InputError

# Runs calls in one process, and prints the result or the error of each.
CLIENT = """
import json, os, socket, sys
if "--no-network" in sys.argv:
    def refuse(*_, **__):
        raise OSError("sockets are blocked")
    socket.socket.connect = refuse
    socket.getaddrinfo = refuse
import warnings
from spirit_jax import hub, model_folder
from spirit_jax.errors import InputError
results = []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for name in json.loads(sys.argv[1]):
        try:
            results.append(str(model_folder.find_model(name)))
        except InputError as error:
            results.append(f"error: {error}")
print(json.dumps([results, [str(w.message) for w in caught]]))
"""


@pytest.fixture(scope="module")
def files(base_folder):
    """The files of a small model."""
    paths = (path for path in base_folder.rglob("*") if path.is_file())
    return {path.relative_to(base_folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def server(tmp_path):
    return Hub(tmp_path / "hub")


@pytest.fixture
def run(server, tmp_path):
    """Runs Python code with arguments as a user of the server."""
    return functools.partial(run_client, server, tmp_path)


@pytest.fixture
def find(run):
    def find(*names, blocked=False, **environment):
        more = ["--no-network"] if blocked else []
        done = run(CLIENT, json.dumps(names), *more, **environment)
        return json.loads(done.stdout.splitlines()[-1])

    return find


def test_names():
    assert hub.parse_name("org/name") == ("org/name", None)
    assert hub.parse_name("org/name@feature/x@y") == ("org/name", "feature/x@y")
    for other in ("name", "./org/name", "/org/name", "org/name/more", "org/", "../name", "a b/c"):
        assert hub.parse_name(other) is None
    with pytest.raises(InputError, match="no revision after the @"):
        hub.parse_name("org/name@")


def test_a_local_folder_comes_first(tmp_path, monkeypatch):
    (tmp_path / "org" / "name@v1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert str(model_folder.find_model("org/name@v1")) == "org/name@v1"


def test_a_model_is_fetched_once_and_then_used_offline(server, find, files):
    first = server.add("org/model", files)
    second = server.add("org/model", files | {"note.txt": b"newer"}, "feature/x")
    (default, other), _ = find("org/model", "org/model@feature/x")
    assert first in default and second in other
    contents = {p: open(os.path.join(default, p), "rb").read() for p in files}
    assert contents == files
    fetched = [path for method, path in server.requests if method == "GET" and "resolve" in path]
    server.requests.clear()
    assert find(f"org/model@{first}") == [[default], []]
    assert server.requests == []  # a commit that is whole in the cache needs no question
    assert find("org/model")[0] == [default]
    assert not [path for _, path in server.requests if "resolve" in path]
    assert len(fetched) >= len(files)
    (offline,), warned = find("org/model", blocked=True)
    assert offline == default and "the cached copy is used" in warned[0]
    assert find("org/model", blocked=True, HF_HUB_OFFLINE="1") == [[default], []]


def test_all_parts_are_of_one_commit_if_a_branch_moves(server, run, files):
    first = server.add("org/model", files)
    code = """
import sys, urllib.request
from spirit_jax import model_folder
print(model_folder.find_model("org/model"))
urllib.request.urlopen(sys.argv[1]).read()
print(model_folder.find_speech_tokenizer("org/model"))
"""
    answer = server.answer

    def moving(request):
        if request.path == "/move":
            server.add("org/model", files | {"note.txt": b"newer"})
        return answer(request)

    server.answer = moving
    server.root.joinpath("move").mkdir()
    lines = run(code, f"{server.url}/move", check=False).stdout.splitlines()
    assert lines and all(first in line for line in lines[-2:])


@pytest.mark.slow
def test_an_incomplete_copy_is_noticed(server, find, files, tmp_path):
    server.add("org/model", files)
    (folder,), _ = find("org/model")
    weights = os.path.join(folder, "llama", "model.safetensors")
    shutil.copyfile(weights, tmp_path / "whole")
    os.remove(os.path.realpath(weights))  # as after an interrupted download
    (message,), _ = find("org/model", blocked=True)
    assert message.startswith("error: org/model: ") and "cannot be fetched" in message
    (again,), _ = find("org/model")
    assert open(os.path.join(again, "llama", "model.safetensors"), "rb").read() == (
        (tmp_path / "whole").read_bytes()
    )
    with open(os.path.realpath(weights), "r+b") as file:
        file.truncate(100)
    (message,), _ = find("org/model", blocked=True)
    assert "it lacks llama/model.safetensors" in message


def test_a_download_from_another_server_is_resumed(server, run, files):
    """Large files of the hub are elsewhere: the token does not go there."""
    server.add("org/gated", files)
    server.large, server.cut = 10_000, 1
    chunks = "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 1000\n"
    done = run(chunks + CLIENT, json.dumps(["org/gated"]), HF_TOKEN=TOKEN)
    (folder,), _ = json.loads(done.stdout.splitlines()[-1])
    for name, data in files.items():
        assert open(os.path.join(folder, name), "rb").read() == data, name
    headers = [headers for _, headers in server.large_requests]
    assert any("Range" in names for names in headers)
    assert not any("Authorization" in names for names in headers)


def test_refusals_have_different_messages(server, find, files):
    server.add("org/model", files)
    server.add("org/gated", files)
    server.add("org/secret", files)
    server.add("org/other", {"config.json": b"{}", "vocab.json": b"{}"})
    names = (
        "org/none",
        "org/gated",
        "org/secret",
        "org/model@v9",
        "org/model@abc1234",
        "org/other",
    )
    results, _ = find(*names)
    assert "the model is missing, private or gated (no token was sent" in results[0]
    assert "is gated" in results[1] and "no token was sent" in results[1]
    assert "missing, private or gated" in results[2]
    assert "has no revision 'v9'" in results[3] and "full commit hash" in results[4]
    assert "is not a spirit_jax model" in results[5]
    allowed, _ = find("org/gated", "org/secret", "org/none", HF_TOKEN=TOKEN)
    assert not [path for path in allowed[:2] if path.startswith("error")]
    assert "(a token was sent)" in allowed[2]
    (message,), _ = find("org/none", blocked=True)
    assert "there is no such folder" in message and "sockets are blocked" in message


# Runs `spirit-jax push` several times: [exit status, standard output, standard error] of each.
PUSH = """
import contextlib, io, json, sys
from spirit_jax.cli import main
results = []
for arguments in json.loads(sys.argv[1]):
    sys.argv, status = ["spirit-jax", "push", *arguments], 0
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            status = stop.code or 0
    results.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


@pytest.fixture
def push(run):
    def push(*commands):
        done = run(PUSH, json.dumps([list(map(str, c)) for c in commands]), HF_TOKEN=TOKEN)
        return json.loads(done.stdout.splitlines()[-1])

    return push


def test_a_pushed_model_is_downloaded_unchanged(server, push, find, expressive_folder, tmp_path):
    figures = tmp_path / "figures.json"
    figures.write_text(json.dumps({"asr": {"items": 20, "wer": 12.34}}))
    options = ("--license", "apache-2.0", "--dataset", "org/corpus", "--figures", figures)
    (status, out, _), (other, *_) = push(
        (expressive_folder, "org/new", "--private", *options),
        (expressive_folder, "org/new", "--revision", "v2"),
    )
    assert (status, other) == (0, 0) and out.startswith(f"{server.url}/org/new/commit/")
    (folder, second), _ = find("org/new", "org/new@v2")
    card = open(os.path.join(folder, "README.md")).read()
    assert card.startswith("---\n") and "license: apache-2.0" in card and "org/corpus" in card
    assert "| asr | 20 | wer 12.3 |" in card and 'from_pretrained("org/new")' in card
    assert "license:" not in open(os.path.join(second, "README.md")).read()
    for path in expressive_folder.rglob("*.safetensors"):
        name = path.relative_to(expressive_folder)
        assert open(os.path.join(folder, name), "rb").read() == path.read_bytes()
    assert hub.find_missing(folder) == []


def test_nothing_is_uploaded_that_is_not_whole(server, push, expressive_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(expressive_folder, broken)
    path = broken / "llama" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    good = expressive_folder
    cases = {
        "is damaged": (broken, "org/a"),
        "a branch is --revision": (good, "org/a@v1"),
        "expected a name such as org/name": (good, "a"),
        "must be one of the known ones": (good, "org/a", "--license", "no-such"),
    }
    for message, (status, _, errors) in zip(cases, push(*cases.values()), strict=True):
        assert status == 1 and message in errors, errors
        assert errors.startswith("error: ") and errors.count("\n") == 1
    assert not [path for method, path in server.requests if "commit" in path]
