"""Prompts, and a small server that answers as vLLM does with a model of this package, for tests."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from spirit_jax import GenerationConfig
from spirit_jax.generation.masks import make_masks
from spirit_jax.generation.request import Request

WORDS = "the young queen lost a book and what is two plus two please turn on lights".split()


def make_prompts(count: int = 40) -> list[tuple[str, str]]:
    """Prompt strings of text, of speech and of both, with the modality to generate."""
    draws = np.random.default_rng(0)
    prompts = []
    for number in range(count):
        text = "[Text]" + " ".join(draws.choice(WORDS, draws.integers(1, 12)))
        units = "".join(f"[Hu{unit}]" for unit in draws.integers(0, 99, draws.integers(1, 40)))
        beginning = (text, f"[Speech]{units}", f"{text}[Speech]{units}", f"[Speech]{units}{text}")
        modality = ("text", "speech", "arbitrary")[number % 3]
        prompts.append((beginning[number % 4], modality))
    return prompts


class LoopbackVllm:
    """The server; each attribute may be changed while it runs.

    Attributes:
      lm: the model that answers.
      requests: the bodies so far.
      status: of all answers, with `answer` as the body, if it is not 200.
      cut_after: number of tokens after which the connection is closed, once; None for never.
      delay: seconds before each token.
      models: the list of models.
    """

    def __init__(self, lm):
        self.lm = lm
        self.requests: list[dict] = []
        self.status, self.answer = 200, ""
        self.cut_after: int | None = None
        self.delay = 0.0
        self.models = [{"id": "m", "max_model_len": 512}]
        self.left = threading.Event()  # a client has closed its connection
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @contextlib.contextmanager
    def running(self) -> Iterator["LoopbackVllm"]:
        """Runs the server; at the same port if it ran before."""
        vllm = self

        class Handler(_Handler):
            server_state = vllm

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        server.daemon_threads = True
        self.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_state: LoopbackVllm

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._send({"data": self.server_state.models})

    def do_POST(self):
        vllm = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        vllm.requests.append(body)
        if vllm.status != 200:
            self._send({})
        elif "prompt_logprobs" in body:
            self._score(body)
        else:
            self._complete(body)

    def _send(self, value: dict) -> None:
        vllm = self.server_state
        data = (json.dumps(value) if vllm.status == 200 else vllm.answer).encode()
        self.send_response(vllm.status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _score(self, body: dict) -> None:
        lm, prompt = self.server_state.lm, body["prompt"]
        logits_tv = lm.logits(lm.text_tokenizer.decode_prompt(prompt))[:, : lm.vocab.size]
        logs_tv = logits_tv - np.logaddexp.reduce(logits_tv, axis=1, keepdims=True)
        entries = [None]
        for token, log_v in zip(prompt[1:], logs_tv[:-1], strict=True):
            entries.append({str(token): {"logprob": float(log_v[token])}})
        self._send({"choices": [{"prompt_logprobs": entries}]})

    def _complete(self, body: dict) -> None:
        vllm, lm = self.server_state, self.server_state.lm
        masks_mv = make_masks(lm.vocab).allowed_mv.tolist()
        allowed_v = np.isin(np.arange(lm.vocab.padded_size), body["allowed_token_ids"])
        config = GenerationConfig(max_new_tokens=body["max_tokens"])
        request = Request(body["prompt"], masks_mv.index(allowed_v.tolist()), config)
        engine = lm.engine()
        generation = engine.submit(request)
        self.send_response(200)
        self.end_headers()
        sent = 0
        try:
            for ids in engine.stream(generation):
                for token in ids:
                    time.sleep(vllm.delay)
                    if sent == vllm.cut_after:
                        vllm.cut_after = None
                        return
                    is_last = generation.done and sent + 1 == len(generation.ids)
                    reason = "length" if is_last else None
                    if token in body["stop_token_ids"]:
                        reason = "stop"
                    details = {"token_logprobs": [generation.log_probs[sent]]}
                    choice = {"token_ids": [token], "logprobs": details, "finish_reason": reason}
                    self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
                    sent += 1
                    if reason is not None:
                        break
                if reason is not None:
                    break
            self.wfile.write(b'data: {"choices": [], "usage": {}}\n\ndata: [DONE]\n\n')
        except OSError:
            vllm.left.set()
        finally:
            generation.cancel()
