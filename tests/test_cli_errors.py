"""Errors of the command line that need no model: one sentence each, before JAX is imported."""

import json
import os
import shlex
import subprocess
import sys

import pytest

# Runs command lines in one process: [status, standard error] of each, then the modules at the end.
RUNNER = """
import contextlib, io, json, sys
from spirit_jax.cli import main
results = []
for args in json.loads(sys.argv[1]):
    sys.argv = ["spirit-jax", *args]
    err, out = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
        try:
            status = main() or 0
        except SystemExit as stop:
            status = stop.code
    results.append([status, err.getvalue()])
print(json.dumps([results, sorted(sys.modules)]))
"""
HEAVY = {"jax", "flax", "grain", "orbax", "matplotlib", "tensorboardX", "torch", "librosa.core"}
MODEL = "spirit-tiny-base"
RUN, BAD_RUN, TASKS, ITEMS = "run.yaml", "bad.yaml", "tasks.yaml", "items.jsonl"
WAV, TSV = "a.wav", "a.tsv"
VOICE = "tasks=[{name: a, manifest: b, ask: a, output: speech, judge: [a], voice: nobody}]"
PAIRS = "pairs=[{name: a, manifest: gone.jsonl}]"
HERE = f"tasks[0].manifest={ITEMS}"
CASES = [
    ("frobnicate", "No such command"),
    ("enocde", "Did you mean 'encode'? See"),
    ("encode", "Missing argument"),
    ("encode spirit-tiny-bse a.wav", "Did you mean spirit-tiny-base?"),
    (f"encode {MODEL} gone.wav", "gone.wav: there is no such file"),
    (f"encode {RUN} a.wav", "is a file; the folder or the name of a model was expected"),
    ("encode . a.wav", "has no speech tokenizer"),
    (f"encode {MODEL} a.wav ''", "The path of audio is empty"),
    ("demo --output ''", "The path of --output is empty"),
    ("prepare '' out", "The path of a source is empty"),
    (f"generate {MODEL} speech:", "'speech:' names no file"),
    (f"resynth {MODEL} gone.wav out.wav", "gone.wav: there is no such file"),
    (f"resynth {MODEL} {RUN} {RUN}", "exists already; choose another name, or give --overwrite"),
    (f"resynth {MODEL} {RUN} .", "is a folder; give the name of a file"),
    (f"resynth {MODEL} {RUN} {RUN}/out.wav", "is a file; expected a folder"),
    (f"resynth {MODEL} {RUN} out.mp3", "give a name that ends in .wav"),
    (f"resynth {MODEL} {RUN} out.wav --speaker nobody", "There is no speaker 'nobody'; known are"),
    (f"resynth {MODEL} {RUN} out.wav --style nobody", "There is no style 'nobody'"),
    (f"generate {MODEL} text:a --speaker nobody", "There is no speaker 'nobody'"),
    (f"generate {MODEL} hello", "'hello' is not an input"),
    (f"generate {MODEL} speech:gone.wav", "gone.wav: there is no such file"),
    (f"generate {MODEL} text:a --to sound", "'sound' is not one of 'text', 'speech'"),
    (f"bench {MODEL} --dtype int4", "'int4' is not one of 'float32', 'bfloat16'"),
    (f"bench {MODEL} --quantization int4", "'int4' is not one of 'int8', 'int8_weights'"),
    ("bench --random 2b", "'2b' is not one of 'tiny', '125m', '1b', '7b'"),
    (f"pack out --units {MODEL} --f0-method yin", "'yin' is not one of 'pyin', 'fcpe'"),
    (f"generate {MODEL} text:a --temperature 0", "use --greedy"),
    (f"generate {MODEL} text:a --max-new-tokens 1.5", "--max-new-tokens"),
    (f"generate {MODEL} text:a --greedy --top-p 0.5", "--top-p would do nothing"),
    (f"generate {MODEL} text:a --to text --follow-markers", "--follow-markers would do nothing"),
    (f"generate {MODEL} text:a --to text --speaker 1", "--speaker would do nothing"),
    (f"generate {MODEL} text:a --output {RUN}", "is a file; expected a folder"),
    ("generate nowhere text:a", "Packaged models are spirit-tiny-base"),
    ("prepare gone.jsonl out", "gone.jsonl: there is no such file or folder"),
    *((f"prepare {RUN} out --shard {shard}", "expected I/N") for shard in ("1/0", "²/2", "3/2")),
    *((f"prepare {RUN} out --shard={shard}", "expected I/N") for shard in ("-1/2", "1", "1/2/3")),
    (f"prepare {RUN} out --threads 0", "threads is 0; expected a number from 1"),
    (f"prepare {RUN} out --shard 1/2 --beam --runner=X", "either --shard or --beam"),
    (f"prepare {RUN} out --shard 1/2 --distributed", "either --shard or --distributed"),
    (f"prepare {ITEMS} out --model spirit-tiny-bse", "Did you mean spirit-tiny-base?"),
    (f"prepare {ITEMS} {RUN}", "is a file; expected a folder"),
    (f"prepare {RUN} out", "run.yaml: is not a source. Expected a manifest (.jsonl, .json"),
    (f"prepare {TSV} out", "a.tsv: is not a source"),
    (f"prepare {WAV} out", "a.wav: is a recording; give the folder"),
    (f"prepare {ITEMS} out --overwrite", "--overwrite is for --plot. A corpus is not replaced"),
    (f"prepare {ITEMS} out --plot {RUN}", "exists already"),
    (f"align {RUN} out.jsonl", "one of --model"),
    (f"align {ITEMS} {RUN} --textgrid .", "exists already; remove it or choose another name"),
    (f"align {ITEMS} out.jsonl --model nowhere", "nowhere: there is no such folder"),
    (f"align {ITEMS} out.jsonl --model {MODEL}", "is a Spirit LM, not a CTC aligner. Expected"),
    (f"align {ITEMS} out.jsonl --model .", "has no network, not a CTC aligner"),
    (f"align {ITEMS} out.jsonl --aligner pocketsphinx --batch-size 0", "batch_size is 0"),
    (f"align {ITEMS} out.jsonl --aligner pocketsphinx --min-score nan", "min_score is nan"),
    (f"align {RUN} out.jsonl --textgrid .", "run.yaml: is not a source"),
    (f"align {ITEMS} out.jsonl --whisperx . --tier words", "--tier would do nothing"),
    (f"new out --speech {MODEL}", "TEXTS (and --pieces) or --start"),
    (f"new out gone.txt --speech {MODEL}", "gone.txt: there is no such file or folder"),
    (f"new out {ITEMS} --speech nowhere", "nowhere: there is no such folder"),
    (f"new {RUN} {RUN} --speech {MODEL}", "exists already"),
    (f"new out {RUN} --speech {MODEL}", "run.yaml: is not a source"),
    (f"new out {RUN} --speech {MODEL} --pieces 0", "--pieces is 0"),
    ("train --config gone.yaml", "gone.yaml: cannot be read"),
    (f"train --config {BAD_RUN}", "'stepz'"),
    (f"train --config {RUN}", "nowhere: there is no such folder"),
    (f"train --config {RUN} model={MODEL}", "corpus: there is no such file or folder"),
    (f"train --config {RUN} steps=[1", "'steps=[1': the value is not valid YAML"),
    (f"train --config {RUN} steps", "'steps' is not an override"),
    (f"train --config {RUN} steps=1 steps=2", "'steps' is given twice"),
    (f"train --config {RUN} recipe=quantizer", "there is no field 'model'"),
    (f"train --config {RUN} recipe=sound", "recipe is 'sound'"),
    (f"train --config {RUN} seed=-1", "seed is -1; expected a whole number from 0"),
    (f"train --config {RUN} data.seed=5000000000", "seed is 5000000000"),
    (f"eval {MODEL} --config {TASKS} --output out seed=-1", "seed is -1"),
    (f"generate {MODEL} text:a --seed -1", "seed is -1"),
    (f"generate {MODEL} text:a --json", "--json is for --transcribe"),
    (f"train --config {RUN} --half", "--half is for --export"),
    (f"train --config {RUN} run_dir={RUN} model={MODEL}", "is a file; expected a folder"),
    (f"pack {RUN} --units {MODEL}", "exists already"),
    ("pack out --units nowhere", "nowhere: there is no such folder"),
    (f"pack out --units {MODEL} --pitch {MODEL}", "both --pitch and --style"),
    (f"pack out --units {MODEL} --f0-method pyin", "--f0-method would do nothing"),
    (f"eval {MODEL} --config gone.yaml --output out", "gone.yaml: cannot be read"),
    (f"eval {MODEL} --config {TASKS} --output out tasks=[]", "neither tasks nor pairs"),
    (f"eval {MODEL} --config {TASKS} --output out '{VOICE}'", "There is no speaker 'nobody'"),
    (f"eval {MODEL} --config {TASKS} --output out", "b.jsonl: there is no such file or folder"),
    (f"eval {MODEL} --config {TASKS} --output out {HERE} tasks[0].examples=gone", "gone: there"),
    (f"eval {MODEL} --config {TASKS} --output out {HERE} tasks[0].judge=[gone]", "no such program"),
    (f"eval {MODEL} --config {TASKS} --output out tasks[0].limit=-1", "limit is -1; expected 0 or"),
    (
        f"eval {MODEL} --config {TASKS} --output out tasks=[] '{PAIRS}'",
        "gone.jsonl: there is no such file",
    ),
    *(
        (f"generate {MODEL} text:a --{option} {value}", f"--{option} is {value}; expected")
        for option, value in (
            ("top-p", "1.5"),
            ("top-p", "nan"),
            ("top-k", "-1"),
            ("seed", "18446744073709551616"),
            ("temperature", "inf"),
            ("repetition-penalty", "-1.0"),
            ("max-new-tokens", "0"),
            ("max-speech-seconds", "-1.0"),
        )
    ),
    ("bench nowhere", "nowhere: there is no such folder"),
    (f"eval nowhere --config {TASKS} --output out", "nowhere: there is no such folder"),
    ("demo --speech gone.wav", "gone.wav: there is no such file"),
    ("demo --output .", "is not empty"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The outcome of every case, run where there are a run config and a task."""
    folder = tmp_path_factory.mktemp("errors")
    (folder / RUN).write_text("{run_dir: run, model: nowhere, data: {sources: [{path: corpus}]}}")
    (folder / BAD_RUN).write_text("{run_dir: run, model: nowhere, stepz: 3}")
    (folder / TASKS).write_text("tasks: [{name: a, manifest: b.jsonl, ask: '[Text]{text}'}]")
    (folder / ITEMS).write_text('{"id": "a", "text": "b"}')
    for name in (WAV, TSV):
        (folder / name).write_text("")
    before = sorted(path.name for path in folder.iterdir())
    commands = json.dumps([shlex.split(command) for command, _ in CASES])
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COORDINATOR_ADDRESS"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", RUNNER, commands]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=True
    )
    outcomes, modules = json.loads(done.stdout)
    assert sorted(path.name for path in folder.iterdir()) == before
    return outcomes, modules


@pytest.mark.parametrize("number", range(len(CASES)), ids=[command for command, _ in CASES])
def test_an_error_is_one_sentence(results, number):
    status, err = results[0][number]
    assert CASES[number][1] in err, err
    assert status in (1, 2) and "Traceback" not in err
    lines = err.splitlines()
    assert lines[0].startswith(("error: ", "skipped: ")) and len(lines) == len(err.split("\n")) - 1
    assert len(lines) == 1 or lines[0].startswith("skipped: ")


@pytest.mark.compat
def test_errors_come_before_heavy_imports(results):
    assert not HEAVY & set(results[1])


@pytest.mark.compat
def test_importing_the_package_is_cheap():
    check = "import sys, spirit_jax; dir(spirit_jax); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert not (HEAVY | {"numpy"}) & set(done.stdout.split())


def test_no_module_imports_another_framework():
    code = """
import importlib, pkgutil, sys, spirit_jax
PAGE = "spirit_jax.serving.page"
for module in pkgutil.walk_packages(spirit_jax.__path__, "spirit_jax."):
    # Beam is imported for --beam alone, torch by some converters, and Gradio takes seconds.
    if not module.name.startswith(("spirit_jax.data.beam", "spirit_jax.convert.", PAGE)):
        importlib.import_module(module.name)
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "spirit_jax.training.metrics" in done.stdout.split()
    frameworks = {"torch", "transformers", "tensorflow", "tensorflow_datasets", "tensorboardX"}
    assert not frameworks & set(done.stdout.split())


def test_metrics_are_written_without_torch(tmp_path):
    """TensorBoard's writer does not import it, and others can import it later."""
    code = f"""
import sys
from pathlib import Path
from spirit_jax.training.metrics import MetricsLog
MetricsLog(Path({str(tmp_path)!r}), 0).close()
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "tensorboardX" in done.stdout.split() and "torch" not in done.stdout.split()


def test_public_names_come_when_they_are_used():
    import spirit_jax

    assert set(spirit_jax.__all__) <= set(dir(spirit_jax))
    assert spirit_jax.Units.__module__ == "spirit_jax.units"
    assert spirit_jax.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'Unit'"):
        _ = spirit_jax.Unit
