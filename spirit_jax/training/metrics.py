"""Metrics of a run: `metrics.jsonl`, TensorBoard files, and timings."""

import contextlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spirit_jax import files
from spirit_jax.errors import InputError


class Clock:
    """Measures the seconds that the parts of a step take."""

    def __init__(self):
        self._parts: dict[str, float] = {}
        self._last = time.perf_counter()
        self._start = self._last

    def lap(self, part: str) -> None:
        """Adds the time since the last call to `part`."""
        now = time.perf_counter()
        self._parts[part] = self._parts.get(part, 0.0) + now - self._last
        self._last = now

    def take(self) -> dict[str, float]:
        """Returns {"seconds": total, "seconds_PART": ...} and resets the clock."""
        named = {f"seconds_{part}": seconds for part, seconds in self._parts.items()}
        named["seconds"] = self._last - self._start
        self._parts, self._start = {}, self._last
        return named


class MetricsLog:
    """Writes each step's metrics as a line of JSON and as TensorBoard scalars."""

    def __init__(self, run_dir: Path, first: int):
        """Opens the files and removes the metrics of steps after `first`, which will be repeated.

        Lines that cannot be read are removed too. A copy of the damaged file is kept, unless only
        its last line is damaged: a killed process may have left that line incomplete.

        Args:
          run_dir: folder of the run.
          first: the step from which the run resumes; 0 for a new run.

        Raises:
          InputError: the files cannot be written.
        """
        self._path = run_dir / "metrics.jsonl"
        self._earlier, damaged, last = [], [], 0
        lines = files.read_json_lines(self._path) if self._path.exists() else ()
        for number, line in lines:
            last = number
            if not _is_metrics(line):
                damaged.append(number)
            elif line["step"] <= first:
                self._earlier.append(line)
        if damaged and damaged != [last]:
            self._copy_damaged(len(damaged))
        self._goodput = _Goodput(self.last, first)
        with _writing(self._path):
            self._write_earlier()
            self._lines = files.GrowingFile(self._path)
            self._board = _Board(run_dir / "tensorboard", first + 1)

    @property
    def last(self) -> dict[str, Any]:
        """The metrics of the step from which the run resumes; {} for a new run."""
        return self._earlier[-1] if self._earlier else {}

    def amend(self, metrics: dict[str, float]) -> None:
        """Adds metrics to the step from which the run resumes; call it before `write`."""
        self._earlier[-1] |= {name: _finite(value) for name, value in metrics.items()}
        with _writing(self._path):
            self._lines.close()
            self._write_earlier()
            self._lines = files.GrowingFile(self._path)
            self._board.add(metrics, self._earlier[-1]["step"])

    def write(self, metrics: dict[str, Any]) -> None:
        """Writes the metrics of a step, with `goodput`; values that are not finite become null."""
        metrics = metrics | self._goodput.after(metrics)
        plain = {name: _finite(value) for name, value in metrics.items()}
        with _writing(self._path):
            self._lines.write((json.dumps(plain) + "\n").encode())
            self._board.add({n: v for n, v in plain.items() if n != "step"}, metrics["step"])

    def flush(self) -> None:
        """Uploads what a bucket does not have yet."""
        with _writing(self._path):
            self._lines.flush()
            self._board.flush()

    def close(self) -> None:
        """Closes the files."""
        with _writing(self._path):
            self._lines.close()
            self._board.close()

    def _write_earlier(self) -> None:
        """Replaces the file by the lines up to the step from which the run resumes."""
        files.write_text(self._path, "".join(json.dumps(line) + "\n" for line in self._earlier))

    def _copy_damaged(self, count: int) -> None:
        copy = self._path.with_name(f"metrics.damaged-{time.strftime('%Y%m%d-%H%M%S')}.jsonl")
        with _writing(copy):
            copy.write_bytes(self._path.read_bytes())
        print(
            f"{self._path}: {count} lines cannot be read and were dropped; the damaged file is "
            f"kept as {copy.name}.",
            file=sys.stderr,
        )


class _Goodput:
    """The share of the wall time since the start of a run that was spent on steps that counted.

    The rest is what steps waited for data, evaluations, checkpoints, compilation (the first step
    after each start), stops, and steps that were lost and repeated.
    """

    def __init__(self, last: dict[str, Any], first: int):
        """Args: those of the step from which the run resumes."""
        ended, elapsed = last.get("time"), last.get("elapsed_seconds")
        self._first = first
        self._useful = (last.get("goodput") or 0.0) * (elapsed or 0.0)
        self._started = ended - elapsed if ended and elapsed else None

    def after(self, metrics: dict[str, Any]) -> dict[str, float]:
        """The metrics "time" (Unix), "elapsed_seconds" (since the run began) and "goodput"."""
        now = time.time()
        if self._started is None:
            self._started = now - metrics.get("seconds", 0.0)
        if metrics["step"] > self._first + 1:
            self._useful += metrics.get("seconds_step", 0.0) + metrics.get("seconds_waiting", 0.0)
        elapsed = max(now - self._started, 1e-9)
        return {"time": now, "elapsed_seconds": elapsed, "goodput": self._useful / elapsed}


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Hides torch from tensorboardX, which else imports it where it is installed, for seconds."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        yield
    finally:
        del sys.modules["torch"]


class _Board:
    """A TensorBoard event file, written synchronously, so that `write` raises its errors."""

    def __init__(self, folder: Path, first: int):
        with _without_torch():
            from tensorboardX import event_file_writer, summary
            from tensorboardX.proto import event_pb2

        self._new_event, self._new_scalar = event_pb2.Event, summary.scalar
        self._upload, self._scratch = None, None
        local = folder
        if files.is_bucket(folder):
            self._scratch = tempfile.TemporaryDirectory(prefix="spirit-jax-")
            local = Path(self._scratch.name)
        local.mkdir(parents=True, exist_ok=True)
        self._writer = event_file_writer.EventsWriter(str(local / "events"))
        if local != folder:
            (path,) = local.iterdir()
            self._upload = files.Upload(path, folder / path.name)
        # With this event, TensorBoard ignores the steps from `first` on in earlier files.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.SessionStatus.Value("START"))
        self._write(self._new_event(step=first, session_log=start))

    def add(self, metrics: dict[str, float | None], step: int) -> None:
        """Adds scalars; None is skipped."""
        event = self._new_event(step=step)  # one for all scalars, since each event is flushed
        for name, value in metrics.items():
            if value is not None and math.isfinite(value):
                event.summary.MergeFrom(self._new_scalar(_board_name(name), value))
        self._write(event)

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
        self.flush()
        if self._scratch is not None:
            self._scratch.cleanup()

    def flush(self) -> None:
        """Uploads what a bucket does not have yet."""
        if self._upload is not None:
            self._upload.now()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)
        self._writer.flush()
        if self._upload is not None:
            self._upload.when_due()


def _is_metrics(line: Any) -> bool:
    """Whether a JSON value is the metrics of a step: an object of numbers and nulls."""
    return (
        isinstance(line, dict)
        and type(line.get("step")) is int
        and all(value is None or isinstance(value, int | float) for value in line.values())
    )


def _finite(value: float) -> float | None:
    """The value, or None for NaN and infinity."""
    return value if math.isfinite(value) else None


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raises an `InputError` that names the file if it cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({files.describe(error)}).") from error


def _board_name(name: str) -> str:
    """The name for TensorBoard, which groups by the part before a slash: loss/text."""
    group, _, rest = name.partition("_")
    return f"{group}/{rest or 'all'}"
