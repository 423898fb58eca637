"""Throughput of the server: concurrent requests compared with the same ones one after another.

    python -m benchmarks.serving --requests 200 --clients 32

Starts `spirit-jax serve` for a packaged model, sends different requests from several clients at
once and then the same ones one after another, and checks that the answers are the same.
"""

import json
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import typer

from spirit_jax.cli.running import run

MODALITIES = "text", "speech", "arbitrary"
WORDS = "the young queen lost a book what is two plus two please turn on the lights".split()


def main(
    model: Annotated[str, typer.Option(help="Model folder, or a packaged model's name")] = (
        "spirit-tiny-base"
    ),
    requests: Annotated[int, typer.Option(min=1, help="Number of requests")] = 200,
    clients: Annotated[int, typer.Option(min=1, help="Number of concurrent clients")] = 32,
    tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens of a completion")] = 64,
    rows: Annotated[int, typer.Option(min=1, help="Option --rows of the server")] = 32,
) -> None:
    """Runs the command that the module's docstring describes."""
    command = "import spirit_jax.cli; spirit_jax.cli.main()"
    options = ["--port", "0", "--no-page", "--rows", str(rows), "--slots", "512", "--name", "m"]
    server = subprocess.Popen(
        [sys.executable, "-c", command, "serve", model, *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = server.stdout.readline().split()[-1]
        bodies = [make_body(number, tokens) for number in range(requests)]
        for body in bodies[:3]:
            ask(address, body)  # the server compiled at its start, but reads some files only now
        start = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            concurrent = list(pool.map(lambda body: ask(address, body), bodies))
        concurrent_seconds = time.monotonic() - start
        start = time.monotonic()
        sequential = [ask(address, body) for body in bodies]
        sequential_seconds = time.monotonic() - start
    finally:
        server.terminate()
        server.wait()
    differing = sum(a != b for a, b in zip(concurrent, sequential, strict=True))
    generated = sum(map(len, sequential))
    print(f"{requests} requests, {generated} tokens; answers that differ: {differing}")
    print(f"{clients} clients at once: {concurrent_seconds:.1f} s")
    print(f"one after another: {sequential_seconds:.1f} s")
    print(f"ratio of the throughputs: {sequential_seconds / concurrent_seconds:.1f}")


def make_body(number: int, tokens: int) -> dict:
    """A request, different for each number: its modality, prompt, settings and seed."""
    words = [WORDS[(number * 7 + i * 3) % len(WORDS)] for i in range(1 + number % 9)]
    return {
        "model": "m",
        "prompt": "[Text]" + " ".join(words),
        "modality": MODALITIES[number % 3],
        "max_tokens": tokens - number % 5,
        "temperature": 0 if number % 2 else 0.8,
        "seed": number,
        "return_token_ids": True,
    }


def ask(address: str, body: dict) -> list[int]:
    """The token ids of an answer."""
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        return json.load(response)["choices"][0]["token_ids"]


if __name__ == "__main__":
    run(main)
