"""The sets of tokens that sampling keeps, against Hugging Face's logits processors."""

import jax
import numpy as np
import pytest
import scipy.special

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from spirit_jax.generation.sampling import (  # noqa: E402
    Sampling,
    keep_top_k,
    penalise_repetition,
    truncate,
)

# With 2003 nearly equal tokens no top-p of the settings falls between two of them.
ROWS, TOKENS = 8, 2003
ROUNDING = 1e-6  # of a sum of float32 probabilities
SETTINGS = {
    "top_k": {"top_k": 50},
    "top_k of one": {"top_k": 1},
    "top_k of all but one": {"top_k": TOKENS - 1},
    "top_k above the vocabulary": {"top_k": 10 * TOKENS},
    "top_p": {"top_p": 0.9},
    "small top_p": {"top_p": 0.01},
    "large top_p": {"top_p": 0.9999},
    "min_p": {"min_p": 0.02},
    "tiny min_p": {"min_p": 1e-9},
    "min_p of one": {"min_p": 1.0},
    "temperature": {"temperature": 0.3, "top_k": 40, "min_p": 0.001},
    "high temperature": {"temperature": 8.0, "top_p": 0.7},
    "penalty": {"repetition_penalty": 1.7, "top_k": 50},
    "reward": {"repetition_penalty": 0.6, "top_p": 0.8},
    "all": {
        "repetition_penalty": 1.3,
        "temperature": 1.5,
        "top_k": 101,
        "top_p": 0.95,
        "min_p": 0.01,
    },
}


def draw_logits(kind, rng):
    """Logits (rows, tokens): random; with probabilities that underflow; or with many ties."""
    logits_bv = 3 * rng.normal(size=(ROWS, TOKENS)).astype(np.float32)
    if kind == "thin tails":
        logits_bv[:, 10:] -= rng.uniform(20, 150, (ROWS, TOKENS - 10)).astype(np.float32)
    if kind == "close":
        logits_bv *= np.float32(1e-7)  # rounded to the same probability
    if kind == "ties":
        logits_bv = np.round(logits_bv)
    if kind == "masked":
        logits_bv[rng.random((ROWS, TOKENS)) < 0.9] = -np.inf
    return logits_bv


def reference_scores(logits_bv, seen_bt, settings):
    """The logits after Hugging Face's processors, in the order of its `generate`."""
    makers = {
        "repetition_penalty": transformers.RepetitionPenaltyLogitsProcessor,
        "temperature": transformers.TemperatureLogitsWarper,
        "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper,
        "min_p": transformers.MinPLogitsWarper,
    }
    processors = [maker(settings[name]) for name, maker in makers.items() if name in settings]
    chain = transformers.LogitsProcessorList(processors)
    return chain(torch.from_numpy(seen_bt), torch.from_numpy(logits_bv.copy())).numpy()


@jax.jit
def scores(logits_bv, seen_bv, sampling):
    """The logits after our rules."""
    logits_bv = penalise_repetition(logits_bv, seen_bv, sampling.penalty_b[:, None])
    return truncate(logits_bv, sampling)


@pytest.mark.parametrize("kind", ["random", "thin tails", "close", "ties", "masked"])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_kept_tokens_are_those_of_hugging_face(kind, name):
    rng, settings = np.random.default_rng(0), SETTINGS[name]
    logits_bv = draw_logits(kind, rng)
    seen_bt = rng.integers(0, TOKENS, (ROWS, 300))
    seen_bv = np.zeros((ROWS, TOKENS), bool)
    np.put_along_axis(seen_bv, seen_bt, True, axis=1)
    sampling = Sampling(
        temperature_b=np.full(ROWS, settings.get("temperature", 1), np.float32),
        top_k_b=np.full(ROWS, settings.get("top_k", 0), np.int32),
        top_p_b=np.full(ROWS, settings.get("top_p", 1), np.float32),
        min_p_b=np.full(ROWS, settings.get("min_p", 0), np.float32),
        penalty_b=np.full(ROWS, settings.get("repetition_penalty", 1), np.float32),
    )
    expected_bv = reference_scores(logits_bv, seen_bt, settings)
    actual_bv = np.asarray(scores(logits_bv, seen_bv, sampling))
    expected_kept_bv, kept_bv = np.isfinite(expected_bv), np.isfinite(actual_bv)
    both_bv = kept_bv & expected_kept_bv
    assert both_bv.any(axis=1).all()
    np.testing.assert_allclose(actual_bv[both_bv], expected_bv[both_bv], rtol=1e-6)
    if "top_p" in settings:
        # Of equal tokens at its threshold, Hugging Face keeps the first in a sort; ours keeps all.
        least_b1 = np.where(both_bv, actual_bv, np.inf).min(axis=1, keepdims=True)
        expected_kept_bv |= actual_bv == least_b1
        # Rounding of the sum may move the threshold by a token of the thin tail.
        probs_bv = scipy.special.softmax(np.where(kept_bv, actual_bv, expected_bv), axis=1)
        rounded_bv = (kept_bv != expected_kept_bv) & (probs_bv < ROUNDING)
        assert rounded_bv.sum() <= ROWS
        expected_kept_bv ^= rounded_bv
    np.testing.assert_array_equal(kept_bv, expected_kept_bv)


def test_zeros_of_both_signs_are_ties():
    logits_bv = np.float32([[1, 0.0, -0.0, -1], [1, -0.0, 0.0, -1]])
    expected_bv = reference_scores(logits_bv, np.zeros((2, 0), int), {"top_k": 2})
    kept_bv = np.isfinite(jax.jit(keep_top_k)(logits_bv, np.int32([2, 2])))
    np.testing.assert_array_equal(kept_bv, np.isfinite(expected_bv))
