"""Generation for a file of requests: results as alone, resumable, errors stay with a request."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spirit_jax import SpiritLM, batch, cli, model_folder
from spirit_jax.errors import InputError, ResourceError

SAMPLING = {"do_sample": True, "temperature": 0.8, "seed": 3}
REQUESTS = [
    {"id": "sum", "inputs": [["text", "what is two plus two"]], "to": "text", "max_new_tokens": 20},
    {"id": "prompt", "prompt": "[Text]the cat", "to": "text", "max_new_tokens": 9, **SAMPLING},
    {"id": "spoken", "inputs": [["text", "one"]], "to": "speech", "max_new_tokens": 30},
    {"id": "wrong", "inputs": [["text", "one"]], "to": "text", "temperature": 0.5},
    {"id": "long", "prompt": "[Text]" + "word " * 5000, "to": "text"},
]


@pytest.fixture(scope="module")
def lm():
    return SpiritLM.from_pretrained("spirit-tiny-base")


def write(path, requests):
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return path


def read(folder):
    lines = (folder / batch.RESULTS).read_text().splitlines()
    return {result["id"]: result for result in map(json.loads, lines)}


@pytest.fixture(scope="module")
def folder(lm, tmp_path_factory):
    """The results of all requests."""
    folder = tmp_path_factory.mktemp("batch")
    requests = batch.read_requests(write(folder / "requests.jsonl", REQUESTS))
    reports = []
    progress = batch.run(lm, requests, folder / "out", 2, reports.append)
    assert progress == reports[-1]
    assert (progress.done, progress.failed, len(reports)) == (5, 2, 5)
    assert progress.tokens == sum(r.get("tokens", 0) for r in read(folder / "out").values())
    return folder


def test_results_are_those_of_each_request_alone(lm, folder):
    results = read(folder / "out")
    (text,) = lm.generate([("text", "what is two plus two")], "text", max_new_tokens=20)
    assert results["sum"]["outputs"] == [{"text": text.content}]
    (ids,) = lm.generate_ids(["[Text]the cat"], "text", max_new_tokens=9, **SAMPLING)
    assert results["prompt"]["generated"] == lm.text_tokenizer.decode_prompt(ids)
    assert results["prompt"]["tokens"] == len(ids)
    (speech,) = lm.generate([("text", "one")], "speech", max_new_tokens=30)
    (piece,) = results["spoken"]["outputs"]
    wave, rate = soundfile.read(folder / "out" / piece["speech"], dtype="float32")
    assert rate == 16_000 and piece["seconds"] == round(len(wave) / rate, 3)
    np.testing.assert_allclose(wave, speech.content, atol=2 / 32768)


def test_a_request_that_cannot_be_used_has_an_error(folder):
    results = read(folder / "out")
    assert "temperature would change nothing" in results["wrong"]["error"]
    assert "there is no room" in results["long"]["error"]
    assert all("error" not in results[name] for name in ("sum", "prompt", "spoken"))


def test_an_interrupted_command_resumes(lm, folder, tmp_path):
    requests = batch.read_requests(folder / "requests.jsonl")
    lines = (folder / "out" / batch.RESULTS).read_text().splitlines(keepends=True)
    lines.sort(key=lambda line: "error" in line)
    (tmp_path / batch.RESULTS).write_text("".join(lines[:2]) + lines[2][:20])
    reports = []
    assert batch.run(lm, requests, tmp_path, 2, reports.append).done == 5
    assert len(reports) == 3
    results = read(tmp_path)
    assert {name: r.get("outputs") for name, r in results.items()} == {
        name: r.get("outputs") for name, r in read(folder / "out").items()
    }
    changed = batch.read_requests(
        write(tmp_path / "r.jsonl", [REQUESTS[0] | {"max_new_tokens": 21}, *REQUESTS[1:]])
    )
    with pytest.raises(InputError, match="result of another request 'sum'"):
        batch.run(lm, changed, tmp_path, 2)


def spoken_request(path, **settings):
    request = {"id": path.stem, "inputs": [["speech", str(path)]], "to": "text"}
    return request | {"max_new_tokens": 3} | settings


def test_a_recording_that_changed_is_refused(lm, tmp_path):
    path, other = tmp_path / "a.flac", model_folder.ASSETS / "question.flac"
    shutil.copy(model_folder.ASSETS / "request.flac", path)
    unit_string = {"id": "units", "inputs": [["speech", "[Hu1][Hu2]"]], "to": "text"}
    lines = [spoken_request(path), unit_string | {"max_new_tokens": 3}]
    requests = batch.read_requests(write(tmp_path / "r.jsonl", lines))
    assert batch.run(lm, requests, tmp_path / "out", 2).failed == 0
    before, reports = (tmp_path / "out" / batch.RESULTS).read_text(), []
    for change, message in (
        (lambda: shutil.copy(other, path), "another request 'a', of another recording"),
        (path.unlink, r"the recording of request 'a' cannot be compared .*a\.flac: cannot be read"),
    ):
        change()
        with pytest.raises(InputError, match=message):
            batch.run(lm, requests, tmp_path / "out", 2, reports.append)
    shutil.copy(model_folder.ASSETS / "request.flac", path)
    assert batch.run(lm, requests, tmp_path / "out", 2, reports.append).done == 2
    assert (tmp_path / "out" / batch.RESULTS).read_text() == before and not reports


def test_failed_requests_are_tried_again(lm, tmp_path):
    path = tmp_path / "a.flac"
    kept = {"id": "kept", "prompt": "[Text]one", "to": "text", "max_new_tokens": 3}
    lines = [kept, spoken_request(path), kept | {"id": "wrong", "temperature": 0.5}]
    requests = batch.read_requests(write(tmp_path / "r.jsonl", lines))
    assert batch.run(lm, requests, tmp_path / "out", 2).failed == 2
    assert "a.flac" in read(tmp_path / "out")["a"]["error"]
    shutil.copy(model_folder.ASSETS / "request.flac", path)  # and the settings are corrected
    lines[2]["do_sample"] = True
    requests, reports = batch.read_requests(write(tmp_path / "r.jsonl", lines)), []
    progress = batch.run(lm, requests, tmp_path / "out", 2, reports.append)
    assert (progress.done, progress.failed, len(reports)) == (3, 0, 2)
    rows = (tmp_path / "out" / batch.RESULTS).read_text().splitlines()
    assert [json.loads(row)["id"] for row in rows][0] == "kept" and len(rows) == 3
    assert not any("error" in result for result in read(tmp_path / "out").values())


def test_results_of_another_model_are_not_mixed_in(lm, folder, tmp_path, monkeypatch):
    requests = batch.read_requests(folder / "requests.jsonl")
    lines = (folder / "out" / batch.RESULTS).read_text().splitlines(keepends=True)
    lines.sort(key=lambda line: "error" in line)
    (tmp_path / batch.RESULTS).write_text(lines[0])
    shutil.copytree(model_folder.ASSETS / "spirit-tiny-base", tmp_path / "other")
    (tmp_path / "other" / "notes.txt").write_text("an edited model")
    monkeypatch.setattr(lm, "folder", tmp_path / "other")
    with pytest.raises(InputError, match="or of another model; use another output folder"):
        batch.run(lm, requests, tmp_path, 2)
    assert (tmp_path / batch.RESULTS).read_text() == lines[0]


def test_lack_of_memory_or_disk_is_not_the_error_of_a_request(lm, folder, tmp_path, monkeypatch):
    requests = batch.read_requests(folder / "requests.jsonl")[:1]

    def fail(*args):
        raise ResourceError("a.flac: cannot be read (too many files are open).")

    monkeypatch.setattr(lm, "build_prompt", fail)
    with pytest.raises(ResourceError):
        batch.run(lm, requests, tmp_path / "out", 2)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_results_that_cannot_be_written_are_named(lm, folder, tmp_path):
    (tmp_path / batch.RESULTS).symlink_to("/dev/full")
    requests = batch.read_requests(folder / "requests.jsonl")[3:4]
    message = r"results\.jsonl: cannot be written \(the disk is full\)"
    with pytest.raises(InputError, match=message):
        batch.run(lm, requests, tmp_path, 2)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"inputs": [], "temprature": 1}, "request '1' has the unknown field 'temprature'"),
        ({"id": "a"}, "request 'a' needs either 'inputs' or 'prompt'"),
        ({"inputs": [], "prompt": ""}, "needs either"),
        *(
            ({"id": name, "prompt": ""}, "the id '.*' cannot be part of a file name")
            for name in ("../a", "", " ", "a\0b", "a\nb", "a" * 300)
        ),
        ([1], "line 1 is not a JSON object"),
    ],
)
def test_wrong_requests_are_named(tmp_path, request_, message):
    with pytest.raises(InputError, match=message):
        batch.read_requests(write(tmp_path / "r.jsonl", [request_]))


def test_an_id_twice_is_named(tmp_path):
    with pytest.raises(InputError, match="the id 'a' is there twice"):
        batch.read_requests(write(tmp_path / "r.jsonl", [{"id": "a", "prompt": ""}] * 2))


def test_the_command_prints_a_summary(folder, tmp_path, monkeypatch, capsys):
    arguments = ["generate", "spirit-tiny-base", "--batch", str(folder / "requests.jsonl")]
    monkeypatch.setattr("spirit_jax.cli.options.prepare_environment", lambda: None)
    monkeypatch.setattr("sys.argv", ["spirit-jax", *arguments, "--output", str(folder / "out")])
    cli.main()  # all have results
    output = capsys.readouterr().out
    assert f"5 results in {folder / 'out' / batch.RESULTS} (2 failed)" in output
    for extra, message in (("--greedy", "--greedy would do nothing"), ("--rows", "--rows")):
        value = ["0"] if extra == "--rows" else []
        monkeypatch.setattr("sys.argv", ["spirit-jax", *arguments, extra, *value])
        with pytest.raises(SystemExit):
            cli.main()
        assert message in capsys.readouterr().err
