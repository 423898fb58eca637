"""A run folder: what may change on resume, who may train in it, and how a run is stopped."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_checkpoints import ABSTRACT, write_checkpoints
from tones import write_tones
from training_runs import SharedStepRecipe, run

from spirit_jax import InputError, cli, config, synthetic
from spirit_jax.data.manifest import Item
from spirit_jax.data.samples import SourceConfig
from spirit_jax.data.shard_list import fingerprint
from spirit_jax.data.speech import SpeechDataConfig, read_items
from spirit_jax.files import lock
from spirit_jax.training import loop, record, run_folder
from spirit_jax.training.checkpoints import Checkpoints
from spirit_jax.training.lm.config import LmRunConfig
from spirit_jax.training.lm.recipe import LmRecipe
from spirit_jax.training.metrics import MetricsLog
from spirit_jax.training.pitch.config import PitchRunConfig as PitchConfig
from spirit_jax.training.pitch.recipe import PitchRecipe


def describe(config):
    """The record of a run of the language model."""
    return LmRecipe(config).describe()


def train(config, **options):
    """The lines of a run of the language model, as they come."""
    return loop.train(SharedStepRecipe(config), jax.devices()[:1], **options)


def changed(config, name, value):
    """A config with the setting of a dotted name changed."""
    head, _, rest = name.partition(".")
    if rest:
        value = changed(getattr(config, head), rest, value)
    return dataclasses.replace(config, **{head: value})


SETTINGS = [  # (name, other value, what is done about it)
    ("steps", 9, "free"),
    ("checkpoint_every", 5, "free"),
    ("keep", 1, "free"),
    ("mesh.fsdp", 4, "free"),
    ("remat", "block", "free"),
    ("attention", "xla", "free"),
    ("optimizer.learning_rate", 0.02, "announced"),
    ("optimizer.schedule", "cosine", "announced"),
    ("optimizer.clip_norm", 2.0, "announced"),
    ("step.z_loss", 0.1, "announced"),
    ("compiler_options", {"xla_x": "1"}, "announced"),
    ("eval_batches", 2, "announced"),
    ("seed", 1, "refused"),
    ("compute_dtype", "bfloat16", "refused"),
    ("scan_layers", False, "refused"),
    ("lora.rank", 2, "refused"),
    ("random_init", True, "refused"),
    ("data.seed", 1, "refused"),
    ("data.seq_len", 64, "refused"),
    ("data.batch_rows", 16, "refused"),
    ("data.shards", 4, "refused"),
    ("data.packing_bins", 3, "refused"),
    ("data.cross_documents", True, "refused"),
]


@pytest.mark.parametrize(("name", "value", "kind"), SETTINGS, ids=[name for name, *_ in SETTINGS])
def test_a_changed_setting_is_refused_or_reported_by_name(make_config, name, value, kind):
    before = make_config()
    after = changed(before, name, value)
    changes = record.compare(describe(before), describe(after), LmRunConfig)
    assert [change.name for change in getattr(changes, kind)] == [name]
    assert sum(map(len, vars(changes).values())) == 1
    message = str(getattr(changes, kind)[0])
    assert json.dumps(value) in message and name in message


def test_the_content_at_a_path_is_compared_and_not_the_path(make_config, corpus, tmp_path):
    before = make_config()
    old = describe(before)
    shutil.copytree(corpus, tmp_path / "copy")
    shutil.copytree(before.model, tmp_path / "model")

    def compare(**changes):
        now = describe(dataclasses.replace(before, **changes))
        return record.compare(old, now, LmRunConfig)

    moved = dataclasses.replace(before.data, sources=(SourceConfig(str(tmp_path / "copy")),))
    changes = compare(data=moved, model=str(tmp_path / "model"))
    assert {change.name for change in changes.free} == {"model", "data.sources[0].path"}
    assert not changes.announced + changes.refused

    config_path = tmp_path / "model" / "llama" / "config.json"
    config.write(config.read_mapping(config_path) | {"rope_theta": 5e5}, config_path)
    with next((tmp_path / "model" / "text_tokenizer").iterdir()).open("a") as file:
        file.write(" ")
    names = {change.name for change in compare(model=str(tmp_path / "model")).refused}
    assert {"sizes.rope_theta", "content of model/text_tokenizer"} <= names
    more = dataclasses.replace(before.data, sources=before.data.sources * 2)
    (one_more,) = compare(data=more).refused
    assert (one_more.name, one_more.old, one_more.new) == ("data.sources[1]", None, str(corpus))


def test_another_corpus_under_the_same_path_is_refused(make_config, corpus, tmp_path):
    from spirit_jax.data.toy import write_toy_corpus

    config = make_config()
    data = dataclasses.replace(config.data, sources=(SourceConfig(str(tmp_path / "corpus")),))
    config = dataclasses.replace(config, data=data)
    shutil.copytree(corpus, tmp_path / "corpus")
    before = describe(config)
    shutil.rmtree(tmp_path / "corpus")
    write_toy_corpus(tmp_path / "corpus", 20)
    assert fingerprint(tmp_path / "corpus") != fingerprint(corpus)
    changes = record.compare(before, describe(config), LmRunConfig)
    assert [change.name for change in changes.refused] == ["content of data.sources[0].path"]


def test_settings_of_a_speech_network_are_compared(tmp_path):
    before = PitchConfig(run_dir="a", recipe="pitch")
    for name, value, kind in (
        ("run_dir", "b", "free"),
        ("f0.workers", 2, "free"),
        ("epoch_decay", 0.9, "announced"),
        ("network.num_codes", 5, "refused"),
        ("segment_frames", 100, "refused"),
    ):
        try:
            after = changed(before, name, value)
        except TypeError:
            continue
        made_of = (record.describe(config, {}) for config in (before, after))
        changes = record.compare(*made_of, PitchConfig)
        assert [change.name for change in getattr(changes, kind)] == [name]


def test_a_record_of_an_earlier_version_had_the_defaults(make_config):
    now = describe(make_config())
    old = json.loads(json.dumps(now))
    del old["settings"]["data.packing_bins"], old["settings"]["data.sources[0].flag"]
    assert record.compare(old, now, LmRunConfig) == record.Changes()
    now["settings"]["data.packing_bins"] = 3
    assert record.compare(old, now, LmRunConfig).refused[0].old == 8


class Counter:
    """A stream that is only a number of steps."""

    def set_state(self, state):
        self.state = state


def test_a_run_of_an_earlier_version_resumes_with_a_notice(tmp_path, capsys):
    write_checkpoints(tmp_path / "checkpoints")  # without a record
    config, stream = PitchConfig(run_dir=str(tmp_path), recipe="pitch"), Counter()
    with run_folder.open_run(config, lambda: record.describe(config, {})) as folder:
        checkpoints = folder.open_checkpoints()
        assert int(folder.resume(checkpoints, ABSTRACT, stream).step) == 6
        checkpoints.close()
    assert stream.state == {"step": 6}
    assert "by an earlier version, which did not record" in capsys.readouterr().err
    assert record.is_record(json.loads((tmp_path / "run.json").read_text()))


def test_a_changed_run_is_refused_unless_changes_are_allowed(make_config, tmp_path, capfd):
    """The stream starts again where its place means nothing; the loss is that of the new data."""
    run(make_config("run"), stop_after=4)
    assert record.is_record(json.loads((tmp_path / "run" / "run.json").read_text()))
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    data = dataclasses.replace(make_config().data, shards=4, packing_bins=3)
    other = make_config("run", data=data, steps=5, keep=2)
    with pytest.raises(InputError) as refused:
        next(train(other))
    for part in ("data.shards was 8 and is 4", "data.packing_bins was 8 and is 3", "--allow"):
        assert part in str(refused.value)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics
    capfd.readouterr()
    lines = list(train(other, allow_changes=True))
    assert lines[-1]["step"] == 5
    printed = capfd.readouterr().err
    assert "its stream starts again" in printed and "keep was 3 and is 2" in printed
    assert list(train(other)) == []  # what was taken is recorded
    assert "is already trained for 5 steps" in capfd.readouterr().err
    lower = dataclasses.replace(other, steps=2)
    assert list(train(lower)) == []
    assert "is already trained for 5 steps, and steps is 2" in capfd.readouterr().err
    with pytest.raises(InputError, match="does not fit this network"):
        next(train(dataclasses.replace(other, scan_layers=False), allow_changes=True))


def test_a_signal_saves_before_an_evaluation_which_the_resumed_run_does(
    make_config, tmp_path, capfd
):
    held_out = make_config().data.sources
    config = make_config("run", checkpoint_every=0, eval_every=1, eval_sources=held_out)
    config = dataclasses.replace(config, eval_batches=1)
    lines = []
    for line in train(config):
        lines.append(line)
        signal.raise_signal(signal.SIGINT if len(lines) == 1 else signal.SIGWINCH)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    last = lines[-1]["step"]
    assert last == 2 and "eval_loss" in lines[0] and "eval_loss" not in lines[1]
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [last]
    assert "stopped after step 2" in capfd.readouterr().err
    assert run(dataclasses.replace(config, steps=3))
    log = MetricsLog(tmp_path / "run", 2)
    log.close()
    assert log.last["step"] == 2 and "eval_loss" in log.last


def test_a_signal_before_the_first_step_ends_at_once(tmp_path, capsys):
    config = PitchConfig(run_dir=str(tmp_path / "run"), recipe="pitch")

    def wait():
        signal.raise_signal(signal.SIGTERM)
        time.sleep(5)
        pytest.fail("was not stopped")

    recipe = SimpleNamespace(config=config, describe=wait)  # stopped while it is opened
    assert not list(loop.train(recipe, jax.devices()[:1]))
    assert "stopped before a step was done" in capsys.readouterr().err
    recipe = SimpleNamespace(config=config, describe=lambda: {}, prepare=wait)
    assert not list(loop.train(recipe, jax.devices()[:1]))
    assert "stopped before a step was done" in capsys.readouterr().err
    assert not (tmp_path / "run" / lock.NAME).exists()


HOLD = """
import sys, time
from spirit_jax.files import lock
with lock.hold(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_and_a_dead_one_taken_over(tmp_path, capfd):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"in use by process {other.pid} on .*, since 2"):
        with lock.hold(tmp_path / "run"):
            pytest.fail("two hold it")
    other.kill()  # not waited for yet: what remains of a process holds nothing
    while (tmp_path / "run" / lock.NAME).exists() and other.poll() is None:
        time.sleep(0.01)
    with lock.hold(tmp_path / "run") as held:
        with pytest.raises(InputError, match="in use by process"):
            with lock.hold(tmp_path / "run"):
                pytest.fail("one process holds it twice")
        held.check()
        assert f"process {other.pid}" in capfd.readouterr().err
    assert not (tmp_path / "run" / lock.NAME).exists()
    other.communicate()


def test_a_lock_of_another_host_is_watched(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.5)
    path = tmp_path / lock.NAME
    content = {"token": "x", "host": "far", "pid": 1, "started": "1", "since": "yesterday"}
    path.write_text(json.dumps(content))
    keep = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import os, time\nfor _ in range(200): os.utime({str(path)!r}); time.sleep(.05)",
        ]
    )
    try:
        with pytest.raises(InputError, match="in use by process 1 on far, since yesterday"):
            with lock.hold(tmp_path):
                pytest.fail("two hold it")
    finally:
        keep.kill()
        keep.wait()
    with lock.hold(tmp_path) as held:
        assert "is taken over" in capfd.readouterr().err
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match="was taken over by process 1 on far"):
            held.check()
        path.unlink()
        held.check()  # a lock that someone removed is written again
        shutil.rmtree(tmp_path)
        with pytest.raises(InputError, match="was deleted or moved"):
            held.check()


def test_a_run_folder_that_is_a_file_is_named(make_config, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/run"):
        with pytest.raises(InputError, match="file"):
            next(train(make_config(name)))


def test_a_run_folder_that_is_deleted_ends_the_run(make_config, tmp_path):
    with pytest.raises(InputError, match="was deleted or moved during the run"):
        for _ in train(make_config("run")):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)


def test_damaged_metrics_are_left_out_and_kept_aside(tmp_path, capsys):
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 6)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([*lines[:2], '{"step": [3]}', "\x00{", *lines[3:]]) + "\n" + '{"st')
    log = MetricsLog(tmp_path, 4)
    log.write({"step": 5, "loss": float("nan")})
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 4, 5]
    assert "3 lines cannot be read" in capsys.readouterr().err
    assert len(list(tmp_path.glob("metrics.damaged-*.jsonl"))) == 1


def test_goodput_is_the_share_of_time_of_steps_that_counted(tmp_path, monkeypatch):
    """Not of the first step after a start, nor of steps that are lost and repeated."""
    now = 1000.0
    monkeypatch.setattr("spirit_jax.training.metrics.time.time", lambda: now)

    def write(log, steps):
        nonlocal now
        for step in steps:
            now += 10
            parts = {"seconds_step": 2.0, "seconds_waiting": 6.0, "seconds_input": 2.0}
            log.write({"step": step, "seconds": 10.0} | parts)
        log.close()

    def rows():
        return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]

    write(MetricsLog(tmp_path, 0), range(1, 6))
    assert [row["goodput"] for row in rows()] == pytest.approx([0, 8 / 20, 16 / 30, 24 / 40, 0.64])
    now += 50  # stopped, after a checkpoint at step 3
    write(MetricsLog(tmp_path, 3), range(4, 6))
    assert rows()[-1]["goodput"] == pytest.approx((16 + 8) / (50 + 50 + 20))
    assert rows()[-1]["elapsed_seconds"] == pytest.approx(120)


SMOKE = {"run_dir": "x", "model": "made:base", "data": {"sources": [{"path": "made:30"}]}}


@pytest.mark.parametrize(
    "model", ["made:../../x", "made:", "made:/tmp/x", "made:base/..", "made:x"]
)
def test_only_known_synthetic_models_are_accepted(tmp_path, model):
    settings = config.from_dict(LmRunConfig, SMOKE | {"model": model, "run_dir": str(tmp_path)})
    with pytest.raises(InputError, match="expected made:base or made:expressive"):
        synthetic.write(settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["made:0", "made:²", "made:-1", "made:" + "9" * 5000, "made:../x"])
def test_only_synthetic_corpora_with_a_size_are_accepted(tmp_path, path):
    values = SMOKE | {"data": {"sources": [{"path": path}]}, "run_dir": str(tmp_path)}
    with pytest.raises(InputError, match="is not a synthetic corpus"):
        synthetic.write(config.from_dict(LmRunConfig, values))


def test_a_synthetic_model_that_is_half_written_is_written_again(tmp_path):
    (tmp_path / "made" / "base" / "text_tokenizer").mkdir(parents=True)
    settings = config.from_dict(LmRunConfig, SMOKE | {"run_dir": str(tmp_path)})
    resolved = synthetic.write(settings)
    assert describe(resolved)["contents"].keys() >= {"model/llama", "data.sources[0].path"}
    before = sorted((tmp_path / "made").rglob("*"))
    assert synthetic.write(settings) == resolved == synthetic.resolve(settings)
    assert sorted((tmp_path / "made").rglob("*")) == before


@pytest.mark.slow
def test_the_command_says_where_the_result_is(make_config, tmp_path, monkeypatch, capsys):
    from training_runs import write_config

    path = write_config(tmp_path / "run.yaml", make_config("run"))
    monkeypatch.setattr("spirit_jax.cli.options.prepare_environment", lambda: None)
    monkeypatch.setattr(sys, "argv", ["spirit-jax", "train", "--config", str(path), "steps=2"])
    cli.main()
    output = capsys.readouterr().out
    assert "all 2 steps are done and saved" in output
    assert f"spirit-jax train --config {path} steps=2 --export OUTPUT" in output


def test_recordings_are_known_by_their_content_segments_and_samples_too(tmp_path):
    def write(folder, offset):
        folder.mkdir()
        write_tones(folder, 1)
        lines = [
            {"id": "a", "audio": "0.wav", "offset": offset, "duration": 0.3},
            {"id": "b", "audio": "0.wav", "offset": 0.5, "duration": 0.3},
        ]
        (folder / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return read_items([str(folder / "items.jsonl")])

    items = [
        write(tmp_path / name, offset) for name, offset in (("1", 0.0), ("2", 0.0), ("3", 0.1))
    ]
    first, moved, other = map(record.fingerprint_items, items)
    assert first == moved != other
    waves = [Item("a", (np.full(800, value, np.float32), 16_000)) for value in (0.0, 0.1)]
    assert len({record.fingerprint_items([wave]) for wave in waves}) == 2
    config = PitchConfig(run_dir=str(tmp_path / "run"), recipe="pitch")
    data = SpeechDataConfig((str(tmp_path / "1" / "items.jsonl"),))
    described = PitchRecipe(dataclasses.replace(config, data=data)).describe()
    assert described["contents"]["data.sources"] == first
