"""Where a run's numbers go: `metrics.jsonl`, TensorBoard files, and how fast it was."""

import json
import math
import time
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

# Of bfloat16 matmuls a second, by the start of the device's name (published by the makers).
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """The peak of a device, None for one that is not listed."""
    kind = device.device_kind
    return next((peak for name, peak in PEAK_FLOPS.items() if kind.startswith(name)), None)


class Clock:
    """Where the time of a step goes: each part in seconds, since the numbers were last taken."""

    def __init__(self):
        self._parts: dict[str, float] = {}
        self._last = time.perf_counter()
        self._begun = self._last

    def lap(self, part: str) -> None:
        """The time since the last call was spent on `part`."""
        now = time.perf_counter()
        self._parts[part] = self._parts.get(part, 0.0) + now - self._last
        self._last = now

    def take(self) -> dict[str, float]:
        """{"seconds": in all, "seconds_PART": ...}, and begins anew."""
        named = {f"seconds_{part}": seconds for part, seconds in self._parts.items()}
        named["seconds"] = self._last - self._begun
        self._parts, self._begun = {}, self._last
        return named


class MetricsLog:
    """Writes each step's metrics as a line of JSON and as TensorBoard scalars."""

    def __init__(self, run_dir: Path, first: int):
        """Opens the files, without the steps after `first`, which will be done again."""
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= first]
        unfinished = path.with_name(path.name + ".tmp")
        unfinished.write_text("".join(line + "\n" for line in kept))
        unfinished.replace(path)
        self._lines = path.open("a")
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first + 1)

    def write(self, metrics: dict[str, Any]) -> None:
        """One step; what is not finite is null."""
        plain = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._lines.write(json.dumps(plain) + "\n")
        self._lines.flush()
        for name, value in plain.items():
            if value is not None and name != "step":
                self._board.add_scalar(_board_name(name), value, metrics["step"])

    def close(self) -> None:
        """Writes what is left."""
        self._lines.close()
        self._board.close()


def _board_name(name: str) -> str:
    """TensorBoard groups what is before a slash: loss/text, seconds/input."""
    group, _, rest = name.partition("_")
    return f"{group}/{rest or 'all'}"
