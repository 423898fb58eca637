"""Trainings of speech networks, for tests."""

import dataclasses
from typing import Any

import jax

from spirit_jax.training import loop
from spirit_jax.training.export import newest_state


def changed(config: Any, name: str, **changes: Any) -> Any:
    """The same run but for some changes, in a folder beside that of the run `whole`."""
    run_dir = config.run_dir.replace("whole", name)
    return dataclasses.replace(config, run_dir=run_dir, **changes)


def run(recipe: type, config: Any, devices: int = 1, stop_after: int | None = None) -> list:
    """The lines that a run yields, to its end or to where it is stopped."""
    steps, lines = loop.train(recipe(config), jax.devices()[:devices]), []
    for line in steps:
        lines.append(line)
        if len(lines) == stop_after:
            steps.close()
            break
    return lines


def load_state(recipe: type, config: Any) -> Any:
    """The state of a run's newest checkpoint."""
    return newest_state(recipe(config), jax.devices()[:1], with_optimizer=True)
