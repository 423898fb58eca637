"""Samples at evaluation: what the trained model generates, in files for people."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
import soundfile
from training_runs import run

from spirit_jax import InputError, SpiritLM
from spirit_jax.data.configs import DataConfig, SourceConfig
from spirit_jax.data.prepare import prepare
from spirit_jax.training import export
from spirit_jax.training.configs import LoraConfig, OptimizerConfig
from spirit_jax.training.lm.config import SampleConfig
from spirit_jax.training.lm.recipe import LmRecipe
from spirit_jax.training.lm.samples import Sampler


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "r.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"lora": LoraConfig(rank=2)}], ids=["scanned", "lora"])
def test_samples_are_what_the_exported_model_generates(make_config, recording, tmp_path, changes):
    samples = (
        SampleConfig(text="two plus two is", to="text", max_new_tokens=5),
        SampleConfig(text="two plus two is", to="speech", max_new_tokens=30),
        SampleConfig(speech=recording, to="text", max_new_tokens=5, temperature=0.8),
    )
    manifest = tmp_path / "text.jsonl"
    manifest.write_text("".join(f'{{"id": "{k}", "text": "two plus {k}"}}\n' for k in range(9)))
    prepare(str(manifest), tmp_path / "corpus", None)
    data = DataConfig(
        (SourceConfig(str(tmp_path / "corpus"), format="text"),), seq_len=48, batch_rows=2
    )
    changes |= {"model": "spirit-tiny-base", "optimizer": OptimizerConfig(1e-5), "data": data}
    config = dataclasses.replace(
        make_config("run", samples=samples, steps=2, eval_every=1, seed=3), **changes
    )
    run(config, devices=2)
    written = tmp_path / "run" / "report" / "samples"
    assert {path.name for path in written.glob("*.md")} == {"step-1.md", "step-2.md"}
    export.export(LmRecipe(config), tmp_path / "model")
    lm = SpiritLM.from_pretrained(tmp_path / "model")
    page = (written / "step-2.md").read_text()
    for sample in samples:
        given = ("speech", sample.speech) if sample.speech else ("text", sample.text)
        prompt = lm.build_prompt([given], sample.to)
        (generation,) = lm.continue_prompts([prompt], sample.to, sample.settings(config.seed))
        assert f"to {sample.to}\n\n```\n{lm.generated_string(generation)}\n```\n" in page
    (wave,) = written.glob("step-2-1-*.wav")
    assert soundfile.info(wave).samplerate == 16000 and wave.name in page


def test_prompts_that_cannot_be_used_are_named_before_training(make_config, tmp_path):
    with pytest.raises(InputError, match="either text or speech"):
        SampleConfig()
    with pytest.raises(InputError, match="'music'"):
        SampleConfig(text="x", to="music")
    long, short = SampleConfig(text="the object " * 3000), SampleConfig(text="the object")
    for sample, named in (
        (SampleConfig(speech=str(tmp_path / "no.wav")), r"samples\[1\]: .*no\.wav"),
        (long, r"samples\[1\]: .*positions"),
    ):
        with pytest.raises(InputError, match=named):
            run(make_config("run", samples=(short, sample)), devices=len(jax.devices()))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_prompts_need_no_network_in_the_model_folder(make_config, expressive_folder, tmp_path):
    shutil.copytree(expressive_folder, tmp_path / "model", ignore=shutil.ignore_patterns("llama"))
    recipe = LmRecipe(make_config("run"))
    samples = (SampleConfig(text="the object"),)
    Sampler(tmp_path / "model", recipe.vocab, recipe.model.config, samples, seed=0)
