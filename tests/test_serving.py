"""The server's endpoints, used by OpenAI's client and by raw HTTP."""

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
httpx = pytest.importorskip("httpx")
openai = pytest.importorskip("openai")

import soundfile  # noqa: E402
from servers import serving, wait_until  # noqa: E402

from spirit_jax import GenerationConfig, SpiritLM, model_folder  # noqa: E402
from spirit_jax.audio import load_audio  # noqa: E402
from spirit_jax.generation.prompt_stream import PromptReader  # noqa: E402
from spirit_jax.serving import encoding  # noqa: E402

QUESTION = model_folder.ASSETS / "question.flac"
TEXT = "turn on the lights"
LONG = {
    "prompt": "[Text]the cat",
    "max_tokens": 400,
    "temperature": 1e6,
    "seed": 5,
}  # near to uniform: few end early
KEY = "secret"


@pytest.fixture(scope="module")
def lm():
    return SpiritLM.from_pretrained("spirit-tiny-base")


@pytest.fixture(scope="module")
def served(lm):
    with serving(lm, api_key=KEY) as (address, service):
        yield address, service


@pytest.fixture(scope="module")
def address(served):
    return served[0]


@pytest.fixture(scope="module")
def service(served):
    return served[1]


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY) as client:
        yield client


@pytest.fixture(scope="module")
def raw(address):
    """A client that adds the key and nothing else."""
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
        yield client


def complete(client, prompt, **options):
    return client.completions.create(model="tiny", prompt=prompt, **options)


def failure(call) -> tuple[int, str]:
    """The status and message of a request that fails, and that it is not repeated."""
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    error = caught.value
    assert error.response.headers["x-should-retry"] == "false"
    message = error.response.json()["error"]["message"]
    assert message.endswith(".") and "\n" not in message and "Traceback" not in message
    return error.status_code, message


def test_completions_are_those_of_the_library(client, lm):
    (expected,) = lm.continue_prompts(["[Text]what is two plus two"], "text", max_new_tokens=20)
    extra = {"modality": "text", "return_token_ids": True}
    answer = complete(
        client, "what is two plus two", max_tokens=20, temperature=0, logprobs=0, extra_body=extra
    )
    (choice,) = answer.choices
    assert choice.text.strip() == "two plus two is four" and choice.finish_reason == "stop"
    assert choice.token_ids == expected.ids and choice.token_ids[-1] in lm.vocab.eos
    np.testing.assert_allclose(choice.logprobs.token_logprobs, expected.log_probs, atol=1e-4)
    assert len(choice.logprobs.text_offset) == len(choice.logprobs.tokens) == len(expected.ids)
    assert answer.usage.completion_tokens == len(expected.ids)
    ids = complete(client, choice.prompt_token_ids, max_tokens=20, temperature=0, extra_body=extra)
    assert ids.choices[0].token_ids == expected.ids
    cut = complete(client, "what is two plus two", max_tokens=2, temperature=0, extra_body=extra)
    assert cut.choices[0].token_ids == expected.ids[:2] and cut.choices[0].finish_reason == "length"


def test_streamed_parts_are_the_whole(client):
    for options in (
        {"temperature": 0, "max_tokens": 40},
        {"temperature": 1.3, "seed": 7, "max_tokens": 60, "n": 3, "stop": [" the", "a"]},
    ):
        extra = {"return_token_ids": True}
        whole = complete(client, ["[Text]the cat", "[Text]a dog"], extra_body=extra, **options)
        texts = [""] * len(whole.choices)
        ids = [[] for _ in whole.choices]
        reasons = [None] * len(whole.choices)
        stream = complete(
            client,
            ["[Text]the cat", "[Text]a dog"],
            stream=True,
            stream_options={"include_usage": True},
            extra_body=extra,
            **options,
        )
        usage = None
        for event in stream:
            usage = event.usage or usage
            for part in event.choices:
                texts[part.index] += part.text
                ids[part.index] += part.token_ids
                reasons[part.index] = part.finish_reason or reasons[part.index]
        assert texts == [choice.text for choice in whole.choices]
        assert ids == [choice.token_ids for choice in whole.choices]
        assert reasons == [choice.finish_reason for choice in whole.choices]
        assert usage == whole.usage
    assert len({tuple(each) for each in ids[:3]}) > 1  # samples of one prompt


def test_a_streamed_string_is_the_generated_one(lm):
    texts = ["see [Hu5] and [Text] [Hu", "stop at [", "naïve \N{SNOWMAN} [\\Hu5] end", "x[x]x"]
    for stops in ((), ("end",), ("d [T", "zz")):
        for text in texts:
            prompt = lm.build_prompt([("text", text), ("speech", "[Hu5][Hu7]"), ("text", text)])
            ids = lm.text_tokenizer.encode(prompt)[1:]
            stop = lm.make_request(prompt, "text", GenerationConfig(stop=stops)).stop
            kept = ids[: stop(ids)] if stop else ids
            reader = PromptReader(lm.text_tokenizer, lm.vocab, stops)
            parts = [reader.add([each]) for each in kept] + [reader.finish()]
            generation = type("", (), {"ids": kept})
            generation.request = lm.make_request(prompt, "text", GenerationConfig(stop=stops))
            assert "".join(parts) == lm.generated_string(generation)
            assert len([part for part in parts if part]) > 1


def test_the_highest_unit_is_a_prompt_and_padding_is_not(client, lm):
    last = lm.vocab.size - 1
    extra = {"modality": "speech", "return_token_ids": True}
    answer = complete(client, [1, last], max_tokens=60, temperature=50, seed=1, extra_body=extra)
    allowed = lm.vocab.allowed("speech")
    assert all(allowed[token] for token in answer.choices[0].token_ids)
    for token in (-1, lm.vocab.size, lm.vocab.padded_size + 5):
        status, message = failure(lambda token=token: complete(client, [1, token]))
        assert status == 400 and f"the token {token}" in message


BAD_COMPLETIONS = [
    ({"prompt": []}, "prompt"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"seed": -1}, "seed"),
    ({"n": 65}, "n"),
    ({"logprobs": 3}, "logprobs"),
    ({"best_of": 2}, "best_of"),
    ({"echo": True}, "echo"),
    ({"suffix": "x"}, "suffix"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"modality": "smell"}, "modality"),
    ({"unknown": 1}, "unknown"),
    ({"stop": ["a"] * 65}, "stop"),
    ({"stop": ""}, "stop"),
    ({"prompt": "[Hu999]"}, "[Hu999]"),
    ({"prompt": "word " * 600}, "tokens"),
    ({"stream_options": {"unknown": 1}}, "stream_options"),
]


@pytest.mark.parametrize("fields, name", BAD_COMPLETIONS, ids=str)
def test_what_cannot_be_used_is_refused(client, fields, name):
    body = {"model": "tiny", "prompt": "x", **fields}
    for extra in ({}, {"stream": True}):
        status, message = failure(
            lambda extra=extra: client.post("/completions", body=body | extra, cast_to=object)
        )
        assert status == 400 and name in message


def test_errors_have_a_status_and_one_sentence(client, raw, address):
    assert failure(lambda: client.completions.create(model="gpt", prompt="x"))[0] == 404
    assert failure(lambda: client.models.retrieve("gpt"))[0] == 404
    wrong = openai.OpenAI(base_url=f"{address}/v1", api_key="wrong")
    assert failure(lambda: complete(wrong, "x")) == (401, "The API key is wrong.")
    assert httpx.get(f"{address}/v1/models").status_code == 401
    assert httpx.get(f"{address}/metrics").status_code == 401
    assert raw.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    assert raw.get("/v1/completions").status_code == 405
    answer = raw.post("/v1/completions", content="{", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        400,
        "The body of the request is not valid JSON.",
    )
    assert client.models.list().data[0].id == client.models.retrieve("tiny").id == "tiny"


def transcribe(client, data, **options):
    return client.audio.transcriptions.create(model="tiny", file=("a.wav", data), **options)


def test_uploads_that_are_too_large_or_damaged_are_refused(client, raw):
    status, message = failure(lambda: transcribe(client, bytes(200 << 20)))
    assert status == 413 and message == "The request is larger than 2 MiB."
    wrong = openai.OpenAI(base_url=str(client.base_url), api_key="wrong")
    assert failure(lambda: transcribe(wrong, bytes(50 << 20)))[0] == 401
    assert raw.post("/v1/nothing", content=bytes(50 << 20)).status_code == 404
    start = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    chunks = (start, *[bytes(1 << 20)] * 5)  # without a Content-Length
    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert (
        raw.post("/v1/audio/transcriptions", content=iter(chunks), headers=headers).status_code
        == 413
    )
    assert raw.post("/v1/completions", json={"prompt": "x" * (5 << 20)}).status_code == 413
    connection = http.client.HTTPConnection(raw.base_url.host, raw.base_url.port)
    connection.putrequest("POST", "/v1/audio/transcriptions")  # as curl does
    for name, value in {**headers, "content-length": str(1 << 40), "expect": "100-continue",
                        "authorization": f"Bearer {KEY}"}.items():  # fmt: skip
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
    for data in (b"", b"rubbish", QUESTION.read_bytes()[:5000]):
        status, message = failure(lambda data=data: transcribe(client, data))
        assert status == 400 and "a.wav" in message
    answer = raw.post("/v1/audio/transcriptions", data={"model": "tiny"})
    assert answer.status_code == 400 and "multipart" in answer.json()["error"]["message"]


def test_transcriptions_have_the_form_of_their_format(client, lm):
    expected = lm.transcribe(str(QUESTION))
    data = QUESTION.read_bytes()
    assert transcribe(client, data).text == expected.text
    text = transcribe(client, data, response_format="text", language="en", temperature=0)
    assert text == expected.text + "\n"
    verbose = transcribe(client, data, response_format="verbose_json", language="en")
    assert (verbose.text, verbose.language, verbose.understood) == (expected.text, "en", True)
    assert abs(verbose.duration - len(load_audio(QUESTION)) / 16000) < 1e-3
    assert abs(verbose.read_aloud - expected.read_aloud) < 1e-3
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(16000), 16000, format="WAV")
    assert transcribe(client, silence.getvalue()).text == ""
    for options in (
        {"response_format": "srt"},
        {"response_format": "vtt"},
        {"response_format": "smell"},
        {"response_format": "verbose_json", "timestamp_granularities": ["word"]},
        {"prompt": "names"},
        {"temperature": 0.7},
        {"stream": True},
    ):
        assert failure(lambda options=options: transcribe(client, data, **options))[0] == 400


def decode(data: bytes, content_type: str) -> np.ndarray:
    """Samples in -1..1 of bytes, as their content type says."""
    if content_type.startswith("audio/pcm"):
        assert "rate=16000; channels=1; bits=16; endian=little" in content_type
        return np.frombuffer(data, "<i2") / 32768
    starts = {"mpeg": b"ID3", "ogg": b"OggS", "aac": b"\xff\xf1", "flac": b"fLaC", "wav": b"RIFF"}
    assert data.startswith(starts[content_type.removeprefix("audio/")])
    return load_audio(data)


def test_speech_decodes_as_its_content_type_says(client, lm):
    prompt = f"[Text]T: {TEXT}[Speech]"
    (expected,) = lm.generate(
        prompt=prompt, output_modality="speech", speaker_id="rms", max_new_tokens=450
    )
    for name in (None, *encoding.FORMATS):
        for stream in (None, True):
            options = {} if name is None else {"response_format": name}
            answer = client.audio.speech.create(
                model="tiny", input=TEXT, voice="rms", extra_body={"stream": stream}, **options
            ).response
            content_type = answer.headers["content-type"]
            assert name is not None or content_type == "audio/mpeg"
            assert answer.headers["x-sample-rate"] == "16000"
            samples = decode(answer.content, content_type)
            size = len(expected.content)
            if name in ("wav", "flac", "pcm"):
                assert len(samples) == size
                np.testing.assert_allclose(samples, expected.content, atol=2e-3)
                if name == "wav":
                    with wave.open(io.BytesIO(answer.content)) as file:
                        assert file.getframerate() == 16000
                        assert (file.getnframes() == size) == (not stream)
                    assert answer.content.count(b"RIFF") == 1
                    assert len(soundfile.read(io.BytesIO(answer.content))[0]) == size
            else:
                assert size <= len(samples) < size + 2500
                assert abs(np.std(samples) / np.std(expected.content) - 1) < 0.2


def test_speech_as_events_and_bad_speech(client, raw):
    body = {"model": "tiny", "input": TEXT, "response_format": "pcm", "stream_format": "sse"}
    lines = raw.post("/v1/audio/speech", json=body).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"}
    assert len(events) > 2 and events[-1]["type"] == "speech.audio.done"
    for fields in (
        {"voice": "nobody"},
        {"style": "angry"},
        {"response_format": "midi"},
        {"speed": 2.0},
        {"instructions": "whisper"},
        {"input": ""},
        {"input": "x" * 5000},
    ):
        body = {"model": "tiny", "input": TEXT, **fields}
        status, _ = failure(
            lambda body=body: client.post("/audio/speech", body=body, cast_to=object)
        )
        assert status == 400


def test_clients_that_leave_free_their_rows(address, service):
    """Before the first byte, in mid-stream and in a plain call; a normal end aborts nothing."""
    host, port = address.removeprefix("http://").split(":")

    def leave(options, read):
        """Leaves during four samples, and returns how many of them were aborted."""
        aborted = service.worker.aborted
        body = json.dumps({"model": "tiny", **LONG, **options, "n": 4})
        connection = http.client.HTTPConnection(host, int(port))
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        connection.request("POST", "/v1/completions", body, headers)
        wait_until(lambda: service.worker.live > 0)
        if read:
            connection.getresponse().read(read)
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        wait_until(lambda: service.worker.live == 0)
        return service.worker.aborted - aborted

    for options, read in (({"stream": True}, 0), ({"stream": True}, 300), ({}, 0)):
        # On a busy machine the tiny model can end before the server sees that the client left.
        counts = [leave(options, read) for _ in range(4)]
        assert 0 < max(counts) <= 4
    aborted = service.worker.aborted
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY) as client:
        complete(client, "x", max_tokens=3)
        list(complete(client, "x", max_tokens=3, stream=True))
    wait_until(lambda: service.worker.live == 0)
    assert service.worker.aborted == aborted


def test_health_answers_while_requests_run(client, address):
    """50 streams progress together, and the event loop is never blocked."""
    delays, streams = [], threading.Event()

    def watch():
        with httpx.Client() as watcher:
            while not streams.is_set():
                started = time.monotonic()
                assert watcher.get(f"{address}/health").json() == {"status": "ok"}
                delays.append(time.monotonic() - started)

    def stream(number):
        parts = complete(
            client, f"[Text]{number}", max_tokens=30, temperature=1, seed=1, stream=True
        )
        return len(list(parts))

    with ThreadPoolExecutor(60) as pool:
        watcher = pool.submit(watch)
        counts = list(pool.map(stream, range(50)))
        transcribe(client, QUESTION.read_bytes())
        streams.set()
        watcher.result()
    assert min(counts) >= 1
    assert np.median(delays) < 0.1


def test_requests_are_not_lost_or_mixed_up(client):
    """64 requests from 16 clients, all different, are each as alone."""

    def ask(number):
        modality = ("text", "speech", "arbitrary")[number % 3]
        options = {"temperature": number % 2, "seed": number, "max_tokens": 8 + number % 9}
        answer = complete(
            client,
            f"[Text]{'the cat ' * (number % 7)}{number}",
            extra_body={"modality": modality, "return_token_ids": True},
            **options,
        )
        return answer.choices[0].prompt_token_ids, answer.choices[0].token_ids

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, range(64)))
    for number in range(0, 64, 5):
        assert together[number] == ask(number)


def test_a_busy_server_and_a_slow_request(lm):
    with serving(lm, max_concurrent=3, timeout=0.5) as (address, service):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0)
        with pytest.raises(openai.RateLimitError) as caught:
            complete(client, "x", n=4)
        assert caught.value.response.headers["retry-after"] == "1"
        before = service.metrics.requests.labels("/completions", 503)._value.get()
        retrying = openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=2)
        long = LONG | {"max_tokens": 500, "prompt": "[Text]" + "the cat " * 3, "temperature": 3}
        service.worker._engine.step = lambda most: time.sleep(0.05)  # never ends
        status, message = failure(lambda: retrying.completions.create(model="tiny", **long))
        del service.worker._engine.step
        assert status == 503 and "limit of 0.5 s" in message
        wait_until(lambda: service.worker.live == 0)
        # The client did not repeat it.
        assert service.metrics.requests.labels("/completions", 503)._value.get() == before + 1


def test_a_failing_step_is_an_error_of_its_requests_only(lm):
    with serving(lm) as (address, service):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="x")
        engine = service.worker._engine

        def fail(most):
            del engine.step
            raise RuntimeError("no device")

        engine.step = fail
        status, message = failure(lambda: complete(client, "x"))
        assert status == 500 and "no device" not in message
        assert complete(client, "[Text]x", max_tokens=2).usage.completion_tokens <= 2


def test_metrics_count(client, raw):
    complete(client, "x", max_tokens=2)
    text = raw.get("/metrics").text
    assert 'spirit_requests_total{endpoint="/completions",status="200"}' in text
    for name in ("spirit_generations", "spirit_tokens_total", "spirit_aborted_total"):
        assert f"\n{name} " in text


def test_the_command_serves_and_stops_at_a_signal(tmp_path):
    (tmp_path / "key").write_text("abc\n")
    command = "import spirit_jax.cli; spirit_jax.cli.main()"
    options = ["--port", "0", "--slots", "64", "--rows", "1", "--no-page"]
    server = subprocess.Popen(
        [sys.executable, "-c", command, "serve", "spirit-tiny-base", *options]
        + ["--api-key-file", str(tmp_path / "key")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
    )
    try:
        address = server.stdout.readline().split()[-1]
        assert httpx.get(f"{address}/health").status_code == 200
        headers = {"authorization": "Bearer abc"}
        names = httpx.get(f"{address}/v1/models", headers=headers).json()
        assert names["data"][0]["id"] == "spirit-tiny-base"
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=60)
        assert server.returncode == 0 and errors.splitlines()[-1] == "stopped"
    finally:
        server.kill()
