"""Where a run's numbers go: `metrics.jsonl`, TensorBoard files, and how fast it was."""

import contextlib
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from spirit_jax import files
from spirit_jax.errors import InputError

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
        """Opens the files, without the steps after `first`, which will be done again.

        Lines that cannot be read are left out; unless it is the last alone, which a killed process
        may have cut short, the file with them is kept beside the new one.

        Raises:
          InputError: the files cannot be written.
        """
        self._path = run_dir / "metrics.jsonl"
        self._kept, damaged, last = [], [], 0
        lines = files.read_json_lines(self._path) if self._path.exists() else ()
        for number, line in lines:
            last = number
            if not _is_metrics(line):
                damaged.append(number)
            elif line["step"] <= first:
                self._kept.append(line)
        if damaged and damaged != [last]:
            self._keep_damaged(len(damaged))
        with _writing(self._path):
            self._write_kept()
            self._lines = self._path.open("ab", buffering=0)
            self._board = _Board(run_dir / "tensorboard", first + 1)

    @property
    def last(self) -> dict[str, Any]:
        """The metrics of the last step that was done before; {} if there are none."""
        return self._kept[-1] if self._kept else {}

    def amend(self, metrics: dict[str, float]) -> None:
        """Adds metrics to those of the last step that was done before."""
        self._kept[-1] |= {name: _finite(value) for name, value in metrics.items()}
        with _writing(self._path):
            self._lines.close()
            self._write_kept()
            self._lines = self._path.open("ab", buffering=0)
            self._board.add(metrics, self._kept[-1]["step"])

    def write(self, metrics: dict[str, Any]) -> None:
        """One step; what is not finite is null."""
        plain = {name: _finite(value) for name, value in metrics.items()}
        with _writing(self._path):
            self._lines.write((json.dumps(plain) + "\n").encode())
            self._board.add({n: v for n, v in plain.items() if n != "step"}, metrics["step"])

    def close(self) -> None:
        """Writes what is left."""
        with _writing(self._path):
            self._lines.close()
            self._board.close()

    def _write_kept(self) -> None:
        files.write_text(self._path, "".join(json.dumps(line) + "\n" for line in self._kept))

    def _keep_damaged(self, count: int) -> None:
        kept = self._path.with_name(f"metrics.damaged-{time.strftime('%Y%m%d-%H%M%S')}.jsonl")
        with _writing(kept):
            shutil.copyfile(self._path, kept)
        print(
            f"{self._path}: {count} lines cannot be read and are left out; the file with them is "
            f"kept as {kept.name}.",
            file=sys.stderr,
        )


class _Board:
    """TensorBoard's file of events, written at once and without a thread, so that errors show."""

    def __init__(self, folder: Path, first: int):
        # Imported here, because tensorboardX imports torch where that is installed: seconds.
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._new_event, self._new_scalar = event_pb2.Event, summary.scalar
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = event_file_writer.EventsWriter(str(folder / "events"))
        # Steps from `first` on that an earlier file has are not shown.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.SessionStatus.Value("START"))
        self._write(step=first, session_log=start)

    def add(self, metrics: dict[str, float | None], step: int) -> None:
        """Adds scalars; None is left out."""
        for name, value in metrics.items():
            if value is not None and math.isfinite(value):
                self._write(step=step, summary=self._new_scalar(_board_name(name), value))

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def _write(self, **fields: Any) -> None:
        self._writer.write_event(self._new_event(wall_time=time.time(), **fields))
        self._writer.flush()


def _is_metrics(line: Any) -> bool:
    """Whether a JSON value is the metrics of a step: numbers or null by name."""
    return (
        isinstance(line, dict)
        and type(line.get("step")) is int
        and all(value is None or isinstance(value, int | float) for value in line.values())
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({files.describe(error)}).") from error


def _board_name(name: str) -> str:
    """TensorBoard groups what is before a slash: loss/text, seconds/input."""
    group, _, rest = name.partition("_")
    return f"{group}/{rest or 'all'}"
