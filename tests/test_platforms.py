"""Commands do not start libtpu where there is no TPU; it would print a page of errors."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from spirit_jax.cli import options

PLATFORMS = "JAX_PLATFORMS"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with libtpu and nothing but a CPU; sets what differs, and returns the platforms."""
    for name in (PLATFORMS, "JAX_FORCE_TPU_INIT", "PJRT_NAMES_AND_LIBRARY_PATHS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def chosen(packages=("libtpu",), plugins=(), devices=(), **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for device in devices:
            (tmp_path / device).write_text("")
        monkeypatch.setattr(options, "find_spec", lambda name: name in packages or None)
        monkeypatch.setattr(options, "entry_points", lambda group: plugins)
        monkeypatch.setattr(options, "TPU_DEVICES", [f"{tmp_path}/accel*", f"{tmp_path}/vfio"])
        options.avoid_libtpu()
        return os.environ.get(PLATFORMS)

    return chosen


def test_the_cpu_is_chosen_if_there_is_nothing_else(machine):
    assert machine() == "cpu"


@pytest.mark.parametrize(
    "differs",
    [
        {"packages": ()},
        {"packages": ("libtpu", "jax_plugins")},
        {"plugins": ("xla_cuda12",)},
        {"devices": ("accel0",)},
        {"devices": ("vfio",)},
        {"JAX_FORCE_TPU_INIT": "1"},
    ],
    ids=str,
)
def test_jax_chooses_if_there_may_be_another_device(machine, differs):
    assert machine(**differs) is None


def test_what_the_user_chose_stays(machine):
    assert machine(JAX_PLATFORMS="tpu,cpu") == "tpu,cpu"


@pytest.mark.skipif(
    find_spec("libtpu") is None or find_spec("jax_plugins") is not None,
    reason="libtpu is not installed, or a GPU's plugin is",
)
def test_a_command_starts_without_messages_of_libtpu():
    code = (
        "from spirit_jax.cli import options; options.prepare_environment()\n"
        "import jax; print(jax.default_backend())"
    )
    environment = {name: value for name, value in os.environ.items() if name != PLATFORMS}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    if done.stdout == "cpu\n":
        assert done.stderr == ""
