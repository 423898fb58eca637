"""Progress on stderr, as a bar or as lines, while items pass through unchanged."""

from spirit_jax.data import progress


def test_items_pass_through_unchanged_and_lines_report_the_count(monkeypatch, capsys):
    assert list(progress.watch(iter("abc"), "letters", 3)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "SECONDS", -1)
    assert list(progress.watch(iter("abc"), "letters", 3)) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["letters: 0 of 3", "letters: 1 of 3", "letters: 2 of 3"]


def test_a_terminal_shows_a_bar_and_the_loop_may_stop_early(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    for _ in range(2):
        for letter in progress.watch(iter("abc"), "letters", 3):
            if letter == "b":
                break
    assert "letters" in capsys.readouterr().err


def test_counted_items_are_reported_with_their_rate(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS", -1)
    with progress.counting("preparing", 5) as done:
        done(2)
        done(3)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("preparing: 2 of 5 items, ") and first.endswith(" a second")
    assert second.startswith("preparing: 5 of 5 items, ")
