"""The command `spirit-jax`, as it is called."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer

import spirit_jax
from spirit_jax import SpeechTokenizer, cli, config, f0, files, model_folder
from spirit_jax.audio import load_audio
from spirit_jax.cli import options, train
from spirit_jax.cli.commands import app
from spirit_jax.errors import InputWarning

# "The quarterly report shows a decline in revenue", of which the packaged models know no sentence.
OTHER = Path(__file__).with_name("quarterly-report.flac")


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command line: (exit status, standard output, standard error)."""
    monkeypatch.setattr("spirit_jax.cli.options.prepare_environment", lambda: None)

    def run_command(*args):
        monkeypatch.setattr(sys, "argv", ["spirit-jax", *map(str, args)])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capsys.readouterr()

    return run_command


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "speech.flac"
    soundfile.write(path, 0.3 * np.sin(np.arange(12_000) / 15), 16_000)
    return path


@pytest.mark.compat
def test_encode_prints_a_line_a_file_and_skips_bad_ones(run, base_folder, recording, tmp_path):
    (tmp_path / "bad.wav").write_text("no audio")
    files = (recording, tmp_path / "bad.wav", tmp_path / "absent.wav")
    status, out, err = run("encode", base_folder, *files)
    (line,) = out.splitlines()
    expected = SpeechTokenizer.from_pretrained(base_folder).encode(recording)
    assert json.loads(line) == {"audio": str(recording)} | expected.to_dict()
    assert status == 0
    assert "skipped: " in err and "bad.wav: is not audio" in err and "absent.wav" in err
    assert "skipped 2 of 3 files." in err
    assert run("encode", base_folder, "--strict", *files)[0] == 1
    assert run("encode", base_folder, tmp_path / "bad.wav")[0] == 1


def test_encode_prints_strings(run, expressive_folder, recording):
    _, out, _ = run("encode", expressive_folder, "--string", recording)
    string = SpeechTokenizer.from_pretrained(expressive_folder).encode_string(recording)
    assert json.loads(out) == {"audio": str(recording), "string": string}


def test_resynth_writes_a_wave_of_the_same_length(run, base_folder, recording, tmp_path):
    target = tmp_path / "new folder" / "out.wav"
    status, out, _ = run("resynth", base_folder, recording, target, "--speaker", "ex02")
    assert status == 0 and str(target) in out
    wave, rate = soundfile.read(target)
    assert rate == 16_000 and abs(len(wave) - 12_000) <= 1280
    expected = SpeechTokenizer.from_pretrained(base_folder)
    expected = expected.decode(expected.encode(recording), speaker_id=1)
    np.testing.assert_allclose(wave, expected, atol=1 / 32_000)


def test_generate_prints_text_and_writes_speech(run, base_folder, recording, tmp_path):
    status, out, _ = run(
        "generate", base_folder, "text:Hello", "--to", "text", "--greedy", "--max-new-tokens", "8"
    )
    assert status == 0 and out.startswith("text: ")
    inputs = ("text:Listen: it says", f"speech:{recording}")
    output = tmp_path / "answers"
    status, out, _ = run(
        "generate",
        base_folder,
        *inputs,
        "--to",
        "speech",
        "--max-new-tokens",
        "60",
        "--output",
        output,
    )
    assert status == 0 and out.startswith("speech: ")
    (path,) = output.iterdir()
    assert soundfile.info(path).samplerate == 16_000


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("encode", "nowhere", "x.wav"), "nowhere"),
        (("generate", "MODEL", "hello"), "'hello' is not an input"),
        (("generate", "MODEL", "speech:gone.wav"), "gone.wav: there is no such file"),
        (("generate", "MODEL", "text:a", "--temperature", "0"), "temperature is 0"),
        (("resynth", "MODEL", "gone.wav", "out.wav"), "gone.wav: there is no such file"),
    ],
)
def test_errors_are_one_line(run, base_folder, args, message):
    args = [base_folder if arg == "MODEL" else arg for arg in args]
    status, _, err = run(*args)
    assert status == 1
    assert err.startswith("error: ") and message in err and len(err.splitlines()) == 1


def test_eval_prints_a_table_and_keeps_answers(run, base_folder, tmp_path):
    (tmp_path / "items.jsonl").write_text('{"id": "a", "text": "every field acts"}\n')
    (tmp_path / "tasks.yaml").write_text(
        f"tasks: [{{name: say, manifest: {tmp_path}/items.jsonl, ask: '[Text]{{text}}'}}]\n"
    )
    options = "--config", tmp_path / "tasks.yaml", "--output", tmp_path / "out"
    status, out, _ = run("eval", base_folder, *options, "seed=3")
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert status == 0 and "say" in out and f"wer {figures['say']['wer']:.1f}" in out
    (row,) = map(json.loads, (tmp_path / "out" / "say.jsonl").open())
    assert row["wanted"] == "every field acts" and row["given"]
    status, _, err = run("eval", base_folder, *options, "tasks=[]")
    assert status == 1 and err == "error: The config has neither tasks nor pairs.\n"


def test_new_makes_a_folder_for_training(run, base_folder, tmp_path):
    (tmp_path / "items.jsonl").write_text('{"id": "a", "text": "every field acts"}\n')
    arguments = "new", tmp_path / "model", tmp_path / "items.jsonl", "--speech", base_folder
    status, out, _ = run(*arguments, "--pieces", 275)
    assert status == 0 and "275 text pieces and 500 units" in out
    assert "exists" in run(*arguments)[2]


@pytest.mark.compat
def test_every_command_helps(run):
    commands = "encode resynth generate prepare align new train eval pack demo".split()
    for args in ((), *((name,) for name in commands)):
        status, out, _ = run(*args, "--help")
        assert status == 0 and "Usage" in out
        command = typer.main.get_command(app)
        command = command.commands[args[0]] if args else command
        texts = [command.help, *(getattr(option, "help", None) for option in command.params)]
        printed = "".join(out.split())
        for text in filter(None, texts):  # words in brackets are no markup
            for words in re.findall(r"\[.*?\]", text, re.DOTALL):
                assert "".join(words.split()) in printed


def test_the_version_is_that_of_the_package(run):
    status, out, _ = run("--version")
    assert status == 0 and out == f"spirit-jax {spirit_jax.__version__}\n"


def test_an_output_is_not_replaced_unasked(run, base_folder, recording, tmp_path):
    target = tmp_path / "out.wav"
    target.write_text("mine")
    status, _, err = run("resynth", base_folder, recording, target)
    assert status == 1 and "exists already" in err and target.read_text() == "mine"
    assert run("resynth", base_folder, recording, target, "--overwrite")[0] == 0


def test_what_a_model_lacks_is_one_error_for_all_files(run, expressive_folder, recording, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(expressive_folder, folder)
    path = folder / "speech_tokenizer" / "speech_tokenizer.json"
    config.write(config.read_mapping(path) | {"f0_method": "fcpe"}, path)
    status, _, err = run("encode", folder, recording, recording)
    assert status == 1 and err.startswith("error: ") and "has no F0 network" in err
    assert len(err.splitlines()) == 1


def test_a_recording_without_units_is_skipped_by_name(run, base_folder, recording, tmp_path):
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 16_000)
    status, out, err = run("encode", base_folder, tmp_path / "short.wav", recording)
    assert status == 0 and len(out.splitlines()) == 1
    assert "skipped: " in err and "short.wav: has no units" in err and "1 of 2 files" in err


def test_the_time_left_is_that_of_recent_steps():
    pace = train.Pace(20)
    for step, seconds in ((1, 60.0), (2, 30.0)):  # these compile
        pace.add(step, seconds)
        assert pace.left is None
    for step in range(3, 11):
        pace.add(step, 2.0)
    assert pace.left == pytest.approx(20.0)


def test_options_that_would_do_nothing_are_refused(run, tmp_path):
    (tmp_path / "run.yaml").write_text("{run_dir: a, model: b}")
    status, _, err = run("train", "--config", tmp_path / "run.yaml", "--half")
    assert status == 1 and "--half is for --export" in err
    given = "prepare", tmp_path, tmp_path / "out", "--shard", "1/2", "--beam", "--runner=X"
    status, _, err = run(*given)
    assert status == 1 and "either --shard or --beam" in err and not (tmp_path / "out").exists()
    starts = "new", tmp_path / "out", "--speech", "spirit-tiny-expressive"
    for more in ((), ("a.jsonl", "--start", "b"), ("--start", "b", "--pieces", "9")):
        status, _, err = run(*starts, *more)
        assert (
            status == 1
            and "TEXTS (and --pieces) or --start" in err
            and not (tmp_path / "out").exists()
        )


@pytest.mark.slow  # test_transcription has its parts, and .ci/run calls the command
@pytest.mark.filterwarnings("error")
def test_the_demo_transcribes_answers_and_synthesises(run, tmp_path):
    text = "Turn on 42 xylophones at 3:30, please! (#5)"
    status, out, _ = run("demo", "--text", text, "--output", tmp_path / "demo")
    assert status == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    # By a speaker that is new to the models: a question and its answer, a request and its intent.
    assert "transcript 'what is two plus two'" in lines and "answer 'two plus two is four'" in lines
    assert "transcript 'turn on the heat in the living room'" in lines
    assert "intent 'activate heat living room'" in lines
    assert sum(line.startswith("scores mean log probability -0.0") for line in lines) == 2
    for name, reference in files.read_json(model_folder.ASSETS / "recordings.json").items():
        path = tmp_path / "demo" / f"{name}.flac"
        assert f"recording {path}: {reference!r}" in lines
        assert path.read_bytes() == (model_folder.ASSETS / path.name).read_bytes()
    assert "do not know xylophones" in out and "cannot read it: '#5'." in out
    assert "rms reads: turn on forty two xylophones at half past three please" in out
    written = {path.name: path for path in (tmp_path / "demo").iterdir() if path.suffix != ".flac"}
    read = {f"read-{name}.wav" for name in ("rms", "slt", "lively", "sad")}
    names = read | {"answer-1.wav", "story.wav"}
    assert names | {"demo.png"} == set(written)
    assert written["demo.png"].read_bytes().startswith(b"\x89PNG")
    for name in names:
        wave = load_audio(written[name])
        assert 0.6 < len(wave) / 16_000 < 8.2 and np.abs(wave).max() > 0.05
        assert not wave[:1600].any() and not wave[-1600:].any()  # players cut the ends off
    pitch = {}
    for manner in ("lively", "sad"):
        f0_t, voiced_t = f0.pyin_f0(load_audio(written[f"read-{manner}.wav"]))
        pitch[manner] = f0_t[voiced_t > 0].mean()
    assert pitch["lively"] > 1.2 * pitch["sad"]
    status, _, err = run("demo", "--output", tmp_path / "demo")
    assert status == 1 and "demo: is not empty" in err


def test_transcripts_are_printed_with_how_sure_the_model_is(run, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(16_000), 16_000)
    paths = [model_folder.ASSETS / "request.flac", tmp_path / "silence.wav", OTHER]
    given = "generate", "spirit-tiny-base", "--transcribe", *(f"speech:{path}" for path in paths)
    status, out, _ = run(*given)
    assert status == 0 and "T:" not in out
    lines = out.splitlines()
    assert lines[0] == f"{paths[0]}: turn on the heat in the living room"
    assert lines[1].startswith("  mean log probability -0.0") and "threshold" in lines[1]
    assert lines[2] == f"{paths[1]}: nothing was said"
    assert lines[3] == f"{paths[2]}: not understood" and len(lines) == 5
    status, out, _ = run(*given, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["audio"] for row in rows] == list(map(str, paths))
    assert [row["understood"] for row in rows] == [True, None, False]
    assert rows[0]["text"] == "turn on the heat in the living room" and rows[0]["log_prob"] > -0.1
    for more, message in {
        ("--to", "text"): "--transcribe only transcribes, so --to would do nothing",
        ("text:hello",): "takes only speech:FILE",
    }.items():
        status, _, err = run(*given, *more)
        assert status == 1 and message in err
    status, _, err = run("generate", "spirit-tiny-base", "text:a", "--json")
    assert status == 1 and "--json is for --transcribe" in err


def test_a_demo_without_words_is_refused(run, tmp_path):
    status, _, err = run("demo", "--text", "...", "--output", tmp_path / "demo")
    assert status == 1 and "no words that can be read" in err
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_a_second_process_uses_the_compilation_cache(base_folder, recording, tmp_path):
    cache = tmp_path / "cache"
    start = "from spirit_jax.cli import main; main()"
    command = [sys.executable, "-c", start, "encode", str(base_folder), str(recording)]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    entries = sorted(path.name for path in cache.iterdir() if "atime" not in path.name)
    assert any("apply" in name for name in entries)  # the network
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert again.stdout == first.stdout
    assert sorted(p.name for p in cache.iterdir() if "atime" not in p.name) == entries


def test_warnings_about_the_input_are_one_line_and_those_of_libraries_none(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options.show_input_warnings()
        warnings.warn("it is long", InputWarning, stacklevel=1)
        warnings.warn("of a library", RuntimeWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: it is long\n"
