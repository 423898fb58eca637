"""Atomic writing, and one clear message for every problem with a file."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from spirit_jax import config, files
from spirit_jax.audio import load_audio
from spirit_jax.errors import InputError


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.whole_file(path) as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    assert files.read_json(path) == {"a": 1}
    assert os.listdir(path.parent) == ["a.json"]


def test_a_folder_is_complete_or_absent_also_after_a_kill(tmp_path):
    path = tmp_path / "model"
    (tmp_path / "model.unfinished").mkdir()  # left by a killed process
    (tmp_path / "model.unfinished" / "old").write_text("")
    with pytest.raises(RuntimeError), files.whole_folder(path) as folder:
        (folder / "a").write_text("")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with files.whole_folder(path) as folder:
        (folder / "a").write_text("")
    assert os.listdir(path) == ["a"]
    with pytest.raises(InputError, match="exists already"), files.whole_folder(path):
        pass


def test_two_writers_of_the_same_output_do_not_interfere(tmp_path):
    path, file = tmp_path / "model", tmp_path / "a.json"
    script = (
        "import sys; from spirit_jax import files\n"
        "with files.whole_folder(sys.argv[1]) as folder, files.whole_file(sys.argv[2]) as name:\n"
        "    (folder / 'a').write_text('first'); name.write_text('first')\n"
        "    print('started', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(path), str(file)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "started\n"
        with files.whole_folder(path) as folder, files.whole_file(file) as name:
            assert not list(folder.iterdir())
            (folder / "a").write_text("second")
            name.write_text("second")
        errors = first.communicate()[1]
    assert "exists already" in errors and first.returncode
    assert (path / "a").read_text() == "second" and file.read_text() in ("first", "second")
    assert sorted(os.listdir(tmp_path)) == ["a.json", "model"]


def test_threads_that_write_the_same_file_each_write_it_completely(tmp_path):
    texts = [str(number) * 10_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: files.write_text(tmp_path / "a", text), texts * 8))
    assert (tmp_path / "a").read_text() in texts
    assert os.listdir(tmp_path) == ["a"]


def test_a_path_that_cannot_be_written_is_rejected(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (lambda p: files.write_text(p, ""), lambda p: files.whole_folder(p).__enter__()):
        with pytest.raises(InputError, match="cannot be written"):
            write(tmp_path / "file" / "inside")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xef\xbb\xbfa\r\nb\r", "a\nb\n"),
        ("a\u2028b\x0cc".encode(), "a\u2028b\x0cc"),
        ("é\n".encode("utf-16"), "é\n"),
    ],
)
def test_texts_with_bom_utf16_and_any_line_ending_are_read(tmp_path, data, expected):
    (tmp_path / "a.txt").write_bytes(data)
    assert files.read_text(tmp_path / "a.txt") == expected


def test_a_text_in_another_encoding_is_rejected_with_its_line_and_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntw\xe9o")
    with pytest.raises(InputError, match="0xe9 at line 2, byte 3"):
        files.read_text(tmp_path / "a.txt")


def test_a_bad_json_line_does_not_affect_the_others(tmp_path):
    path = tmp_path / "a.jsonl"
    deep = b"[" * 100_000
    lines = (
        b'\xef\xbb\xbf{"a": 1}\r',
        '"x\u2028\x85y"'.encode(),
        b'"caf\xe9"',
        b"",
        b'"\\ud83d"',
        b"9" * 400,
        deep,
        b"{",
        b'"\\ud83d\\ude00"',
    )
    path.write_bytes(b"\n".join(lines))
    values = dict(files.read_json_lines(path))
    assert values[1] == {"a": 1} and values[2] == "x\u2028\x85y" and values[9] == "\U0001f600"
    assert 4 not in values
    expected = {
        3: "0xe9 at byte 5",
        5: "lone surrogate",
        6: "400 digits",
        7: "deeply",
        8: "is not JSON",
    }
    for number, message in expected.items():
        assert isinstance(values[number], InputError)
        assert f"line {number} " in str(values[number]) and message in str(values[number])


def test_lack_of_memory_or_open_files_is_not_reported_as_damage():
    try:
        try:
            raise OSError(errno.EMFILE, "Too many open files")
        except OSError as error:
            raise ValueError("not a record file") from error
    except ValueError as error:
        assert "too many files are open" in str(files.unreadable("a", error, "is damaged."))
    memory = RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
    assert "memory is used up" in str(files.unreadable("a", memory, "is damaged."))
    assert str(files.unreadable("a", RuntimeError("bad"), "is damaged.")) == "a: is damaged."


def test_json_lines_that_are_not_objects_are_rejected(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xe2\x80\xa8"}\r\n\r\n{"b": 2}')
    assert files.read_json_objects(path) == [{"a": "\u2028"}, {"b": 2}]
    files.write_json_lines(tmp_path / "new" / "b.jsonl", files.read_json_objects(path))
    assert files.read_json_objects(tmp_path / "new" / "b.jsonl") == [{"a": "\u2028"}, {"b": 2}]
    for data, message in ((b"{}\n[]", "line 2 is not a JSON object"), (b"{", "line 1 is not JSON")):
        path.write_bytes(data)
        with pytest.raises(InputError, match=f"a.jsonl: {message}"):
            files.read_json_objects(path)


def test_integers_of_64_bits_are_read(tmp_path):
    times = [2**63 - 1, -(2**63), 1_795_724_561_729_515_775]  # the last is a time in nanoseconds
    files.write_json(tmp_path / "a.json", times)
    assert files.read_json(tmp_path / "a.json") == times
    with pytest.raises(InputError, match="20 digits"):
        files.parse_json("1" * 20)


def test_json_lines_may_end_with_cr_and_be_concatenated(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"id": 1}\r{"id": 2}\r\xef\xbb\xbf{"id": 3}\r\n\xef\xbb\xbf{"id": 4}')
    assert [value for _, value in files.read_json_lines(path)] == [{"id": n} for n in (1, 2, 3, 4)]


def test_cyclic_exception_causes_are_searched_once():
    """Such as an error of a background thread that is raised again while it is handled."""
    first, second = ValueError("first"), ValueError("second")
    first.__context__, second.__context__ = second, first
    assert files.find_resource_error(first) == "" and files.describe(first) == "first"
    second.__cause__ = OSError(errno.ENOSPC, "full")
    assert files.find_resource_error(first) == "the disk is full"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32"])
def test_text_with_zero_bytes_is_refused(encoding, tmp_path):
    (tmp_path / "a.txt").write_bytes("hello".encode(encoding))
    with pytest.raises(InputError, match="zero byte in line 1"):
        files.read_text(tmp_path / "a.txt")


def test_duplicate_keys_of_a_json_object_are_rejected():
    with pytest.raises(InputError, match="'text' is there twice"):
        files.parse_json('{"text": "x", "id": 1, "text": "y"}')


def test_an_unreadable_input_is_not_reported_as_an_output_error(tmp_path):
    missing, output = tmp_path / "input" / "missing", tmp_path / "output"
    for write in (files.whole_folder, files.whole_file):
        with pytest.raises(InputError) as raised, write(output):
            missing.read_bytes()
        assert str(raised.value) == f"{missing}: cannot be read (No such file or directory)."
        with pytest.raises(InputError, match=f"^{output}: cannot be written"), write(output) as new:
            (new / "no" / "folder").write_bytes(b"")


def test_a_git_lfs_pointer_is_reported_by_every_reader(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(files.LFS_POINTER + b"v1\noid sha256:00\nsize 9\n")
    for read in (
        files.read_bytes,
        files.read_json,
        lambda path: list(files.read_json_lines(path)),
        load_audio,
        lambda path: _raise(files.unreadable(path, ValueError("of a library"), "is damaged.")),
    ):
        with pytest.raises(InputError, match="weights: is a Git LFS pointer"):
            read(path)


def _raise(error):
    raise error


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(number, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(f'{{"a": [1.0, {number}]}}')
    with pytest.raises(InputError, match=rf"a\.json: .*the number {number} is not finite"):
        files.read_json(path)
    ((line, value),) = files.read_json_lines(path)
    assert line == 1 and isinstance(value, InputError)
    with pytest.raises(InputError, match="is not finite"):
        config.read_mapping(path)


def test_a_full_disk_is_named_with_the_final_path_whatever_a_library_raises(tmp_path):
    """Safetensors has its own error class; inner files of a folder know only a temporary name."""

    class LibraryError(Exception):
        pass

    for writer in (files.whole_file, files.whole_folder):
        with pytest.raises(InputError, match=r"/out: cannot be written \(the disk is full\)"):
            with writer(tmp_path / "out"):
                raise LibraryError("I/O error: No space left on device (os error 28)")
        with pytest.raises(LibraryError), writer(tmp_path / "out"):
            raise LibraryError("a fault")
    with pytest.raises(InputError, match=r"/out/a\.txt: cannot be written"):
        with files.whole_folder(tmp_path / "out") as folder, files.whole_file(folder / "a.txt"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())
