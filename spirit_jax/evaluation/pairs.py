"""Likelihood pairs: is the right ending more likely than the wrong one?

Source: the StoryCloze, WUGGY and BLIMP tasks of arXiv 2402.05755, section 4.1. Context and endings
are both in text, both in speech, or in different modalities.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from spirit_jax import files
from spirit_jax.errors import InputError
from spirit_jax.evaluation.configs import PairsConfig
from spirit_jax.spiritlm import SpiritLM
from spirit_jax.vocab import Modality


def run_pairs(
    lm: SpiritLM, pairs: PairsConfig, encode: Callable[[Any], str], console: Console
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Scores all pairs.

    Args:
      lm: the language model.
      pairs: manifest and modalities.
      encode: recording to unit string; see `tasks.UnitStrings`.
      console: for progress bars.

    Returns:
      (scores by name, a row for each pair). The scores are percentages of pairs whose right ending
      is more likely: "normalised" by mean log probability of a token, "raw" by the sum. Ties count
      half.

    Raises:
      InputError: a line is not a pair, or lacks the text or audio.
    """
    rows = _read(files.as_path(pairs.manifest))[: pairs.limit or None]
    strings: list[tuple[str, str]] = []
    for row in track(rows, f"{pairs.name}: prompts", console=console):
        strings += _prompt_strings(lm, pairs, row, encode)
    with console.status(f"{pairs.name}: scoring"):
        scores = lm.score(strings, pairs.counted or Modality.ARBITRARY)
    sums_n2 = np.array([total for total, _ in scores]).reshape(-1, 2)
    means_n2 = np.array([total / count for total, count in scores]).reshape(-1, 2)
    results = [
        {"id": row["id"], "right": float(right), "wrong": float(wrong)}
        for row, (right, wrong) in zip(rows, means_n2, strict=True)
    ]
    return {"normalised": percent_larger(means_n2), "raw": percent_larger(sums_n2)}, results


def check_pairs(lm: SpiritLM, pairs: PairsConfig, encode: Callable[[Any], str]) -> None:
    """Checks all pairs before anything is encoded.

    Args:
      lm: the language model.
      pairs: manifest and modalities.
      encode: `tasks.check_audio`.

    Raises:
      InputError: a pair cannot be used.
    """
    for row in _read(files.as_path(pairs.manifest))[: pairs.limit or None]:
        _prompt_strings(lm, pairs, row, encode)


def percent_larger(scores_n2: np.ndarray) -> float:
    """Percent of rows whose first score is larger than the second; ties count half."""
    difference_n = scores_n2[:, 0] - scores_n2[:, 1]
    return float(100 * np.mean(np.where(difference_n == 0, 0.5, difference_n > 0)))


def _read(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, row in files.read_json_lines(path):
        if isinstance(row, InputError):
            raise row
        try:
            for side in ("right", "wrong", *(["context"] if "context" in row else [])):
                if row[side].get("audio"):
                    row[side]["audio"] = path.parent / row[side]["audio"]
            rows.append(row | {"id": str(row["id"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"line {number} is not a pair with id, right and wrong"
            raise InputError(f"{path}: {problem}.") from error
    if not rows:
        raise InputError(f"{path}: has no pairs.")
    return rows


def _prompt_strings(lm: SpiritLM, pairs: PairsConfig, row: dict, encode: Callable) -> Sequence:
    """(context, ending) with the right ending, and with the wrong ending."""
    prefix = lm.text_tokenizer.word_prefix

    def content(part: str, modality: str) -> str:
        value = row[part].get("audio" if modality == "speech" else "text")
        if not value:
            raise InputError(f"{row['id']}: its {part} has no {modality}.")
        return encode(value) if modality == "speech" else lm.text_tokenizer.markup.escape(value)

    context_modality = pairs.context or pairs.ending
    marker = {"text": f"[Text]{prefix}", "speech": "[Speech]"}
    context, space = marker[pairs.ending], ""
    if pairs.context and "context" not in row:
        raise InputError(f"{row['id']}: has no context.")
    if "context" in row:
        context = marker[context_modality] + content("context", context_modality)
        if context_modality != pairs.ending:
            context += marker[pairs.ending]
        elif context_modality == "text":
            space = " "
    return [(context, space + content(side, pairs.ending)) for side in ("right", "wrong")]
