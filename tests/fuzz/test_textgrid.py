"""Damaged TextGrids: words are read with valid times, or an `InputError` names the file."""

import re

from test_word_times import LONG, SHORT

from fuzz.mutate import attempt, mutate_bytes, mutate_text, seeds
from spirit_jax.data.word_times import check_words, read_textgrid

FORMS = [
    LONG.format(name="words").encode(),
    SHORT.encode(),
    LONG.format(name="me - words").encode("utf-16"),
]


def read_words(path, data, seed):
    path.write_bytes(data)
    words = attempt(lambda: read_textgrid(path), seed)
    if words is not None:
        assert check_words(words, "x") == words, seed
        assert all(word == word.lower() and word.strip() for word, _, _ in words), seed
    return words


@seeds
def test_damaged_bytes(seeds, tmp_path):
    for seed in seeds:
        read_words(tmp_path / "a.TextGrid", mutate_bytes(FORMS[seed % len(FORMS)], seed), seed)


@seeds
def test_damaged_texts(seeds, tmp_path):
    for seed in seeds:
        text = mutate_text(FORMS[seed % 2].decode(), seed)
        read_words(tmp_path / "a.TextGrid", text.encode("utf-8", "replace"), seed)


@seeds
def test_wrong_counts_and_times_lose_no_word(seeds, tmp_path):
    """One digit is changed: all three words are read, or the file is rejected."""
    digits = [match.start() for match in re.finditer(r"\d", SHORT)]
    for seed in seeds:
        place = digits[seed % len(digits)]
        text = SHORT[:place] + str(seed // len(digits) % 10) + SHORT[place + 1 :]
        words = read_words(tmp_path / "a.TextGrid", text.encode(), seed)
        if words is not None:
            assert [word for word, _, _ in words] == ["don't", "café", "so"], seed


@seeds
def test_truncated_files_are_rejected(seeds, tmp_path):
    text = SHORT.rstrip()
    for seed in seeds:
        cut = text[: seed % len(text)]
        assert read_words(tmp_path / "a.TextGrid", cut.encode(), seed) is None, seed
