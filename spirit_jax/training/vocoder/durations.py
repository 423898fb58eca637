"""Makes the durations that a vocoder predicts add up to those of its recordings.

Letters: b batch, t runs of equal units.

The mean of log(1 + frames) is learnt, and its exponential is less than the mean of frames, so
speech from strings would be too fast. All predictions are shifted by the one number that makes up
for it, which goes into the last bias of the predictor.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from spirit_jax.models import hifigan
from spirit_jax.models.hifigan import HifiGan
from spirit_jax.training.vocoder.data import SpokenUnits, find_runs

ROWS = 32
FARTHEST = 1.0  # that predictions are moved, either way


def settle(model: HifiGan, params: Any, utterances: Sequence[SpokenUnits]) -> Any:
    """The parameters with predicted durations whose sum over recordings is the true one."""
    runs = [find_runs(utterance.ids_tc[:, 0]) for utterance in utterances]
    longest = max(len(codes_t) for codes_t, _ in runs)
    predict = jax.jit(functools.partial(model.apply, {"params": params}, method="log_durations"))
    found = []
    for start in range(0, len(runs), ROWS):
        chunk = [codes_t for codes_t, _ in runs[start : start + ROWS]]
        codes_bt, counts_b = np.zeros((ROWS, longest), np.int32), np.zeros(ROWS, np.int32)
        for row, codes_t in enumerate(chunk):
            codes_bt[row, : len(codes_t)], counts_b[row] = codes_t, len(codes_t)
        log_frames_bt = np.asarray(predict(codes_bt, counts_b)[0])
        found += [log_frames_bt[row, : len(codes_t)] for row, codes_t in enumerate(chunk)]
    log_frames, true = np.concatenate(found), sum(frames_t.sum() for _, frames_t in runs)
    least, most = -FARTHEST, FARTHEST
    for _ in range(20):  # halves
        middle = (least + most) / 2
        if hifigan.to_frames(log_frames + middle).sum() < true:
            least = middle
        else:
            most = middle
    last = params["duration"]["out"]
    moved = last | {"bias": last["bias"] + np.float32(most)}
    return params | {"duration": params["duration"] | {"out": moved}}
