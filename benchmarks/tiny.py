"""Generation speed of the packaged models, in tokens per second.

    python -m benchmarks.tiny

Greedy decoding of at most 300 units after a text, in batches of 1 and 16, on JAX's default device;
the median of seven runs, without compilation.
"""

import statistics
import time

import spirit_jax
from spirit_jax.cli.running import run

MAX_TOKENS, RUNS = 300, 7
PROMPT = "[Text] the young queen lost a book[Speech]"


def main() -> None:
    """Runs the command that the module's docstring describes."""
    for name in ("spirit-tiny-base", "spirit-tiny-expressive"):
        lm = spirit_jax.SpiritLM.from_pretrained(name)
        for batch in (1, 16):
            rates = []
            for _ in range(RUNS + 1):  # the first run compiles
                start = time.perf_counter()
                rows = lm.generate_ids([PROMPT] * batch, "speech", max_new_tokens=MAX_TOKENS)
                rates.append(sum(map(len, rows)) / (time.perf_counter() - start))
            rate = statistics.median(rates[1:])
            print(f"{name}, batch {batch}: {rate:.0f} tokens/s ({len(rows[0])} tokens per row)")


if __name__ == "__main__":
    run(main)
