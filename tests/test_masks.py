"""Which tokens a request may generate: by modality, and by the markers that it generates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from spirit_jax import SpiritLM
from spirit_jax.errors import InputError
from spirit_jax.generation.config import GenerationConfig
from spirit_jax.generation.engine import Engine
from spirit_jax.generation.masks import AT_START, IN_SPEECH, IN_TEXT, make_masks, steering_mask
from spirit_jax.generation.request import Request
from spirit_jax.generation.runner import Runner
from spirit_jax.models.llama import Llama
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.vocab import Modality, Vocab

VOCAB = Vocab(text_size=40, padded_size=96, hubert_units=50)
CONFIG = LlamaConfig(96, 16, 24, 2, 4, 2, 8, max_positions=300)
ANY = list(Modality).index(Modality.ARBITRARY)
PROMPTS = {AT_START: [VOCAB.bos], IN_TEXT: [VOCAB.bos, 9], IN_SPEECH: [VOCAB.bos, 9, 41, 60]}


@pytest.fixture(scope="module")
def runner():
    model, ones = Llama(CONFIG), jnp.ones((1, 4), jnp.int32)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(1), ones, ones, ones)["params"])
    masks = make_masks(VOCAB)
    masks.allowed_mv[:, VOCAB.eos] = False  # so that outputs are long
    return Runner(model, params, jax.tree.map(jnp.asarray, masks), np.array(VOCAB.eos, np.int32))


def request(mask, prompt, seed=0):
    return Request(prompt, mask, GenerationConfig(60, do_sample=True, seed=seed))


def kinds(ids):
    """For each token whether it is speech: a unit or the marker of speech."""
    return [token >= VOCAB.speech_marker for token in ids]


def switches(prompt, ids):
    """Whether a token is of another kind than the one before, for tokens that are no markers."""
    both = kinds([*prompt[1:], *ids])
    markers = (VOCAB.text_marker, VOCAB.speech_marker)
    tokens = [*prompt[1:], *ids][1:]
    pairs = zip(both, both[1:], tokens, strict=False)
    return [a != b for a, b, token in pairs if token not in markers]


def test_no_text_is_within_speech_if_markers_are_followed(runner):
    requests = [request(mask, prompt, i) for i in range(4) for mask, prompt in PROMPTS.items()]
    free = [request(ANY, PROMPTS[IN_SPEECH], i) for i in range(4)]
    engine = Engine(runner, rows=4, slots=128)
    generations = engine.generate([*requests, *free])
    for one_request, generation in zip(requests, generations[: len(requests)], strict=True):
        assert not any(switches(one_request.prompt, generation.ids))
        assert max(generation.ids) < VOCAB.size
    # Both markers are generated, so both kinds are too.
    assert {VOCAB.text_marker, VOCAB.speech_marker} <= {i for g in generations for i in g.ids}
    assert {True, False} == {kind for g in generations[: len(requests)] for kind in kinds(g.ids)}
    # Other requests of the same calls are not steered.
    assert any(any(switches(g.request.prompt, g.ids)) for g in generations[len(requests) :])
    (alone,) = Engine(runner, rows=1, slots=128).generate([requests[5]])
    assert alone.ids == generations[5].ids


@pytest.mark.parametrize(("mask", "prompt"), PROMPTS.items())
def test_the_first_mask_is_that_of_the_prompts_end(mask, prompt):
    assert steering_mask(VOCAB, prompt) == mask
    assert steering_mask(VOCAB, [*prompt, VOCAB.text_marker]) == IN_TEXT
    assert steering_mask(VOCAB, [*prompt, VOCAB.speech_marker]) == IN_SPEECH


def test_masks_allow_eos_and_both_markers(runner):
    allowed_mv = make_masks(VOCAB).allowed_mv
    for mask in (AT_START, IN_TEXT, IN_SPEECH):
        assert allowed_mv[mask, [*VOCAB.eos, VOCAB.text_marker, VOCAB.speech_marker]].all()
        assert not allowed_mv[mask, VOCAB.size :].any()


def test_following_markers_is_an_option_of_arbitrary_output(base_folder):
    lm = SpiritLM.from_pretrained(base_folder)
    prompts = ["[Speech][Hu5][Hu6]", "[Text]Every field acts"]
    settings = {"max_new_tokens": 40, "do_sample": True, "temperature": 100.0}
    first = lm.vocab.speech_marker
    is_speech = []
    for options in (settings, settings | {"follow_markers": True}):
        rows = lm.generate_ids(prompts, **options)
        is_speech.append([[token >= first for token in ids] for ids in rows])
    assert all(set(row) == {True, False} for row in is_speech[0])
    assert is_speech[1][0][0] and not is_speech[1][1][1]
    for modality in ("text", "speech"):
        with pytest.raises(InputError, match=f"no markers if the output is {modality}"):
            lm.generate_ids(prompts, modality, follow_markers=True)
    with pytest.raises(InputError, match="follow_markers is 1; expected true or false"):
        lm.generate_ids(prompts, follow_markers=1)
