"""Damaged WhisperX JSON: words are read with valid times, or an `InputError` names the file."""

import json
import random

from fuzz.mutate import attempt, mutate_bytes, mutate_json, seeds
from spirit_jax.data.word_times import check_words, normalise_words, read_whisperx

TEXT = "so it is well known and 1984 was a year like any other I think"


def make_segments():
    """Three segments of the text, of which the second is not aligned."""
    words = TEXT.split()
    timed = [
        {"word": f" {word}", "start": n / 2, "end": n / 2 + 0.4, "score": 0.9}
        for n, word in enumerate(words)
    ]
    parts = [slice(0, 6), slice(6, 7), slice(7, None)]
    segments = [
        {"start": timed[p][0]["start"], "end": timed[p][-1]["end"], "words": timed[p]}
        | {"text": " ".join(words[p])}
        for p in parts
    ]
    segments[1]["words"] = []
    return {"segments": segments, "language": "en"}


def read_words(path, data, seed):
    path.write_bytes(data)
    words = attempt(lambda: read_whisperx(path), seed)
    if words is not None:
        assert check_words(words, "x") == words, seed
        assert all(normalise_words(word) == [word] for word, _, _ in words), seed
    return words


@seeds
def test_damaged_bytes(seeds, tmp_path):
    data = json.dumps(make_segments()).encode()
    for seed in seeds:
        read_words(tmp_path / "a.json", mutate_bytes(data, seed), seed)


@seeds
def test_damaged_values(seeds, tmp_path):
    for seed in seeds:
        data = json.dumps(mutate_json(make_segments(), seed)).encode()
        read_words(tmp_path / "a.json", data, seed)


@seeds
def test_a_word_with_an_arbitrary_time_loses_no_word(seeds, tmp_path):
    values = (None, "x", float("nan"), float("inf"), -1.0, 0.0, 2.0, 3.5, 99.0, 1e300, [], True)
    for seed in seeds:
        rng = random.Random(seed)
        data = make_segments()
        word = rng.choice(rng.choice(data["segments"][::2])["words"])
        for name in rng.choice((("start",), ("end",), ("start", "end"))):
            word[name] = rng.choice((*values, rng.uniform(0, 8)))
        words = read_words(tmp_path / "a.json", json.dumps(data).encode(), seed)
        assert words is not None, seed
        assert [word for word, _, _ in words] == normalise_words(TEXT), seed
