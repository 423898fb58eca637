"""Files, folders, locks and corpora in a bucket, with a storage emulator on this machine."""

import itertools
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from bucket_server import Proxy, use
from training_runs import make_run, write_corpus

from spirit_jax import InputError, checksums, config, files, model_folder, tensor_file, text
from spirit_jax.audio import load_audio, write_wav
from spirit_jax.data.corpus import Corpus
from spirit_jax.data.manifest import read_source
from spirit_jax.errors import ExistsError
from spirit_jax.files import buckets, growing, lock
from spirit_jax.training.checkpoints import Checkpoints
from spirit_jax.vocab import Vocab


@pytest.fixture
def folder(bucket):
    """An empty folder of the bucket."""
    return files.as_path(bucket)


def names_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_paths_of_buckets_have_the_methods_of_local_paths(folder):
    assert not folder.exists() and not folder.is_dir()
    with pytest.raises(FileNotFoundError):
        list(folder.iterdir())
    assert list(folder.glob("*")) == [] and list(folder.rglob("*")) == []
    files.write_text(folder / "a/one.txt", "1\n2\n")
    files.write_text(folder / "two.json", "{}")
    assert folder.is_dir() and (folder / "a").is_dir() and not (folder / "a").is_file()
    assert sorted(path.name for path in folder.iterdir()) == ["a", "two.json"]
    assert [path.name for path in folder.glob("*/*.txt")] == ["one.txt"]
    assert names_in(folder) == ["a/one.txt", "two.json"]
    assert (folder / "two.json").stat().st_size == 2
    assert (folder / "a/one.txt").open().read() == "1\n2\n"
    assert files.join(folder / "a", "../two.json") == folder / "two.json"
    assert files.as_path(str(folder).replace("//", "/")) == folder  # as pathlib writes it
    (folder / "a").rename(folder / "b")
    assert names_in(folder) == ["b/one.txt", "two.json"]
    files.remove_tree(folder)
    assert not folder.exists()


def test_a_question_is_one_request(emulator, folder, monkeypatch):
    files.write_text(folder / "a/file", "x" * 100_000)
    proxy = Proxy(emulator, 0.0)
    use(proxy.url, monkeypatch)
    questions = {
        lambda: (folder / "a/file").is_file(): 1,
        lambda: (folder / "a").exists(): 2,  # is it an object, is it a folder
        lambda: (folder / "b").exists(): 2,
        lambda: files.walk(folder): 1,
        lambda: files.read_text(folder / "a/file"): 2,  # the size, the content
        lambda: checksums.of_file(folder / "a/file"): 2,
    }
    try:
        for question, requests in questions.items():
            before = proxy.requests
            question()
            assert proxy.requests - before == requests
    finally:
        proxy.close()


def test_a_file_is_whole_or_absent(folder):
    path = folder / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.whole_file(path) as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    assert files.read_json(path) == {"a": 1}
    with pytest.raises(ExistsError, match="exists already"):
        with files.whole_file(path, overwrite=False) as unfinished:
            unfinished.write_text("2")
    assert files.read_json(path) == {"a": 1} and names_in(folder) == ["a.json"]
    with pytest.raises(InputError, match="gs://.*a.json: is missing something"):
        with files.whole_file(path) as unfinished:
            raise InputError(f"{unfinished}: is missing something.")


KILLED = """
import os, sys
from spirit_jax import files
from spirit_jax.files import buckets, writing
def put(self, local, *rest, whole=buckets.BucketPath.put):
    if self.name == "b":
        os._exit(9)
    whole(self, local, *rest)
buckets.BucketPath.put, writing.UPLOADS = put, 1
with files.whole_folder(sys.argv[1]) as folder:
    (folder / "a").write_text("killed")
    (folder / "b").write_text("killed")
"""


def test_a_folder_is_whole_or_absent_also_after_a_kill(folder, monkeypatch):
    monkeypatch.setattr(lock, "BUCKET_SETTLE_SECONDS", 0.0)
    output = folder / "model"
    with pytest.raises(RuntimeError), files.whole_folder(output) as local:
        (local / "a").write_text("")
        raise RuntimeError
    assert names_in(folder) == []
    assert subprocess.run([sys.executable, "-c", KILLED, str(output)]).returncode == 9
    assert names_in(folder) == ["model.unfinished", "model/a"]
    assert not output.is_dir()
    for read in (files.require_folder, model_folder.find_model):
        with pytest.raises(InputError, match="is unfinished: .* run it again"):
            read(output)
    with files.whole_folder(output) as local:
        (local / "c").mkdir()
        (local / "c/d").write_text("whole")
    assert names_in(folder) == ["model/c/d"] and output.is_dir()
    with pytest.raises(ExistsError, match="exists already"), files.whole_folder(output):
        pass


def test_a_failed_upload_leaves_nothing(folder, monkeypatch):
    def put(self, local, *_):
        raise OSError("no connection")

    output = folder / "model"
    with pytest.raises(InputError, match="model: cannot be written .no connection"):
        with files.whole_folder(output) as local:
            (local / "a").write_text("")
            monkeypatch.setattr(buckets.BucketPath, "put", put)
    assert names_in(folder) == []


def test_one_process_holds_a_lock(folder, monkeypatch):
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lock, "BUCKET_SETTLE_SECONDS", 0.0)
    with lock.hold(folder) as held:
        with pytest.raises(InputError, match="is in use by process"), lock.hold(folder):
            pass
        monkeypatch.setattr(lock, "_host", lambda: "another host")  # its updates are seen
        with pytest.raises(InputError, match="is in use by process"), lock.hold(folder):
            pass
        held.check()
    assert names_in(folder) == []
    owner = lock.Owner("token", "a third host", 1, "", "long ago")
    assert lock._create(folder / lock.NAME, owner)  # of a process that was killed
    with lock.hold(folder) as held:
        assert held.was_stale
    assert names_in(folder) == []


def test_of_several_processes_that_want_a_lock_one_gets_it(folder, monkeypatch):
    monkeypatch.setattr(lock, "BUCKET_SETTLE_SECONDS", 0.0)
    lock._create(folder / lock.NAME, lock.Owner("token", lock._host(), 1 << 22, "1", "earlier"))
    monkeypatch.setattr(lock.Owner, "is_gone", property(lambda owner: owner.since == "earlier"))
    outcomes, barrier = [], threading.Barrier(6)

    def take():
        barrier.wait()
        try:
            lock._take(folder / lock.NAME, "the run", "run_dir")
            outcomes.append("taken")
        except InputError:
            outcomes.append("refused")

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 5 + ["taken"]


def test_a_growing_file_is_uploaded_now_and_then(folder, monkeypatch):
    monkeypatch.setattr(growing, "UPLOAD_SECONDS", 0.0)
    with files.GrowingFile(folder / "lines") as file:
        file.write(b"1\n")
        assert (folder / "lines").read_bytes() == b"1\n"
    monkeypatch.setattr(growing, "UPLOAD_SECONDS", 100.0)
    with files.GrowingFile(folder / "lines") as file:
        file.write(b"2\n")
        assert (folder / "lines").read_bytes() == b"1\n"
        file.flush()
        assert (folder / "lines").read_bytes() == b"1\n2\n"
        file.write(b"3\n")
    assert (folder / "lines").read_bytes() == b"1\n2\n3\n"


def test_arrays_and_tokenizers_are_read_from_a_bucket(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("spirit_jax.tensor_ranges.SPAN", 256)
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=(6, 50, 7)), "b": np.float32(3.0), "c": np.zeros((0, 4), int)}
    arrays["d"] = rng.integers(0, 9, (40, 30)).astype(np.int8)
    for place in (tmp_path, folder):
        known = tensor_file.write(place / "model.safetensors", [arrays])
        checksums.list_arrays(place / "model.safetensors", known)
    shapes = tensor_file.read_shapes(folder / "model.safetensors")
    assert shapes == tensor_file.read_shapes(tmp_path / "model.safetensors")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())  # noqa: TID251
    shapes["d"] = jax.ShapeDtypeStruct((40, 30), np.int8, sharding=place)
    loaded = tensor_file.load(folder / "model.safetensors", shapes)
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
    part = tensor_file._open(folder / "model.safetensors").get_slice("a")
    np.testing.assert_array_equal(part[1:5, 20:31, 2:3], arrays["a"][1:5, 20:31, 2:3])
    model = model_folder.ASSETS / "spirit-tiny-base"
    files.upload_folder(model / "text_tokenizer", folder / "text_tokenizer")
    vocab = config.read(Vocab, model / "vocab.json")
    read = text.load_text_tokenizer(folder / "text_tokenizer", vocab)
    assert read.encode("hello") == text.load_text_tokenizer(model / "text_tokenizer", vocab).encode(
        "hello"
    )
    (folder / "model.safetensors").write_bytes(b"\x08" + bytes(20))
    with pytest.raises(InputError, match="model.safetensors: "):
        tensor_file.read_shapes(folder / "model.safetensors")


def test_a_corpus_and_recordings_are_read_from_a_bucket(folder, tmp_path, monkeypatch):
    write_corpus(tmp_path)
    files.upload_folder(tmp_path, folder / "corpus")
    local, remote = Corpus(tmp_path), Corpus(folder / "corpus")
    assert list(map(str, local)) == list(map(str, remote))
    (folder / "corpus/a.arrayrecord").write_bytes((tmp_path / "a.arrayrecord").read_bytes()[::-1])
    damaged = Corpus(folder / "corpus")
    with pytest.raises(InputError, match="a.arrayrecord: its checksum is not the listed one"):
        damaged[0]
    wave_t = np.sin(np.arange(16000) / 20).astype(np.float32)
    write_wav(folder / "audio/a.wav", wave_t)
    files.write_json_lines(folder / "list.jsonl", [{"id": "a", "audio": "audio/a.wav"}])
    (item,) = read_source(str(folder / "list.jsonl"))
    (other,) = read_source(str(folder / "audio"))
    assert item.audio_path == other.audio_path == folder / "audio/a.wav"
    assert np.abs(load_audio(item.audio_path) - wave_t).max() < 1e-3


def test_checkpoints_without_their_last_file_are_absent(folder):
    for name in ("3/commit_success.txt", "3/state/a", "4/state/a", "damaged/5/a"):
        files.write_text(folder / name, "")
    assert Checkpoints(folder).steps() == [3]


def test_what_a_run_cannot_write_to_a_bucket_is_refused():
    for folder, settings, message in (
        ("az://bucket/run", {}, "checkpoints are written to local folders, gs:// and s3:// only"),
        ("http://host/run", {}, "neither a folder nor that of a bucket"),
        ("gs://bucket/run", {"profile_at": 3}, "A profile cannot be written to a bucket"),
    ):
        with pytest.raises(InputError, match=message):
            make_run(folder, "model", "corpus", **settings)


def test_missing_permission_and_missing_package_are_named(folder, monkeypatch):
    with pytest.raises(InputError, match="gs://.*/no.txt: cannot be read .No such file"):
        files.read_text(folder / "no.txt")
    with pytest.raises(InputError, match="no-bucket/a.txt: cannot be written .No such file"):
        files.write_text("gs://no-bucket/a.txt", "")

    def denied(self, *_, **__):
        raise OSError("Forbidden: https://storage.googleapis.com/...")

    monkeypatch.setattr(folder.system, "cat_file", denied)
    files.write_text(folder / "a.txt", "1")
    with pytest.raises(InputError, match="a.txt: cannot be read .permission is denied"):
        files.read_text(folder / "a.txt")
    monkeypatch.setattr("fsspec.filesystem", lambda *_, **__: __import__("no_such_module"))
    with pytest.raises(InputError, match="need gcsfs, which is not installed .pip install"):
        files.read_text(folder / "a.txt")


def test_requests_are_repeated(emulator, folder, monkeypatch):
    monkeypatch.setattr(buckets, "WAITS", (0.01,) * 6)
    monkeypatch.setattr("gcsfs.retry.asyncio.sleep", _short_sleep(), raising=False)
    proxy = Proxy(emulator, 0.3)
    try:
        use(proxy.url, monkeypatch)
        for number in range(20):
            files.write_json(folder / f"{number}.json", [number] * 1000)
            assert files.read_json(folder / f"{number}.json") == [number] * 1000
        with files.whole_file(folder / "new", overwrite=False) as unfinished:
            unfinished.write_text("1")
        (folder / "lock").create(b"mine")  # also if an answer is lost
        with pytest.raises(FileExistsError):
            (folder / "lock").create(b"other")
        assert len(names_in(folder)) == 22
        assert all(proxy.spoiled.values()), proxy.spoiled
        proxy.share = 1.0
        monkeypatch.setattr(Proxy, "KINDS", ("503",))
        with pytest.raises(InputError, match="0.json: cannot be read .the bucket does not answer"):
            files.read_text(folder / "0.json")
    finally:
        proxy.close()


def test_a_lost_answer_to_a_removal_is_no_error(emulator, folder, monkeypatch):
    monkeypatch.setattr("gcsfs.retry.asyncio.sleep", _short_sleep(), raising=False)
    files.write_text(folder / "a", "1")
    proxy = Proxy(emulator, 0.0)
    kinds = itertools.cycle(["lost answer", ""])
    monkeypatch.setattr(proxy, "_choose", lambda: next(kinds))
    try:
        use(proxy.url, monkeypatch)
        (folder / "a").unlink()
        with pytest.raises(FileNotFoundError):
            (folder / "a").unlink()
        (folder / "a").unlink(missing_ok=True)
    finally:
        proxy.close()


def _short_sleep():
    """gcsfs waits for seconds between its own attempts."""
    import asyncio

    whole = asyncio.sleep

    async def sleep(seconds, *rest):
        await whole(min(seconds, 0.005), *rest)

    return sleep
