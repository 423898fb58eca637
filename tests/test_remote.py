"""A language model that vLLM serves: the same ids, and a server that is away is waited for."""

import threading
import time

import numpy as np
import pytest
from loopback_vllm import LoopbackVllm, make_prompts
from marks import slow

from spirit_jax import GenerationConfig, SpiritLM, model_folder
from spirit_jax.errors import InputError, InputWarning
from spirit_jax.generation import vllm as client
from spirit_jax.generation.request import Request

TINY = "spirit-tiny-base"


@pytest.fixture(scope="module")
def lm():
    return SpiritLM.from_pretrained(TINY)


@pytest.fixture(scope="module")
def loopback(lm):
    vllm = LoopbackVllm(lm)
    with vllm.running():
        yield vllm


@pytest.fixture(scope="module")
def remote(loopback):
    return SpiritLM.from_pretrained(TINY, lm=loopback.url)


@pytest.mark.parametrize("count", [12, slow(40)])
def test_greedy_ids_are_those_of_our_engine(lm, remote, loopback, count):
    prompts = make_prompts(count)
    for modality in ("text", "speech", "arbitrary"):
        strings = [prompt for prompt, kind in prompts if kind == modality]
        expected = lm.continue_prompts(strings, modality, max_new_tokens=8)
        results = remote.continue_prompts(strings, modality, max_new_tokens=8)
        for result, wanted in zip(results, expected, strict=True):
            assert result.ids == wanted.ids
            np.testing.assert_allclose(result.log_probs, wanted.log_probs, atol=1e-3)
        bodies = loopback.requests[-len(strings) :]
        allowed = np.flatnonzero(lm.vocab.allowed(modality)).tolist()
        assert max(allowed) < lm.vocab.size  # no padding id
        assert all(body["allowed_token_ids"] == allowed and body["model"] == "m" for body in bodies)
        sent = sorted(body["prompt"] for body in bodies)
        assert sent == sorted(map(lm.text_tokenizer.encode, strings))


def test_markers_steer_what_may_follow(lm, remote):
    for prompt in ("", "[Text]the cat [Speech]", "[Speech][Hu5][Hu7]"):
        options = {"max_new_tokens": 20, "follow_markers": True}
        assert remote.generate_ids([prompt], **options) == lm.generate_ids([prompt], **options)


def test_everything_else_is_done_here(lm, remote):
    prompt = [("text", "what is two plus two")]
    options = {"stop": ["four"], "max_new_tokens": 20}
    assert remote.generate(prompt, "text", **options) == lm.generate(prompt, "text", **options)
    (local_output,) = lm.generate(prompt, "speech", max_new_tokens=40, max_speech_seconds=1)
    (remote_output,) = remote.generate(prompt, "speech", max_new_tokens=40, max_speech_seconds=1)
    np.testing.assert_array_equal(remote_output.content, local_output.content)
    parts = list(remote.stream(prompt, "text", **options))
    assert "".join(part.content for part in parts) == "two plus two is"
    recording = str(model_folder.ASSETS / "question.flac")
    assert remote.transcribe(recording).text == lm.transcribe(recording).text
    pairs = [("[Text]the cat", " sat"), ("[Text]a", "[Speech][Hu5][Hu7]")]
    with pytest.warns(InputWarning, match="counts the 50 padding rows"):
        scores = remote.score(pairs)
    for expected, result in zip(lm.score(pairs), scores, strict=True):
        assert expected[1] == result[1] and abs(expected[0] - result[0]) < 1e-3
    with pytest.raises(InputError, match="needs the weights, not vLLM"):
        remote.logits("[Text]x")


def test_no_request_is_sent_if_one_cannot_be_used(remote, loopback):
    before = len(loopback.requests)
    with pytest.raises(InputError, match="Prompt 1 has no tokens"):
        remote.engine().generate([Request([5], 0, GenerationConfig(2)), Request([], 0, None)])
    assert len(loopback.requests) == before


def test_settings_of_sampling_are_passed_on(remote, loopback):
    sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1}
    remote.generate_ids(["[Text]x"] * 2, "text", max_new_tokens=3, seed=9, **sampling)
    bodies = loopback.requests[-2:]
    for body in bodies:
        for name in ("temperature", "top_p", "top_k", "min_p"):
            assert body[name] == sampling[name]
    # Samples of one prompt differ, by bits that every generator of vLLM uses.
    assert len({body["seed"] % 2**32 for body in bodies}) == 2
    assert max(body["seed"] for body in bodies) < 2**32


def test_an_interrupted_answer_is_resumed(lm, remote, loopback):
    expected = lm.generate_ids(["[Text]the cat"], max_new_tokens=20)
    loopback.cut_after = 4
    with pytest.warns(InputWarning, match="does not answer; waiting for it"):
        assert remote.generate_ids(["[Text]the cat"], max_new_tokens=20) == expected
    assert loopback.requests[-1]["prompt"][-4:] == expected[0][:4]


def test_a_server_that_is_stopped_and_started_again_is_waited_for(lm, monkeypatch):
    monkeypatch.setattr(client, "RETRY_SECONDS", 0.05)
    loopback = LoopbackVllm(lm)
    with loopback.running():
        remote = SpiritLM.from_pretrained(TINY, lm=loopback.url)
    results = []
    with pytest.warns(InputWarning) as warned:
        thread = threading.Thread(
            target=lambda: results.append(remote.generate_ids(["[Text]a"], max_new_tokens=5))
        )
        thread.start()
        while remote.engine().notice is None:
            time.sleep(0.01)
        assert not results
        with loopback.running():
            thread.join(30)
    assert results == [lm.generate_ids(["[Text]a"], max_new_tokens=5)]
    assert [str(each.message) for each in warned] == [
        f"{loopback.url}: does not answer; waiting for it."
    ]
    assert remote.engine().notice is None


def test_cancelling_closes_the_connection(remote, loopback, monkeypatch):
    monkeypatch.setattr(loopback, "delay", 0.05)
    engine = remote.engine()
    request = remote.make_request("[Text]the", "text", GenerationConfig(max_new_tokens=100))
    generation = engine.submit(request)
    next(engine.stream(generation))
    generation.cancel()
    assert loopback.left.wait(30)
    engine.run([generation])
    assert len(generation.ids) < 20


def test_a_server_that_refuses_or_is_no_vllm_is_named(lm, remote, loopback, monkeypatch):
    monkeypatch.setattr(client, "RETRY_SECONDS", 0.01)
    generate = lambda: remote.generate_ids(["[Text]a"], max_new_tokens=5)  # noqa: E731
    for status, answer, message in (
        (400, '{"error": {"message": "no such\\nfield"}}', r"status 400 \(no such field\)"),
        (404, "<html>", r"status 404 \(Not Found\)"),
        (500, '{"error": "broken"}', "fails again and again"),
    ):
        loopback.status, loopback.answer = status, answer
        with pytest.raises(InputError, match=message):
            generate()
        with pytest.raises(InputError, match=message):
            remote.score([("[Text]a", " b")])
    loopback.status = 200
    generate()
    loopback.models = [{"id": "a"}, {"id": "b"}]
    with pytest.raises(InputError, match="has the models a, b; choose one"):
        SpiritLM.from_pretrained(TINY, lm=loopback.url)
    assert SpiritLM.from_pretrained(TINY, lm=f"{loopback.url}#b").engine().slots == 2048
    loopback.models = "nonsense"
    with pytest.raises(InputError, match="does not list its models; is it vLLM"):
        SpiritLM.from_pretrained(TINY, lm=loopback.url)
    loopback.models = [{"id": "m", "max_model_len": 512}]


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://", "http://x:y/v1", ""])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(InputError, match="is not a URL such as"):
        SpiritLM.from_pretrained(TINY, lm=url)


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(client, "RETRY_SECONDS", 0.01)
    with pytest.warns(InputWarning), pytest.raises(InputError, match="since 0.1 s; is vLLM run"):
        client.Client("http://127.0.0.1:9/v1", wait_seconds=0.1)


def test_vllm_decides_on_dtype_and_mesh():
    with pytest.raises(InputError, match="vLLM decides"):
        SpiritLM.from_pretrained(TINY, lm="http://127.0.0.1:9/v1", dtype="bfloat16")
