"""The generation engine: a request's tokens never depend on what else the engine does."""

import gc
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from marks import slow

from spirit_jax.errors import InputError
from spirit_jax.generation import base_engine
from spirit_jax.generation import engine as engine_module
from spirit_jax.generation import runner as runner_module
from spirit_jax.generation.config import GenerationConfig
from spirit_jax.generation.engine import Engine
from spirit_jax.generation.masks import Masks
from spirit_jax.generation.request import Request
from spirit_jax.generation.runner import Runner
from spirit_jax.models.llama import Llama
from spirit_jax.models.llama_config import LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=96,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=300,
    init_std=0.5,
)
EOS = 2
MASKS = np.stack([np.arange(96) < 90, np.arange(96) < 50, np.arange(96) >= 40])
SLOTS = 280


@pytest.fixture(scope="module")
def runner():
    model, ones = Llama(CONFIG), jnp.ones((1, 4), jnp.int32)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(1), ones, ones, ones)["params"])
    return Runner(model, params, Masks(jnp.asarray(MASKS)), np.array([EOS], np.int32))


@pytest.fixture(scope="module")
def alone(runner):
    """The result of a request that is alone in a new engine."""

    def run(request):
        return Engine(runner, rows=1, slots=SLOTS).generate([request])[0]

    return run


def draw_request(rng, beginnings):
    """A random request; many start with one of some beginnings."""
    prompt = rng.integers(3, 90, rng.integers(1, 60)).tolist()
    if rng.random() < 0.5:
        prompt = beginnings[rng.integers(len(beginnings))] + prompt
    sampling = {}
    if rng.random() < 0.6:
        sampling = {"do_sample": True, "temperature": float(rng.uniform(0.3, 3))}
        sampling |= {"top_k": int(rng.integers(0, 30)), "top_p": float(rng.uniform(0.3, 1))}
        sampling |= {"min_p": float(rng.choice([0, 0.1])), "seed": int(rng.integers(100))}
    penalty = float(rng.choice([1, 1, 1.3]))
    config = GenerationConfig(int(rng.integers(1, 50)), repetition_penalty=penalty, **sampling)
    return Request(prompt, int(rng.integers(3)), config, sample=int(rng.integers(3)))


def assert_same(generation, expected):
    assert generation.ids == expected.ids
    np.testing.assert_allclose(generation.log_probs, expected.log_probs, atol=1e-4)


@pytest.mark.parametrize("count", [12, slow(300)])
def test_requests_that_come_and_go_give_their_tokens_alone(runner, alone, count):
    rng = np.random.default_rng(count)
    beginnings = [rng.integers(3, 90, n).tolist() for n in (20, 64, 150)]
    requests = [draw_request(rng, beginnings) for _ in range(count)]
    engine, generations = Engine(runner, rows=8, slots=SLOTS), []
    while len(generations) < count or not all(g.done for g in generations):
        arriving = requests[len(generations) :][: rng.integers(0, 4)]
        generations += [engine.submit(request) for request in arriving]
        engine.step(int(rng.integers(1, 20)))
    assert any(generation.reused for generation in generations)
    for generation, request in zip(generations, requests, strict=True):
        assert_same(generation, alone(request))
        allowed = MASKS[request.mask][generation.ids]
        assert allowed.all() and 0 < len(generation.ids) <= request.config.max_new_tokens


@pytest.mark.slow
def test_calls_over_a_part_of_the_cache_give_the_same_tokens(runner, alone, monkeypatch):
    """As on a TPU, where a call reads a window of the cache; on a CPU it reads filled slots."""
    monkeypatch.setattr(runner_module, "reads_filled_slots", lambda *_: False)
    monkeypatch.setattr(engine_module, "SMALLEST_WINDOW", 64)
    rng = np.random.default_rng(3)
    requests = [draw_request(rng, [rng.integers(3, 90, 150).tolist()]) for _ in range(12)]
    short = [Request([9, 8, 7 + n], 0, GenerationConfig(6)) for n in range(2)]
    windows, decode = set(), Runner.decode

    def spy(self, state, rows, window, *args):
        windows.add((len(rows.tokens_b), window))
        return decode(self, state, rows, window, *args)

    monkeypatch.setattr(Runner, "decode", spy)
    # 310 slots: calls over the whole cache are not those of the other tests.
    engine = Engine(runner, rows=4, slots=310)
    generations = engine.generate(requests) + engine.generate(short)
    assert {(2, 64), (4, 256)} <= windows
    for generation, request in zip(generations, requests + short, strict=True):
        assert_same(generation, alone(request))


def test_decoding_changes_no_row_that_is_not_decoded(runner):
    state = runner.init(2, 64)
    state = state.replace(layers=jax.tree.map(lambda x: jnp.ones_like(x), state.layers))
    before = jax.tree.map(np.array, state.layers)
    engine = Engine(runner, rows=2, slots=40)
    engine._rows[1].tokens = [5] * 30
    rows = engine._describe(2)
    rows.limits_b[0] = 8
    state, decoded = runner.decode(state, rows, 64, 8, 2)
    assert decoded.counts_b.tolist() == [8, 0]
    for old, new in zip(before, state.layers, strict=True):
        np.testing.assert_array_equal(new.k[1, :, :63], old.k[1, :, :63])
        assert not np.array_equal(new.k[0, :, :8], old.k[0, :, :8])
        np.testing.assert_array_equal(new.k[0, :, 8:63], old.k[0, :, 8:63])


def test_a_shared_beginning_is_computed_once(runner, alone):
    rng = np.random.default_rng(0)
    shots = rng.integers(3, 90, 200).tolist()
    requests = [Request([*shots, 3 + i], 0, GenerationConfig(5)) for i in range(6)]
    generations = Engine(runner, rows=2, slots=SLOTS).generate(requests)
    assert [generation.reused for generation in generations] == [0] + [200] * 5
    for generation, request in zip(generations, requests, strict=True):
        assert_same(generation, alone(request))


def test_samples_of_one_prompt_share_its_prefill_and_differ(runner, alone):
    prompt = np.random.default_rng(1).integers(3, 90, 100).tolist()
    config = GenerationConfig(20, do_sample=True, temperature=2.0)
    requests = [Request(prompt, 0, config, sample=i) for i in range(4)]
    generations = Engine(runner, rows=4, slots=SLOTS).generate(requests)
    assert [generation.reused for generation in generations] == [0, 99, 99, 99]
    assert len({tuple(generation.ids) for generation in generations}) == 4
    for generation, request in zip(generations, requests, strict=True):
        assert_same(generation, alone(request))


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 18, 64, 65, 66, 256, 257, 279])
def test_prompts_at_the_sizes_of_chunks_are_the_same_cold_and_cached(runner, alone, length):
    prompt = np.random.default_rng(length).integers(3, 90, length).tolist()
    request = Request(prompt, 0, GenerationConfig(12))
    engine = Engine(runner, rows=2, slots=SLOTS)
    (cold,), (cached,) = engine.generate([request]), engine.generate([request])
    assert_same(cold, alone(request))
    assert_same(cached, cold)
    assert cached.reused == (length - 1 if length > 16 else 0)
    assert len(cold.ids) <= SLOTS - length


def test_a_long_prompt_does_not_stall_other_rows(runner, monkeypatch):
    monkeypatch.setattr(engine_module, "CHUNKS", (16,))
    monkeypatch.setattr(engine_module, "PREFILL_TOKENS", 32)
    engine = Engine(runner, rows=2, slots=SLOTS)
    short = engine.submit(Request([5], 2, GenerationConfig(40)))  # the mask has no EOS
    engine.step(1)
    long = engine.submit(Request([7] * 250, 2, GenerationConfig(1)))
    counts = []
    while not long.done:
        counts.append(len(short.ids))
        engine.step()
    assert short.done and len(short.ids) == 40
    assert max(np.diff(counts)) <= engine_module.STEPS_BETWEEN


def test_short_prompts_start_to_decode_together(runner):
    """The rows of a batch are filled before the first decoding step."""
    engine = Engine(runner, rows=8, slots=SLOTS)
    prompts = [[3 + i] * 20 for i in range(8)]
    generations = [engine.submit(Request(prompt, 2, GenerationConfig(40))) for prompt in prompts]
    engine.step(1)
    assert [len(generation.ids) for generation in generations] == [1] * 8


def test_a_request_that_does_not_fit_is_refused_alone(runner, alone):
    engine = Engine(runner, rows=2, slots=SLOTS)
    request = Request([5, 6], 0, GenerationConfig(4))
    fits = engine.submit(request)
    for prompt, message in (([], "no tokens"), ([96], "token 96"), ([-1], "token -1")):
        with pytest.raises(InputError, match=message):
            engine.submit(Request(prompt, 0, GenerationConfig(4)))
    with pytest.raises(InputError, match="280 positions: there is no room"):
        engine.submit(Request([5] * 280, 0, GenerationConfig(4)))
    with pytest.raises(InputError, match="no mask 3"):
        engine.submit(Request([5], 3, GenerationConfig(4)))
    engine.run([fits])
    assert_same(fits, alone(request))


def test_a_cancelled_request_frees_its_row(runner, alone):
    """In the queue, between chunks of its prefill, and while it decodes."""
    engine = Engine(runner, rows=2, slots=SLOTS)
    config = GenerationConfig(30)
    stays = Request([9, 8, 7], 2, config)
    staying = engine.submit(stays)
    decoding = engine.submit(Request([5], 2, config))
    engine.step(2)
    assert not decoding.done and 0 < len(decoding.ids) < 30
    queued = engine.submit(Request([5] * 200, 2, config))
    decoding.cancel(), queued.cancel()
    engine.step(1)
    assert decoding.done and queued.done and not queued.ids
    next_request = Request([5, 6, 7], 0, config)
    following = engine.submit(next_request)
    engine.run([staying, following])
    assert_same(staying, alone(stays))
    assert_same(following, alone(next_request))
    following.cancel()  # after its end: nothing happens
    engine.step()


def test_functions_that_raise_end_their_own_request_only(runner, alone):
    def fail(_):
        raise ValueError("of the caller")

    engine = Engine(runner, rows=4, slots=SLOTS)
    request = Request([9, 8, 7], 0, GenerationConfig(30))
    generations = [
        engine.submit(request),
        engine.submit(Request([5], 0, GenerationConfig(30), on_tokens=fail)),
        engine.submit(Request([6], 0, GenerationConfig(30), stop=fail)),
    ]
    engine.run(generations)
    assert_same(generations[0], alone(request))
    assert all(str(generation.error) == "of the caller" for generation in generations[1:])
    with pytest.raises(ValueError, match="of the caller"):
        engine.generate([Request([5], 0, GenerationConfig(30), on_tokens=fail)])
    assert_same(engine.generate([request])[0], alone(request))


def test_a_stop_function_ends_a_request_where_it_says(runner, alone):
    request = Request([9, 8, 7], 2, GenerationConfig(30))
    whole = alone(request)
    stop = lambda ids: 7 if len(ids) >= 7 else None  # noqa: E731
    (generation,) = Engine(runner, rows=1, slots=SLOTS).generate(
        [Request([9, 8, 7], 2, GenerationConfig(30), stop=stop)]
    )
    assert generation.ids == whole.ids[:7] and len(generation.log_probs) == 7


def test_streamed_tokens_are_those_of_the_result(runner, alone):
    engine, parts = Engine(runner, rows=2, slots=SLOTS), []
    request = Request([9, 8, 7], 2, GenerationConfig(50), on_tokens=parts.append)
    generation = engine.submit(request)
    streamed = list(engine.stream(generation))
    assert sum(streamed, []) == sum(parts, []) == generation.ids == alone(request).ids
    assert len(streamed) >= 50 / base_engine.STREAMED_STEPS


def test_threads_may_submit_and_wait_at_once(runner, alone):
    engine, results = Engine(runner, rows=4, slots=SLOTS), {}
    requests = [Request([3 + n, 5], n % 3, GenerationConfig(20)) for n in range(12)]

    def work(number):
        results[number] = engine.generate([requests[number]])[0]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number, request in enumerate(requests):
        assert_same(results[number], alone(request))


@pytest.mark.parametrize("count", [30, slow(1000)])
def test_nothing_is_compiled_after_the_warm_up(runner, count):
    compiled = []
    name = "/jax/core/compile/backend_compile_duration"
    listen = lambda event, *_, **__: compiled.append(event) if event == name else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    rng = np.random.default_rng(0)
    beginnings = [rng.integers(3, 90, n).tolist() for n in (20, 64, 150)]
    engine = Engine(runner, rows=4, slots=SLOTS)
    engine.warm_up()
    # An empty cache, decoding of 1, 2 and 4 rows, four forms of prefill, a copy and a mark. Each
    # takes seconds in a model of true size, which a server's start waits for.
    assert len(compiled) <= 10
    compiled.clear()
    engine.generate([draw_request(rng, beginnings) for _ in range(count)])
    assert compiled == []
    jnp.zeros(12345).block_until_ready()
    assert compiled, "compilations are not noticed"
    jax.monitoring.clear_event_listeners()


def test_the_longest_requests_start_first_and_results_keep_their_order(runner):
    started = []
    requests = [
        Request([5 + n], 0, GenerationConfig(n), on_tokens=lambda _, n=n: started.append(n))
        for n in (2, 9, 5)
    ]
    generations = Engine(runner, rows=1, slots=SLOTS).generate(requests)
    assert list(dict.fromkeys(started)) == [9, 5, 2]
    assert [generation.request for generation in generations] == requests


@pytest.mark.parametrize(("longest", "slots"), [(10, 256), (257, 320), (400, 448), (513, 640)])
def test_an_engine_for_given_requests_has_few_unused_slots(longest, slots):
    request = Request([5] * 4, 0, GenerationConfig(longest - 4))
    assert engine_module.slots_of([request], 100000) == slots
    assert engine_module.slots_of([request], 300) == min(slots, 300)


def test_an_interrupted_engine_can_be_used_again(runner, alone, monkeypatch):
    """Ctrl-C after the cache was donated to a decoding call."""
    engine = Engine(runner, rows=2, slots=SLOTS)
    request = Request([9, 8, 7], 0, GenerationConfig(20))
    decode = Runner.decode

    def interrupt(*args, **kwargs):
        decode(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "decode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.generate([request] * 4)  # two of them wait in the queue
    monkeypatch.setattr(Runner, "decode", decode)
    (generation,) = engine.generate([request])
    assert_same(generation, alone(request))


@pytest.mark.slow
def test_memory_is_flat_over_many_short_requests(runner):
    """10,000 requests of random settings, of which some share prompts and some are cancelled."""
    rng = np.random.default_rng(0)
    beginnings = [rng.integers(3, 90, n).tolist() for n in (20, 64, 150)]
    engine = Engine(runner, rows=8, slots=SLOTS)
    engine.warm_up()

    def serve(count):
        for _ in range(count // 20):
            generations = [engine.submit(draw_request(rng, beginnings)) for _ in range(20)]
            generations[rng.integers(20)].cancel()
            engine.run(generations)
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])  # in memory
        return pages, len(jax.live_arrays())

    pages_before, arrays_before = serve(1000)
    pages_after, arrays_after = serve(9000)
    assert arrays_after == arrays_before
    assert pages_after < 1.02 * pages_before
