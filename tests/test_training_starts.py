"""Runs from a model folder to an exported one: LoRA, evaluation, TensorBoard, profiles."""

import dataclasses
import json
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
from marks import slow
from tensorboardX.proto.event_pb2 import Event
from training_runs import STEPS, run

from spirit_jax import InputError, SpiritLM, checkpoint, config
from spirit_jax.data.pipeline import Stream
from spirit_jax.models import llama, llama_weights
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.random_model import write_random_model
from spirit_jax.text import load_text_tokenizer
from spirit_jax.training.configs import LoraConfig, MeshConfig, StepConfig
from spirit_jax.training.export import export, newest_state
from spirit_jax.training.lm import lora
from spirit_jax.training.lm.config import LmRunConfig
from spirit_jax.training.lm.loss import Objective
from spirit_jax.training.lm.recipe import LmRecipe
from spirit_jax.vocab import Vocab

LORA = LoraConfig(rank=2, alpha=8.0)
needs_qwix = pytest.mark.skipif(
    metadata.version("qwix") < "0.1.8", reason="LoRA needs qwix 0.1.8, whose flax is newer"
)


def read_params(folder):
    return checkpoint.flatten(checkpoint.load_params(folder / "llama"))


@pytest.mark.parametrize("scan", [True, slow(False)])
def test_an_exported_run_generates_and_can_be_trained_further(make_config, tmp_path, scan):
    settings = make_config(scan_layers=scan)
    losses = run(settings)
    assert export(LmRecipe(settings), tmp_path / "model") == STEPS
    prompt = [("text", "the object")]
    pieces = SpiritLM.from_pretrained(tmp_path / "model").generate(
        prompt, output_modality="text", max_new_tokens=3
    )
    assert len(pieces) <= 1
    changed = read_params(tmp_path / "model")
    for name, before in read_params(Path(settings.model)).items():
        assert changed[name].shape == before.shape and not np.array_equal(changed[name], before)
    again = dataclasses.replace(
        settings, run_dir=str(tmp_path / "again"), model=str(tmp_path / "model")
    )
    assert run(again, stop_after=1)[0] < losses[0]
    with pytest.raises(InputError, match="exists already"):
        export(LmRecipe(settings), tmp_path / "model")


def test_a_run_without_a_checkpoint_cannot_be_exported(make_config, tmp_path):
    with pytest.raises(InputError, match="has no checkpoint yet"):
        export(LmRecipe(make_config("none")), tmp_path / "model")
    assert not list(tmp_path.glob("model*"))


@needs_qwix
def test_lora_starts_from_the_model_and_trains_adapters_and_new_rows(make_config, tmp_path):
    plain = run(make_config("plain"), stop_after=1)
    settings = make_config("lora", lora=LORA)
    losses = run(settings)
    np.testing.assert_allclose(losses[0], plain[0], rtol=1e-6)
    assert losses[-1] < losses[0]
    export(LmRecipe(settings), tmp_path / "merged")
    source = Path(settings.model)
    vocab = config.read(Vocab, source / "vocab.json")
    before, after = read_params(source), read_params(tmp_path / "merged")
    for name, old in before.items():
        new = after[name]
        if name == "embed/embedding":
            old, new = old.T, new.T
        if name in ("embed/embedding", "head"):
            np.testing.assert_array_equal(new[:, : vocab.text_size], old[:, : vocab.text_size])
            new_tokens = slice(vocab.text_size, vocab.size)
            assert not np.array_equal(new[:, new_tokens], old[:, new_tokens])
        elif name.endswith("kernel"):
            change = (new - old).reshape(old.shape[0], -1)
            rows = old.shape[0] * old.shape[1] if "/o/" in name else old.shape[0]
            assert 0 < np.linalg.matrix_rank(change.reshape(rows, -1), tol=1e-5) <= LORA.rank
        else:
            np.testing.assert_array_equal(new, old)


@needs_qwix
@pytest.mark.parametrize(
    ("dtype", "family"),
    [
        (jnp.bfloat16, "llama"),
        (jnp.float32, "llama"),
        (jnp.bfloat16, "qwen2"),
        (jnp.bfloat16, "qwen3"),
    ],
)
def test_only_kernels_have_adapters(dtype, family):
    """Biases and norms, which some families have in addition to a Llama's parameters, have none."""
    cfg = LlamaConfig(64, 16, 32, 2, 2, 2, 8, family=family)
    model = lora.add_to(llama.Llama(cfg, dtype, scan_layers=True), LORA)
    paths = [
        str(path) for path, _ in jax.tree.leaves_with_path(llama_weights.abstract_params(model))
    ]
    adapted = [path for path in paths if "lora" in path]
    assert adapted and all("kernel" in path for path in adapted)
    assert any("bias" in path for path in paths) == (family == "qwen2")
    assert any("q_norm" in path for path in paths) == (family == "qwen3")


@needs_qwix
@pytest.mark.slow
def test_a_merged_model_has_the_same_loss_as_its_adapters(make_config, tmp_path):
    settings = make_config("lora", lora=LORA)
    run(settings, stop_after=5)
    assert run(settings)  # from the newest checkpoint
    export(LmRecipe(settings), tmp_path / "merged")
    (loss_with_adapters,) = run(dataclasses.replace(settings, steps=STEPS + 1))
    folder = tmp_path / "merged"
    vocab = config.read(Vocab, folder / "vocab.json")
    stream = Stream(settings.data, load_text_tokenizer(folder / "text_tokenizer", vocab), vocab)
    for _ in range(STEPS):  # skips the batches of the first steps
        next(stream)
    model, params = llama_weights.load(folder / "llama")
    assert model.config.num_layers == 2
    objective = Objective(model, vocab)
    sums = jax.jit(objective.losses)(params, jax.tree.map(jnp.asarray, next(stream)))
    np.testing.assert_allclose(float(sums.loss / sums.count), loss_with_adapters, rtol=1e-5)


@pytest.mark.slow
@needs_qwix
def test_a_resumed_lora_run_equals_an_uninterrupted_one(make_config):
    uninterrupted = run(make_config("uninterrupted", lora=LORA))
    run(make_config("stopped", lora=LORA), stop_after=4)
    resumed = run(make_config("stopped", lora=LORA))
    assert resumed == uninterrupted[-len(resumed) :]


@pytest.mark.slow
@needs_qwix
def test_checkpoints_with_lora_have_no_frozen_parameters(make_config, tmp_path):
    """These are read from the base model again, so a run with a changed base model is refused."""
    settings = make_config("lora", lora=LORA)
    losses = run(settings, stop_after=4)
    (folder,) = (tmp_path / "lora" / "checkpoints").glob("[0-9]*")
    arrays = ocp.metadata(folder).custom_metadata["arrays"]
    assert not [name for name in arrays if name.startswith("extra")]
    assert run(settings) and len(losses) == 4
    write_random_model(tmp_path / "other", "expressive", seed=1)
    other = dataclasses.replace(settings, model=str(tmp_path / "other"), steps=STEPS + 1)
    with pytest.raises(InputError, match="content of model/llama"):
        run(other)


@pytest.mark.slow
@needs_qwix
def test_lora_has_the_same_losses_on_a_mesh(make_config):
    on_one_device = run(make_config("one", lora=LORA))
    on_mesh = run(make_config("mesh", MeshConfig(fsdp=4, tensor=2), lora=LORA), devices=8)
    np.testing.assert_allclose(on_mesh, on_one_device, rtol=1e-5)


@pytest.mark.slow
def test_every_evaluation_uses_the_same_held_out_batches(make_config, corpus, tmp_path):
    held_out = dataclasses.replace(make_config().data.sources[0], name="held", format="asr")
    settings = make_config("eval", eval_sources=(held_out,), eval_every=3, eval_batches=2)
    run(settings)
    lines = [json.loads(t) for t in (tmp_path / "eval" / "metrics.jsonl").read_text().splitlines()]
    evaluated = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    assert list(evaluated) == [3, 6, 7]
    assert evaluated[7] < evaluated[3]
    # The first evaluations of a new recipe have the batches of the run's third one.
    recipe, devices = LmRecipe(settings), jax.devices()[:1]
    mesh = settings.mesh.make(devices)
    state = newest_state(recipe, devices, with_optimizer=True)
    with jax.set_mesh(mesh):
        again = [float(recipe.evaluate(state, mesh)["loss"]) for _ in range(2)]
    assert again == [evaluated[7]] * 2


@pytest.mark.slow
def test_metrics_of_a_modality_include_all_sources(make_config, tmp_path):
    """Also if a source has the name of a modality, "speech": its metrics are separate."""
    both = make_config().data.sources[0]
    sources = both, dataclasses.replace(both, format="speech")
    run(make_config("run", data=dataclasses.replace(make_config().data, sources=sources)))
    lines = [json.loads(t) for t in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["share_speech_alone"] > 0.1 for line in lines)
    assert all(line["share_interleaved"] > 0.1 for line in lines)
    for line in lines:
        parts = line["loss_interleaved_speech"], line["loss_speech_alone_speech"]
        assert min(parts) < line["loss_speech"] < max(parts)


def test_tensorboard_has_the_metrics_and_their_times_add_up(make_config, tmp_path):
    settings = make_config("board")
    losses = run(settings)
    (file,) = (tmp_path / "board" / "tensorboard").glob("events*")
    seen = {}
    for event in read_events(file):
        for value in event.summary.value:
            seen.setdefault(value.tag, {})[event.step] = value.simple_value
    np.testing.assert_allclose([seen["loss/all"][n + 1] for n in range(STEPS)], losses, rtol=1e-6)
    assert {"loss/speech", "grad/norm", "tokens/per_second"} <= set(seen)
    lines = [json.loads(t) for t in (tmp_path / "board" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        parts = sum(line.get(f"seconds_{p}", 0) for p in ("input", "step", "waiting", "checkpoint"))
        assert parts == pytest.approx(line["seconds"], abs=1e-6)
        assert line["tokens_per_second"] == pytest.approx(8 * 48 / line["seconds"])


def read_events(path):
    """TensorFlow's record format: length, its checksum, the event, its checksum."""
    data = path.read_bytes()
    while data:
        length = int.from_bytes(data[:8], "little")
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_checkpoint_minutes_saves_checkpoints(make_config, tmp_path):
    run(make_config("minutes", checkpoint_every=0, checkpoint_minutes=1e-6), stop_after=4)
    saved = {int(p.name) for p in (tmp_path / "minutes" / "checkpoints").iterdir()}
    assert saved and max(saved) >= 3


@pytest.mark.slow
def test_a_profile_is_taken(make_config, tmp_path):
    settings = make_config("profiled", profile_at=3, profile_steps=4)

    def profiles():
        return len(list((tmp_path / "profiled" / "profile").rglob("*.xplane.pb")))

    run(settings, stop_after=5)  # after the sixth step was dispatched; the fourth was saved
    assert profiles() == 1
    assert len(run(settings)) == 3  # resumes within the profiled steps
    assert profiles() == 2
    longer = dataclasses.replace(settings, profile_at=STEPS, profile_steps=2)
    assert run(longer) == []  # a run at its end has nothing to profile
    assert profiles() == 2


def test_errors_name_invalid_settings(make_config):
    for changes, message in (
        ({"lora": LORA, "random_init": True}, "cannot be used with random_init"),
        ({"sizes": LlamaConfig()}, "set random_init too"),
        ({"steps": 0}, "steps, keep and profile_steps"),
        ({"step": StepConfig(accumulate=3)}, "3 parts"),
        ({"eval_every": -1}, "must be at least 0"),
    ):
        with pytest.raises(InputError, match=message):
            make_config(**changes)
    with pytest.raises(InputError, match="gs:// and s3:// only"):
        LmRunConfig(run_dir="hf://bucket/run", model="m")
    assert LmRunConfig(run_dir="gs://bucket/run", model="m").run_dir == "gs://bucket/run"
    with pytest.raises(InputError, match="no layer 'w'"):
        LoraConfig(rank=1, layers=("w",))
    assert LmRunConfig(run_dir="a", model="b").steps == 100


def test_the_error_for_an_old_qwix_names_its_version(monkeypatch):
    monkeypatch.setattr(lora.metadata, "version", lambda name: "0.1.2")
    with pytest.raises(InputError, match="LoRA needs qwix 0.1.8, and 0.1.2 is installed"):
        lora.add_to(llama.Llama(LlamaConfig()), LORA)
