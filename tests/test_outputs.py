"""Outputs are whole or absent: with two writers of one output, and with a limit on file sizes.

With two writers both results are whole, or the second is refused with one sentence.
"""

import contextlib
import functools
import itertools
import resource
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import numpy as np
import pytest
from rich.console import Console
from tones import write_tones

from spirit_jax import checkpoint, demo, errors, files, new_model
from spirit_jax.audio import load_audio, write_wav
from spirit_jax.cli import checks
from spirit_jax.files import lock
from spirit_jax.quantize import quantize_model

WRITERS = 2


def at_once(call, count=WRITERS):
    """Results of `call(number)` in threads that start together: a value, or an `InputError`."""
    barrier = threading.Barrier(count)

    def attempt(number):
        barrier.wait()
        try:
            return call(number)
        except errors.InputError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(attempt, range(count)))


def convert_export(folder, output):
    pytest.importorskip("torch")
    from convert.export import export_model

    export_model(folder, output)


def convert_llama(folder, output):
    pytest.importorskip("torch")
    from convert import llama

    llama.main(output.parent.parent / "hf", output)


def convert_hubert(folder, output):
    """Into an existing folder."""
    pytest.importorskip("torch")
    from convert.hubert import convert_hubert
    from spirit_jax.models import hubert

    output.mkdir(exist_ok=True)
    encoder, params = hubert.load_both(folder)
    unit = encoder.quantizer, params["quantizer"]
    convert_hubert(output, (encoder.config, params["hubert"]), unit)


COMMANDS = {
    "new": lambda folder, output: new_model.extend_model(output, folder, folder),
    "pack": lambda folder, output: new_model.pack(output, folder, vocoder=folder),
    "quantize": lambda folder, output: quantize_model(folder, output),
    "convert.export": convert_export,
    "convert.llama": convert_llama,
    "convert.hubert": convert_hubert,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_one_folder_is_whole_and_the_second_writer_is_refused(name, base_folder, tmp_path):
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    if name == "convert.llama":
        convert_export(base_folder, tmp_path / "hf")
    results = at_once(lambda _: COMMANDS[name](base_folder, outputs / "out"))
    refusals = [result for result in results if isinstance(result, errors.InputError)]
    assert len(refusals) == 1 and "exists already" in str(refusals[0]), results
    names = [path.name for path in outputs.rglob("*")]
    assert [path.name for path in outputs.iterdir()] == ["out"]
    assert not any(files.UNFINISHED in name or name.endswith(".lock") for name in names)
    for path in outputs.rglob("model.safetensors"):
        checkpoint.load_params(path.parent)  # raises if it is torn


@contextlib.contextmanager
def file_size_limit(size):
    """The limit of ulimit -f, in bytes, within this context."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_limit_on_file_sizes_leaves_nothing_behind(name, base_folder, tmp_path):
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    if name == "convert.llama":
        convert_export(base_folder, tmp_path / "hf")
    with file_size_limit(4096), pytest.raises(errors.InputError) as raised:
        COMMANDS[name](base_folder, outputs / "out")
    message = str(raised.value)
    assert message.startswith(f"{outputs / 'out'}") and "ulimit -f" in message
    assert files.UNFINISHED not in message
    assert [path for path in outputs.rglob("*") if path != outputs / "out"] == []


def test_a_file_of_torch_beyond_the_limit_is_named(base_folder, tmp_path):
    pytest.importorskip("torch")
    from convert.export_speech import export_hifigan
    from spirit_jax.models import hifigan

    vocoder, params = hifigan.load(base_folder / "speech_tokenizer" / "hifigan")
    with file_size_limit(4096), pytest.raises(errors.InputError, match=r"out: .*ulimit -f"):
        with files.whole_folder(tmp_path / "out") as folder:
            export_hifigan(vocoder.config, params, folder / "hifigan")
    assert not list(tmp_path.iterdir())


def test_a_wav_file_beyond_the_limit_is_absent(tmp_path):
    with file_size_limit(4096), pytest.raises(errors.InputError, match=r"a\.wav: .*ulimit -f"):
        write_wav(tmp_path / "a.wav", np.zeros(16_000, np.float32))
    assert not list(tmp_path.iterdir())


def test_fcpe_is_added_once_and_never_removed(fcpe_weights, expressive_folder, tmp_path):
    pytest.importorskip("torch")
    from convert.fcpe import add_to_model
    from spirit_jax import model_folder

    model = shutil.copytree(expressive_folder, tmp_path / "model")
    results = at_once(lambda _: add_to_model(fcpe_weights, model))
    assert results.count(None) == 1, results
    assert any(words in str(results) for words in ("is in use by", "exists already"))
    folder = model / model_folder.SPEECH_TOKENIZER
    assert checkpoint.load_params(folder / "fcpe")
    assert not (folder / "fcpe.lock").exists()


def test_numbered_files_are_never_replaced(tmp_path):
    waves = [np.full(2_000, (number + 1) / 20, np.float32) for number in range(8)]
    tmp_path.joinpath("speech-0.wav").write_text("mine")

    def write(number):
        for wave in (waves[number], waves[number + 1]):
            call = functools.partial(write_wav, samples_t=wave, overwrite=False)
            yield checks.write_numbered(tmp_path, "speech", ".wav", call)

    paths = list(itertools.chain(*at_once(lambda k: list(write(2 * k)), 4)))
    assert len(set(paths)) == 8 and (tmp_path / "speech-0.wav").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"speech-{k}.wav" for k in range(9)]
    for path, wave in zip(paths, waves, strict=True):
        np.testing.assert_allclose(load_audio(path), wave, atol=1e-4)


def test_a_new_file_does_not_replace_one_that_another_process_wrote(tmp_path):
    with pytest.raises(errors.ExistsError, match="exists already"):
        with files.whole_file(tmp_path / "a", overwrite=False) as unfinished:
            (tmp_path / "a").write_text("first")
            unfinished.write_text("second")
    assert (tmp_path / "a").read_text() == "first" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["world", "tasks", "asterisk", "calibrate"])
def test_folders_of_corpora_and_evaluators_are_locked(name, tmp_path):
    pytest.importorskip("pocketsphinx")
    output = tmp_path / "tasks"
    arguments = {
        "world": ("corpora.world", output),
        "tasks": ("corpora.tasks", tmp_path),
        "asterisk": ("corpora.asterisk", output),
        "calibrate": ("evaluators.calibrate", "spirit-tiny-base", output),
    }
    (tmp_path / "details.jsonl").write_text("")
    module, *given = arguments[name]
    with lock.hold(output), pytest.raises(errors.InputError, match="is in use by process .* since"):
        import_module(module).main(*given)


def test_the_folder_of_a_demo_is_locked(tmp_path):
    recording, console = write_tones(tmp_path, 1).replace("manifest.jsonl", "0.wav"), Console()
    with lock.hold(tmp_path / "out", "demo.lock"):
        with pytest.raises(errors.InputError, match="is in use by process .* since"):
            demo.run(tmp_path / "out", recording, None, console)
