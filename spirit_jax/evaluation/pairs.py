"""Likelihood pairs: does a model find the right ending likelier than the wrong one?

As in the paper's StoryCloze, WUGGY and BLIMP tasks (arXiv 2402.05755, section 4.1), in text, in
speech, and across: the context in one modality, the endings in the other.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from spirit_jax import files, markup
from spirit_jax.errors import InputError
from spirit_jax.evaluation.configs import PairsConfig
from spirit_jax.spiritlm import SpiritLM


def run_pairs(
    lm: SpiritLM, pairs: PairsConfig, hear: Callable[[Any], str], console: Console
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Scores all pairs.

    Returns:
      "normalised" and "raw", percent of pairs whose right ending is likelier, by a token's mean log
      probability and by its sum (ties count half); and a row for each pair.

    Raises:
      InputError: a line that is no pair, or lacks the text or audio.
    """
    rows = _read(Path(pairs.manifest))[: pairs.limit or None]
    scored: list[tuple[str, str]] = []
    for row in track(rows, f"{pairs.name}: prompts", console=console):
        scored += _strings(lm, pairs, row, hear)
    with console.status(f"{pairs.name}: scoring"):
        found = lm.score(scored)
    sums = np.array([total for total, _ in found]).reshape(-1, 2)
    means = np.array([total / count for total, count in found]).reshape(-1, 2)
    told = [
        {"id": row["id"], "right": float(right), "wrong": float(wrong)}
        for row, (right, wrong) in zip(rows, means, strict=True)
    ]
    return {"normalised": likelier(means), "raw": likelier(sums)}, told


def check_pairs(lm: SpiritLM, pairs: PairsConfig, hear: Callable[[Any], str]) -> None:
    """Raises an `InputError` for a pair that cannot be used; `hear` is `tasks.check_audio`."""
    for row in _read(Path(pairs.manifest))[: pairs.limit or None]:
        _strings(lm, pairs, row, hear)


def likelier(scores_n2: np.ndarray) -> float:
    """Percent of rows whose first score is the larger; ties count half."""
    apart = scores_n2[:, 0] - scores_n2[:, 1]
    return float(100 * np.mean(np.where(apart == 0, 0.5, apart > 0)))


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
            problem = f"line {number} is no pair with id, right and wrong"
            raise InputError(f"{path}: {problem}.") from error
    if not rows:
        raise InputError(f"{path}: has no pairs.")
    return rows


def _strings(lm: SpiritLM, pairs: PairsConfig, row: dict, hear: Callable) -> Sequence:
    """(context, ending) with the right ending, and with the wrong one."""
    prefix = lm.text_tokenizer.word_prefix

    def content(part: str, modality: str) -> str:
        value = row[part].get("audio" if modality == "speech" else "text")
        if not value:
            raise InputError(f"{row['id']}: its {part} has no {modality}.")
        return hear(value) if modality == "speech" else markup.escape(value)

    before = pairs.context or pairs.ending
    marker = {"text": f"[Text]{prefix}", "speech": "[Speech]"}
    context, joint = marker[pairs.ending], ""
    if pairs.context and "context" not in row:
        raise InputError(f"{row['id']}: has no context.")
    if "context" in row:
        context = marker[before] + content("context", before)
        if before != pairs.ending:
            context += marker[pairs.ending]
        elif before == "text":
            joint = " "
    return [(context, joint + content(side, pairs.ending)) for side in ("right", "wrong")]
