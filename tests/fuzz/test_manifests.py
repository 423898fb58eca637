"""Damaged manifests and folders: each item is read correctly or reported, the others unchanged."""

import json
import os
import random
import warnings

import pytest

from fuzz.mutate import STRINGS, attempt, mutate_bytes, mutate_json, mutate_text, seeds
from spirit_jax.audio import AudioPiece
from spirit_jax.data.manifest import read_source
from spirit_jax.errors import InputWarning

ROWS = [
    {"id": "a", "audio": "a.wav", "text": "hello there", "speaker": "ann", "document": "d"},
    {"id": "b", "audio": "b/b.flac", "text": "é ü", "words": [["é", 0.1, 0.4], ["ü", 0.4, 0.9]]},
    {"audio_filepath": "c.wav", "offset": 1.5, "duration": 2.5, "text": "nemo", "lang": "en"},
    {"id": 4, "text": "text alone", "style": "sad", "label": "x"},
]


@pytest.fixture(autouse=True)
def ignore_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        yield


def check(items):
    valid = [item for item in items if not item.problem]
    assert len({item.id for item in valid}) == len(valid)
    for item in items:
        for text in (item.id, item.text, item.speaker, item.document, item.problem):
            assert isinstance(text, str)
            text.encode()  # fails for lone surrogates
        assert isinstance(item.words, tuple) and (item.problem or item.id)
        for word, start, end in item.words:
            assert isinstance(word, str) and isinstance(start, float) and isinstance(end, float)
        if isinstance(item.audio, AudioPiece):
            assert item.audio.start >= 0


@seeds
def test_a_damaged_line_affects_only_its_item(seeds, tmp_path):
    path = tmp_path / "m.jsonl"
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in ROWS]
    path.write_bytes(b"\n".join(lines))
    intact = list(read_source(str(path)))
    assert not any(item.problem for item in intact)
    for seed in seeds:
        damaged = seed % len(lines)  # the index of the damaged line
        mutant = mutate_bytes(lines[damaged], seed).replace(b"\n", b" ").replace(b"\r", b" ")
        path.write_bytes(b"\n".join([*lines[:damaged], mutant, *lines[damaged + 1 :]]))
        items = attempt(lambda: list(read_source(str(path))), seed)
        if items is None:  # a JSON array is not a manifest
            assert damaged == 0 and mutant.strip().startswith(b"["), seed
            continue
        check(items)
        before, after = intact[:damaged], intact[damaged + 1 :]
        assert items[: len(before)] == before, seed
        for item, expected in zip(items[::-1], after[::-1], strict=False):
            assert item == expected or "not unique" in item.problem, seed  # the id of the mutant


@seeds
def test_fields_of_any_value_are_read_or_reported(seeds, tmp_path):
    path = tmp_path / "m.jsonl"
    for seed in seeds:
        row = mutate_json(ROWS[seed % len(ROWS)], seed)
        try:
            text = json.dumps(row, ensure_ascii=seed % 2 == 0)
            path.write_bytes((mutate_text(text, seed) if seed % 5 == 0 else text).encode())
        except UnicodeEncodeError:
            continue  # UTF-8 cannot encode it
        items = attempt(lambda: list(read_source(str(path))), seed)
        if items is not None:
            check(items)


@seeds
def test_damaged_files_raise_only_input_errors(seeds, tmp_path):
    path = tmp_path / "m.jsonl"
    data = b"\r\n".join(json.dumps(row).encode() for row in ROWS)
    for seed in seeds:
        path.write_bytes(mutate_bytes(data, seed))
        items = attempt(lambda: list(read_source(str(path))), seed)
        if items is not None:
            check(items)


@seeds
def test_folders_with_any_file_names_are_read_or_reported(seeds, tmp_path):
    suffixes = (".wav", ".txt", ".flac", ".TXT", ".m4a", ".TextGrid", "", ".")
    for seed in seeds:
        rng = random.Random(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        for _ in range(rng.randrange(1, 6)):
            stem = rng.choice((*STRINGS, "a", "b", ".hidden", "é"))[:40]
            name = os.fsencode(stem.encode("utf-8", "replace")).replace(b"\0", b"")
            name = (
                name.replace(b"/", b"") + rng.choice((b"", b"\xe9")) + rng.choice(suffixes).encode()
            )
            if name.strip(b".") and not os.path.lexists(os.fsencode(folder) + b"/" + name):
                with open(os.fsencode(folder) + b"/" + name, "wb") as file:
                    file.write(mutate_bytes("hellö wörld".encode(), seed))
        items = attempt(lambda folder=folder: list(read_source(str(folder))), seed)
        if items is not None:
            check(items)
