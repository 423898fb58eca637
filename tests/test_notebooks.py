"""The notebooks run top to bottom with the small models, and keep small outputs."""

import ast
import base64
import importlib.util
import os
import re
import sys
import types
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient.exceptions import CellExecutionError
from test_docs import unknown

from notebooks import refresh
from spirit_jax import notebook
from spirit_jax.audio import load_audio
from spirit_jax.errors import InputError
from spirit_jax.model_folder import ASSETS

ROOT = Path(__file__).parents[1]
REPOSITORY = r"([\w-]+/[\w-]+)"  # OWNER/REPO until there is a public one; see docs/notebooks.md
LARGEST = 300_000  # bytes
CELL_SECONDS = 600
MODEL = "a random model"  # stands for a folder with random weights: its few layers compile quickly
TINY = (
    "sizes.num_layers=1 sizes.hidden_size=128 sizes.intermediate_size=128 sizes.num_heads=1 "
    "sizes.num_kv_heads=1 sizes.head_dim=128 sizes.vocab_size=1024 data.seq_len=128 remat=none"
)
PARAMETERS = {  # as few steps as show that everything fits together
    "convert-and-run-7b": {"SMALL": MODEL, "BENCH": "--rows 1 --tokens 16"},
    "hear-it": {},
    "plan-a-pod-run": {"CHANGES": TINY, "CHOICES": [("v5e:1x1", 1)], "SLICES": 1},
    "your-voice": {"MODEL": MODEL, "VOCODER_STEPS": 2, "LANGUAGE_MODEL_STEPS": 2},
}
PRINTED = {  # among others, by cells that ask for a GPU, a TPU or gated weights
    "convert-and-run-7b": ["There is no GPU or TPU", "No weights of 7B", "no TPU: choose"],
    "hear-it": ["There is no microphone outside Colab"],
    "plan-a-pod-run": ["v5e:1x1, 1 rows a chip: fits", "dollars", "lower bound"],
    "your-voice": [],
}

NAMES = sorted(PARAMETERS)
NEEDS_COMPILER = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def code_cells(content: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in content.cells if cell.cell_type == "code"]


def printed(content: nbformat.NotebookNode) -> str:
    outputs = [output for cell in code_cells(content) for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def kernel_environment() -> dict[str, str]:
    """One device, as people have, and modules of this checkout."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    return os.environ | {
        "XLA_FLAGS": flags,
        "PYTHONPATH": str(ROOT),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTHONWARNINGS": "ignore",
    }


@pytest.mark.parametrize(
    "name, parameters",
    [
        pytest.param(
            name,
            given,
            marks=[pytest.mark.slow] * is_stored + [NEEDS_COMPILER] * name.startswith("plan"),
            id=f"{name}-as-stored" if is_stored else name,
        )
        for name, parameters in PARAMETERS.items()
        for is_stored, given in ((False, parameters), (True, {}))
        if parameters or not is_stored
    ],
)
def test_a_notebook_runs_top_to_bottom(name, parameters, tmp_path, base_folder):
    content = read(name)
    folder = str(base_folder)
    refresh.set_parameters(
        content, {key: folder if v == MODEL else v for key, v in parameters.items()}
    )
    for cell in code_cells(content):
        cell.outputs, cell.execution_count = [], None
    # The TPU's compiler optimises little, which takes half of the time.
    quick = {"JAX_OPTIMIZATION_LEVEL": "O0"} if parameters else {}
    refresh.execute(content, tmp_path, CELL_SECONDS, kernel_environment() | quick)
    counts = [cell.execution_count for cell in code_cells(content)]
    assert counts == list(range(1, len(counts) + 1))
    assert [text for text in PRINTED[name] if text not in printed(content)] == []


def test_a_notebook_with_a_wrong_cell_is_not_executed(tmp_path):
    content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("raise ValueError(12)")])
    with pytest.raises(CellExecutionError, match=r"raise ValueError\(12\)"):
        refresh.execute(content, tmp_path, 60, kernel_environment())


def test_only_parameters_of_a_notebook_can_be_set():
    with pytest.raises(ValueError, match="OTHER is no parameter"):
        refresh.set_parameters(read("your-voice"), {"OTHER": 1})


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_as_people_need_it(name):
    path, content = ROOT / "notebooks" / f"{name}.ipynb", read(name)
    nbformat.validate(content)
    assert path.stat().st_size < LARGEST
    badge = (
        rf"\(https://colab\.research\.google\.com/github/{REPOSITORY}/blob/main/notebooks/{name}"
    )
    repository = re.search(badge, content.cells[0].source)[1]
    cells = code_cells(content)
    assert ["install" in tags(cell) for cell in cells] == [True] + [False] * (len(cells) - 1)
    assert f'SOURCE = "git+https://github.com/{repository}"' in cells[0].source
    assert "import jax" not in cells[0].source
    assert "check_jax()" in cells[1].source
    for cell in cells:
        ast.parse(cell.source)  # so there are no lines of a shell, nor magics
        assert cell.outputs or "notebook." not in cell.source
        assert not [output for output in cell.outputs if output.output_type == "error"]


@pytest.mark.parametrize("name", NAMES)
def test_commands_in_a_notebook_exist(name):
    source = "\n".join(cell.source for cell in code_cells(read(name))[1:])
    strings = [
        "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
        if isinstance(node, ast.JoinedStr)
        else node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.JoinedStr | ast.Constant)
    ]
    lines = [s for s in strings if isinstance(s, str) and s.startswith("spirit-jax ")]
    assert [line for line in lines if unknown(line)] == []
    assert lines or name == "hear-it"


def test_all_notebooks_install_in_the_same_way():
    first = {re.sub(r"PACKAGES = .*", "", code_cells(read(name))[0].source) for name in NAMES}
    assert len(first) == 1


INSTALLED = ["jax==0.7.2", "jax-cuda12-plugin==0.7.2", "jaxlib==0.7.2", "libtpu==0.1", "other==3"]


@pytest.mark.parametrize("changed", [[], ["jaxlib==0.7.2"]])
def test_the_installation_keeps_the_accelerator_and_says_so_otherwise(
    monkeypatch, tmp_path, changed
):
    """pip is replaced by a function that changes the installed versions."""
    installed, commands = list(INSTALLED), []

    def distributions():
        names = [line.split("==") for line in installed]
        return [types.SimpleNamespace(metadata={"Name": n}, version=v) for n, v in names]

    def pip(command, check):
        commands.append(command)
        for line in changed:
            installed[installed.index(line)] = line.replace("7.2", "9.0")

    monkeypatch.setattr("importlib.metadata.distributions", distributions)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("subprocess.run", pip)
    monkeypatch.chdir(tmp_path)
    address = "git+https://github.com/"
    source = code_cells(read("hear-it"))[0].source
    source = re.sub(re.escape(address) + REPOSITORY, f"{address}OWNER/REPO", source)
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(RuntimeError, match="imported already: restart"):
        exec(source, {})
    monkeypatch.delitem(sys.modules, "jax")
    with pytest.raises(RuntimeError, match="Set SOURCE to the address"):
        exec(source, {})
    assert commands == []
    source = source.replace("OWNER/REPO", "someone/spirit_jax")  # a publisher's command
    if changed:
        with pytest.raises(RuntimeError, match="The installation replaced jaxlib==0.7.2"):
            exec(source, {})
    else:
        exec(source, {})
    assert Path("constraints.txt").read_text().split() == sorted(INSTALLED[:-1])
    assert commands[0][-3:] == [
        *("-c", "constraints.txt"),
        f"{address}someone/spirit_jax",
    ]


def test_a_missing_compiler_is_reported_with_its_command(monkeypatch):
    (cell,) = [cell for cell in code_cells(read("plan-a-pod-run")) if "tpu" in tags(cell)]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install 'jax\[tpu\]'"):
        exec(cell.source, {})


def test_jax_is_checked(monkeypatch):
    assert "(cpu); generates in float32" in notebook.check_jax()
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.1")
    with pytest.raises(InputError, match=r"jax .* is imported, but 0\.0\.1 is installed\. Restart"):
        notebook.check_jax()


def test_commands_of_a_notebook_end_in_one_sentence(tmp_path):
    with pytest.raises(InputError, match="no-such-model"):
        notebook.run("spirit-jax encode no-such-model a.wav")
    with pytest.raises(InputError, match="No such option"):
        notebook.run("spirit-jax encode --wrong")
    with pytest.raises(InputError, match="The command is 'rm'"):
        notebook.run("rm -r /nothing")


@pytest.fixture
def colab(monkeypatch):
    """Colab's two functions, with what the browser replies and which files a user chooses."""
    state = types.SimpleNamespace(reply="", uploaded={}, script="")

    def eval_js(script, timeout_sec):
        state.script = script
        return state.reply

    modules = {
        "google": types.ModuleType("google"),
        "google.colab": types.ModuleType("google.colab"),
    }
    modules["google.colab"].output = types.SimpleNamespace(eval_js=eval_js)
    modules["google.colab"].files = types.SimpleNamespace(upload=lambda: state.uploaded)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return state


def test_a_recording_comes_from_the_browser(colab):
    recording = ASSETS / "request.flac"
    data = base64.b64encode(recording.read_bytes()).decode()
    colab.reply = f"data:audio/webm;codecs=opus,1;base64,{data}"  # the type is wrong
    np.testing.assert_array_equal(notebook.record(2.5), load_audio(recording))
    assert "setTimeout(resolve, 2500)" in colab.script


@pytest.mark.parametrize("reply", ["", "data:", "data:audio/webm;base64,", None])
def test_without_a_microphone_a_file_is_uploaded(colab, reply, capsys):
    recording = ASSETS / "request.flac"
    colab.reply, colab.uploaded = reply, {"mine.mp3": recording.read_bytes()}
    np.testing.assert_array_equal(notebook.record(), load_audio(recording))
    assert "Nothing was recorded" in capsys.readouterr().out


@pytest.mark.parametrize(
    "uploaded, message",
    [
        ({}, "No file was uploaded. Run the cell again."),
        (None, "No file was uploaded. Run the cell again."),
        ({"a.wav": b""}, "The file 'a.wav' is empty. Run the cell again."),
    ],
)
def test_a_cancelled_recording_is_an_error(colab, uploaded, message):
    colab.uploaded = uploaded
    with pytest.raises(InputError) as caught:
        notebook.record()
    assert str(caught.value) == message


def test_a_damaged_reply_is_an_error():
    with pytest.raises(InputError, match="damaged"):
        notebook.decode_reply("data:audio/webm;base64,!!!")


def test_players_keep_the_loudness_and_are_short():
    tone = 0.3 * np.sin(0.2 * np.arange(160_000)).astype(np.float32)
    player = notebook.play(tone, seconds=1)
    played = load_audio(player.data)
    assert player.mimetype == "audio/mpeg" and abs(len(played) - 16_000) < 2_000
    np.testing.assert_allclose(np.abs(played[4_000:12_000]).max(), 0.3, rtol=0.05)
