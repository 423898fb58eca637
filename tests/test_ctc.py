"""CTC forced alignment: the best path, independent of batch and of preceding frames."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spirit_jax.models.ctc import ctc_align

FRAMES, LABELS, VOCAB, BLANK = 9, 4, 4, 1  # one shape for all random cases
align = jax.jit(ctc_align, static_argnames="blank")


def plain_best(log_probs_tv, labels, blank):
    """The score of the best path, by the textbook Viterbi recursion."""
    states = [blank]
    for label in labels:
        states += [label, blank]
    best = np.full(len(states), -np.inf)
    best[0] = 0
    for row in log_probs_tv:
        last, best = best, np.full(len(states), -np.inf)
        for s, state in enumerate(states):
            predecessors = [last[s]]
            if s >= 1:
                predecessors.append(last[s - 1])
            if s >= 2 and state != blank and state != states[s - 2]:
                predecessors.append(last[s - 2])
            best[s] = max(predecessors) + row[state]
    return max(best[-2:])


def collapse(path, blank):
    return [label for label, _ in itertools.groupby(path) if label != blank]


def brute_force_best(log_probs_tv, labels, blank):
    frames, vocab = log_probs_tv.shape
    return max(
        (
            sum(log_probs_tv[t, label] for t, label in enumerate(path))
            for path in itertools.product(range(vocab), repeat=frames)
            if collapse(path, blank) == labels
        ),
        default=-np.inf,
    )


def read_path(path, row, frames, labels, blank):
    """The label of every frame."""
    states = np.asarray(path.states_bt)[row, :frames]
    return [labels[s // 2] if s % 2 else blank for s in states]


def pad(cases):
    log_probs = np.full((len(cases), FRAMES, VOCAB), np.nan, np.float32)
    labels = np.full((len(cases), LABELS), 99, np.int32)
    for row, (log_probs_tv, labels_of_row) in enumerate(cases):
        log_probs[row, : len(log_probs_tv)] = log_probs_tv
        labels[row, : len(labels_of_row)] = labels_of_row
    lengths = np.int32([len(log_probs_tv) for log_probs_tv, _ in cases])
    return log_probs, lengths, labels, np.int32([len(labels_of_row) for _, labels_of_row in cases])


@st.composite
def drawn_case(draw, max_frames=FRAMES):
    labels = draw(st.lists(st.sampled_from([0, 2, 3]), max_size=LABELS))
    frames = draw(st.integers(1, max_frames))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return np.log(rng.dirichlet(np.full(VOCAB, 0.3), frames) + 1e-6).astype(np.float32), labels


@settings(max_examples=60, deadline=None)
@given(st.lists(drawn_case(), min_size=3, max_size=3))
def test_alignments_are_the_best_paths(cases):
    path = align(*pad(cases), BLANK)
    for row, (log_probs, labels) in enumerate(cases):
        best = plain_best(log_probs, labels, BLANK)
        score, scores = float(path.scores_b[row]), np.asarray(path.label_scores_bl)[row]
        assert np.isfinite(score) == np.isfinite(best)
        if not np.isfinite(best):
            continue
        frame_labels = read_path(path, row, len(log_probs), labels, BLANK)
        assert collapse(frame_labels, BLANK) == labels
        frame_scores = np.array([log_probs[t, label] for t, label in enumerate(frame_labels)])
        assert frame_scores.sum() == pytest.approx(best, abs=1e-4)
        label_frame_scores = frame_scores[np.array(frame_labels) != BLANK]
        assert score == pytest.approx(label_frame_scores.mean() if labels else 0, abs=1e-4)
        starts, ends = np.asarray(path.starts_bl)[row], np.asarray(path.ends_bl)[row]
        for number, label in enumerate(labels):
            span = slice(starts[number], ends[number])
            assert ends[number] > starts[number] >= (ends[number - 1] if number else 0)
            assert set(frame_labels[span]) == {label}
            assert scores[number] == pytest.approx(frame_scores[span].mean(), abs=1e-4)
        assert sum(ends[: len(labels)] - starts[: len(labels)]) == len(label_frame_scores)


@settings(max_examples=40, deadline=None)
@given(drawn_case(max_frames=5))
def test_the_viterbi_reference_matches_brute_force(case):
    assert plain_best(*case, BLANK) == pytest.approx(brute_force_best(*case, BLANK), abs=1e-4)


def random_case(frames, labels, seed=0):
    rng = np.random.default_rng(seed)
    log_probs = np.log(rng.dirichlet(np.ones(VOCAB), frames)).astype(np.float32)
    return log_probs, list(labels)


def test_a_batch_gives_the_paths_of_each_row_alone():
    cases = [random_case(9, [0, 0, 2, 3]), random_case(4, [3], 1), random_case(6, [], 2)]
    batched = align(*pad(cases), BLANK)
    for row, (log_probs, labels) in enumerate(cases):
        single = align(
            log_probs[None],
            np.int32([len(log_probs)]),
            np.array([labels], np.int32).reshape(1, -1),
            np.int32([len(labels)]),
            BLANK,
        )
        for name, is_per_label in (("states_bt", False), ("starts_bl", True), ("ends_bl", True)):
            size = len(labels) if is_per_label else len(log_probs)
            result, expected = getattr(batched, name)[row, :size], getattr(single, name)[0, :size]
            np.testing.assert_array_equal(result, expected)
        np.testing.assert_allclose(batched.scores_b[row], single.scores_b[0], rtol=1e-6)


def test_labels_that_do_not_fit_score_minus_infinity():
    equal, other = random_case(3, [2, 2]), random_case(3, [2, 0, 3])
    too_many, repeated = random_case(3, [2, 0, 3, 0]), random_case(2, [2, 2])
    path = align(*pad([equal, other, too_many, repeated]), BLANK)
    assert np.isfinite(path.scores_b).tolist() == [True, True, False, False]


@pytest.mark.slow
def test_a_long_silence_before_does_not_change_the_path():
    """In float32, scores summed over many frames lose the digits that decide between paths."""
    rng = np.random.default_rng(0)
    labels, count = np.int32(rng.integers(1, 30, (1, 400))), np.int32([400])
    speech = np.log(rng.dirichlet(np.ones(30), 2000)).astype(np.float32)[None]
    silence = np.full((1, 20_000, 30), -30.0, np.float32)
    silence[..., 0] = -8.0
    single = align(speech, np.int32([2000]), labels, count, 0)
    after = align(np.concatenate([silence, speech], axis=1), np.int32([22_000]), labels, count, 0)
    np.testing.assert_array_equal(after.states_bt[:, 20_000:], single.states_bt)
    np.testing.assert_array_equal(after.starts_bl, single.starts_bl + 20_000)
