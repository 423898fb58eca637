"""Eight simulated devices, no network, and programs compiled once a run, for every test."""

import atexit
import gc
import os
import shutil
import tempfile
from importlib import metadata

# Small tests spend most of their time in the compiler, so it optimises little here. Without the
# emitters, which build every fusion in MLIR, a training step compiles three times faster.
FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # XLA aborts at a flag it does not know
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many workers run as there are cores
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the workers of one run share it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="spirit_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

pytest.register_assert_rewrite("speech_runs")  # tests import it, and use it as a plugin

# A file runs whole in one worker. The longest come first, so that both workers end together.
LONGEST = (
    "notebooks golden serving training_run train_hubert train_vocoder engine stream int8 streaming "
    "training_starts generation training_processes prepare open_golden cli remote page plan "
    "transcription train_pitch train_style llama speech_tokenizer run_folder hub align tasks "
    "training_step spiritlm site package batch release"
).split()


def pytest_collection_modifyitems(items):
    """Puts the files that take longest first."""
    ranks = {f"test_{name}": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


def pytest_collection_finish():
    """Lets the garbage collector look less often at the millions of objects that stay.

    By default it takes a fourteenth of the time of tests that compile.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "release_tiny"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The tiny release-format checkpoint tree with what the release computes from it."""
    if not GOLDEN.is_dir():
        pytest.skip(f"the golden tree is not at {GOLDEN}")
    return GOLDEN


@pytest.fixture(scope="session")
def cases() -> Path:
    """Inputs that real tools write."""
    folder = GOLDEN.parents[1] / "cases"
    if not folder.is_dir():
        pytest.skip(f"the cases are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    """A small model folder of kind base, with random weights."""
    return _random_model(tmp_path_factory, "base")


@pytest.fixture(scope="session")
def expressive_folder(tmp_path_factory) -> Path:
    """A small model folder of kind expressive, with random weights and pyin for F0."""
    return _random_model(tmp_path_factory, "expressive")


def _random_model(tmp_path_factory, kind: str) -> Path:
    from spirit_jax.random_model import write_random_model

    folder = tmp_path_factory.mktemp(kind) / "model"
    write_random_model(folder, kind)
    return folder


@pytest.fixture(scope="session")
def fcpe_weights() -> Path:
    """FCPE's real weights, from the MIT-licensed package torchfcpe."""
    path = os.environ.get("SPIRIT_FCPE_PT")
    if not path:
        pytest.skip("SPIRIT_FCPE_PT does not name torchfcpe's assets/fcpe_c_v001.pt")
    return Path(path)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A small prepared corpus."""
    from training_runs import write_corpus

    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder


@pytest.fixture
def make_config(corpus, expressive_folder, tmp_path, monkeypatch):
    """Makes short training runs on the corpus, by the name of their folder."""
    from training_runs import make_run

    from spirit_jax.data import pipeline

    monkeypatch.setattr(pipeline, "MEASURED_SAMPLES", 16)  # quick to start

    def make(name="run", *mesh, **changes):
        return make_run(tmp_path / name, expressive_folder, corpus, *mesh, **changes)

    return make


@pytest.fixture(scope="session")
def emulator():
    """The address of a storage emulator."""
    import bucket_server

    with bucket_server.run() as url:
        yield url


@pytest.fixture
def bucket(emulator, monkeypatch, tmp_path):
    """The URL of an empty folder in the emulator, which this process uses."""
    import bucket_server

    bucket_server.use(emulator, monkeypatch)
    yield f"gs://{bucket_server.BUCKET}/{tmp_path.name}-{os.getpid()}"
    bucket_server.forget()
