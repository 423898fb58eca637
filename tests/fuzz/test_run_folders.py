"""Damaged run folders: checkpoints, record, lock and metrics."""

import json
import shutil

import pytest
from tiny_checkpoints import ABSTRACT, is_as_saved, write_checkpoints

from fuzz.mutate import attempt, mutate_bytes, seeds
from spirit_jax import checksums
from spirit_jax.files import lock
from spirit_jax.training import record, run_folder
from spirit_jax.training.checkpoints import Checkpoints
from spirit_jax.training.metrics import MetricsLog
from spirit_jax.training.pitch.config import PitchRunConfig as RunConfig

LINES = [{"step": step, "loss": 0.5 * step, "seconds": 0.1} for step in range(1, 9)]
OWNER = {"token": "x", "host": "far", "pid": 17, "started": "1", "since": "2026-01-02 03:04:05"}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    write_checkpoints(folder / "checkpoints")
    return folder


@seeds
def test_damaged_checkpoints(seeds, run_dir, tmp_path):
    """The newest checkpoint is restored exactly, or an older one is.

    Every second mutant is of a folder without checksums, as earlier versions wrote. A flipped bit
    may go unnoticed there, but nothing crashes.
    """
    old = shutil.copytree(run_dir / "checkpoints", tmp_path / "checkpoints")
    for step in "246":
        shutil.rmtree(old / step / "checksums")
    for seed in seeds:
        folder = old if seed % 2 else run_dir / "checkpoints"
        paths = sorted(path for path in (folder / "6").rglob("*") if path.is_file())
        path = paths[seed // 2 % len(paths)]
        data = path.read_bytes()
        path.write_bytes(mutate_bytes(data, seed))
        restored = attempt(lambda: Checkpoints(folder).restore(ABSTRACT), seed)  # noqa: B023
        if folder != old:
            assert restored is not None and is_as_saved(restored), seed
            if path.parent.name != "checksums":  # JSON may have an added space
                assert restored.step == (6 if path.read_bytes() == data else 4), seed
        path.write_bytes(data)


@seeds
def test_damaged_records(seeds, tmp_path):
    """A run record is read exactly, or rejected."""
    config = RunConfig(run_dir=str(tmp_path), recipe="pitch")
    path = tmp_path / run_folder.RECORD
    other = record.describe(RunConfig(run_dir=str(tmp_path), recipe="pitch", seed=1), {})
    checksums.write_json(path, other)
    data, now = path.read_bytes(), record.describe(config, {})

    def resume():
        run_folder.refuse({}, now, RunConfig, str(tmp_path), False)
        return "not used"

    for seed in seeds:
        path.write_bytes(mutate_bytes(data, seed))
        result = attempt(resume, seed)
        assert result == "not used" or json.loads(path.read_bytes()) == json.loads(data), seed


@seeds
def test_damaged_locks(seeds, tmp_path, monkeypatch):
    """A damaged lock is taken over or refused; no lock file remains."""
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.0)
    path = tmp_path / lock.NAME

    def take():
        with lock.hold(tmp_path) as held_lock:
            held_lock.check()
        return not path.exists()

    for seed in seeds:
        path.write_bytes(mutate_bytes(json.dumps(OWNER).encode(), seed))
        assert attempt(take, seed), seed


@seeds
def test_damaged_metrics(seeds, tmp_path):
    """Undamaged lines are kept, and new metrics are appended."""
    path = tmp_path / "metrics.jsonl"
    data = "".join(json.dumps(line) + "\n" for line in LINES).encode()
    for seed in seeds:
        path.write_bytes(mutate_bytes(data, seed))
        intact = set(data.splitlines()) & set(path.read_bytes().split(b"\n"))

        def reopen():
            log = MetricsLog(tmp_path, 100)
            log.write({"step": 101, "loss": float("inf")})
            log.close()
            return path.read_text().splitlines()

        lines = attempt(reopen, seed)
        last = json.loads(lines[-1])
        assert last["step"] == 101 and last["loss"] is None
        assert all(line.decode() in lines for line in intact), seed
        assert all(isinstance(json.loads(line)["step"], int) for line in lines)
        shutil.rmtree(tmp_path / "tensorboard")
        for backup in tmp_path.glob("metrics.damaged-*"):
            backup.unlink()
