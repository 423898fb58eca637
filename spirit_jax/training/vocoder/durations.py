"""Calibrates the duration predictor, so that predicted durations have the right sum.

Letters: b batch, t runs of equal units.

The predictor learns the mean of log(1 + frames). The exponential of that is below the mean of
frames, so generated speech would be too fast. Calibration adds a constant to all predictions: the
last bias of the predictor is shifted until the sum of durations is that of the recordings.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from spirit_jax.models import hifigan
from spirit_jax.models.hifigan import HifiGan
from spirit_jax.training.vocoder.data import UnitRecording, find_runs

BATCH_ROWS = 32
MAX_SHIFT = 1.0  # of log durations, in both directions


def calibrate(model: HifiGan, params: Any, recordings: Sequence[UnitRecording]) -> Any:
    """Shifts predicted durations so that their sum over recordings is the true one.

    Args:
      model: the vocoder, with a duration predictor.
      params: its parameters.
      recordings: with units.

    Returns:
      The parameters with a new bias.
    """
    runs = [find_runs(recording.ids_tc[:, 0]) for recording in recordings]
    longest = max(len(codes_t) for codes_t, _ in runs)
    predict = jax.jit(functools.partial(model.apply, {"params": params}, method="log_durations"))
    predicted = []
    for start in range(0, len(runs), BATCH_ROWS):
        chunk = [codes_t for codes_t, _ in runs[start : start + BATCH_ROWS]]
        codes_bt, counts_b = (
            np.zeros((BATCH_ROWS, longest), np.int32),
            np.zeros(BATCH_ROWS, np.int32),
        )
        for row, codes_t in enumerate(chunk):
            codes_bt[row, : len(codes_t)], counts_b[row] = codes_t, len(codes_t)
        log_frames_bt = np.asarray(predict(codes_bt, counts_b)[0])
        predicted += [log_frames_bt[row, : len(codes_t)] for row, codes_t in enumerate(chunk)]
    log_frames, true = np.concatenate(predicted), sum(frames_t.sum() for _, frames_t in runs)
    low, high = -MAX_SHIFT, MAX_SHIFT
    for _ in range(20):  # bisection
        middle = (low + high) / 2
        if hifigan.to_frames(log_frames + middle).sum() < true:
            low = middle
        else:
            high = middle
    last = params["duration"]["out"]
    shifted = last | {"bias": last["bias"] + np.float32(high)}
    return params | {"duration": params["duration"] | {"out": shifted}}
