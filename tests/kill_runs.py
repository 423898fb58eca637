"""Kills a command at random moments and runs it again: python tests/kill_runs.py NAME FOLDER KILLS

Imports happen once, and every attempt is a fork of this process. JAX has no backend here yet, so a
child may start one. Prints a JSON object with one result for every kill: "same" if the output is
bitwise that of an uninterrupted run, "different", or the error message of the second attempt.
NAME "train" trains FOLDER/run.yaml instead, kills it again and again, and prints what was left.
FOLDER, with the inputs and the outputs, may be in a bucket.
"""

import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from spirit_jax import checksums, files
from spirit_jax.errors import InputError


def prepare(inputs: Path, output: Path) -> None:
    from spirit_jax.data.configs import PrepareConfig
    from spirit_jax.data.prepare import prepare
    from spirit_jax.speech_tokenizer import SpeechTokenizer

    tokenizer = SpeechTokenizer.from_pretrained(inputs / "model")
    config = PrepareConfig(shard_items=2, window=2)
    prepare(str(inputs / "manifest.jsonl"), output / "corpus", tokenizer, config)


def align(inputs: Path, output: Path) -> None:
    from spirit_jax.data.align_corpus import align_corpus

    if not (output / "aligned.jsonl").exists():  # an existing output is never overwritten
        source, grids = inputs / "texts.jsonl", inputs / "grids"
        align_corpus(source, output / "aligned.jsonl", None, textgrid=grids, batch_size=1)


def evaluate(inputs: Path, output: Path) -> None:
    from rich.console import Console

    from spirit_jax.evaluation import run, tasks
    from spirit_jax.generation.config import GenerationConfig
    from spirit_jax.spiritlm import SpiritLM

    lm = SpiritLM.from_pretrained(inputs / "model")
    task = tasks.TaskConfig(
        "task",
        str(inputs / "texts.jsonl"),
        "[Text]{text}[Text]A:",
        generation=GenerationConfig(8),
        limit=3,
    )
    again = tasks.TaskConfig(**vars(task) | {"name": "again"})
    run.evaluate(lm, run.EvalConfig((task, again)), output / "eval", Console(quiet=True))


def export(inputs: Path, output: Path) -> None:
    from training_runs import make_run

    from spirit_jax.training.export import export
    from spirit_jax.training.lm.recipe import LmRecipe

    config = make_run(inputs / "run", inputs / "model", inputs / "corpus")
    if not (output / "model").exists():  # an existing output is never overwritten
        export(LmRecipe(config), output / "model")


def convert(inputs: Path, output: Path) -> None:
    from convert.llama import main

    if not (output / "model").exists():  # an existing output is never overwritten
        main(inputs / "hf", output / "model")


def train(inputs: Path, run_dir: Path) -> None:
    from spirit_jax.training import loop, read_run_config
    from spirit_jax.training.lm.recipe import LmRecipe

    settings = read_run_config(inputs / "run.yaml", [f"run_dir={run_dir}", "steps=1000000"])
    for _ in loop.train(LmRecipe(settings)):
        pass


COMMANDS = {"prepare": prepare, "align": align, "eval": evaluate, "export": export}
COMMANDS["convert"] = convert
MODULES = {  # imported before the forks
    "prepare": ("spirit_jax.data.prepare", "spirit_jax.speech_tokenizer"),
    "align": ("spirit_jax.data.align_corpus",),
    "eval": ("spirit_jax.evaluation.run", "spirit_jax.spiritlm"),
    "export": ("training_runs", "spirit_jax.training.export"),
    "convert": ("convert.llama",),
    "train": ("spirit_jax.training.lm.recipe",),
}
LOGS = Path(tempfile.mkdtemp())
WAIT_SECONDS = 300.0  # for the next checkpoint of a run


def in_child(command: Callable[[Path, Path], None], inputs: Path, output: Path) -> int:
    """Forks a child that runs the command, and returns its id; errors go to LOGS/error."""
    child = os.fork()
    if child:
        return child
    log = os.open(LOGS / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        command(inputs, output)
        os._exit(0)
    except InputError as error:
        (LOGS / "error").write_text(str(error))
        os._exit(1)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(2)


def run(command: Callable[[Path, Path], None], inputs: Path, output: Path) -> str:
    """Runs a command to its end and returns its error message, or ""."""
    _, status = os.waitpid(in_child(command, inputs, output), 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 1:
        return (LOGS / "error").read_text()
    assert code == 0, (LOGS / "log").read_text()[-3000:]
    return ""


def content(folder: Path) -> dict[str, str]:
    """Checksums of every file."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): checksums.of_file(path) for path in paths}


def newest(run_dir: Path) -> int:
    """The step of the newest checkpoint of a run in a bucket; 0 if there is none."""
    paths = (run_dir / "checkpoints").glob("*/commit_success.txt")
    return max((int(path.parent.name) for path in paths), default=0)


def kill_training(inputs: Path, kills: int) -> dict[str, object]:
    """Kills a run, which goes on each time: in its first seconds, or soon after a checkpoint."""
    rng, run_dir, left, killed, waited = random.Random(0), inputs / "run", [0], 0, 20.0
    for number in range(kills):
        child, started = in_child(train, inputs, run_dir), time.monotonic()
        if number % 3:
            while newest(run_dir) <= left[-1] and time.monotonic() < started + WAIT_SECONDS:
                time.sleep(0.1)
            waited = time.monotonic() - started
        time.sleep(rng.uniform(0, 3 if number % 3 else waited))
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != -signal.SIGKILL:
            return {"killed": killed, "error": (LOGS / "log").read_text()[-3000:]}
        killed += 1
        left.append(newest(run_dir))
    return {"killed": killed, "left": left, "seconds": waited}


def main() -> None:
    name, inputs, kills = sys.argv[1], files.as_path(sys.argv[2]).absolute(), int(sys.argv[3])
    for module in MODULES[name]:
        importlib.import_module(module)
    if name == "train":
        print(json.dumps(kill_training(inputs, kills)))
        return
    command, work = COMMANDS[name], inputs / f"kills-{name}"
    for folder in ("compiled", "uninterrupted"):  # the first run compiles, the second is timed
        (work / folder / "out").mkdir(parents=True)
        started = time.monotonic()
        assert not run(command, inputs, work / folder / "out")
        seconds = time.monotonic() - started
    errors, killed, rng = [], 0, random.Random(0)
    for number in range(kills):
        output = work / str(number) / "out"
        output.mkdir(parents=True)
        child = in_child(command, inputs, output)
        time.sleep(rng.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        errors.append(run(command, inputs, output))
    # Only now, since reading arrays may start a backend, after which there can be no forks.
    expected = content(work / "uninterrupted" / "out")
    results = [
        error or ("same" if content(work / str(number) / "out") == expected else "different")
        for number, error in enumerate(errors)
    ]
    print(json.dumps({"killed": killed, "seconds": seconds, "results": results}))


if __name__ == "__main__":
    main()
