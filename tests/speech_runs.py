"""Trainings of speech networks, for tests."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


def changed(config: Any, name: str, **changes: Any) -> Any:
    """The same run but for some changes, in a folder beside that of the run `whole`."""
    run_dir = config.run_dir.replace("whole", name)
    return dataclasses.replace(config, run_dir=run_dir, **changes)


def run(train: Callable, config: Any, devices: int = 1, stop_after: int | None = None) -> list:
    """The lines that a run yields, to its end or to where it is stopped."""
    steps, lines = train(config, jax.devices()[:devices]), []
    for line in steps:
        lines.append(line)
        if len(lines) == stop_after:
            steps.close()
            break
    return lines
