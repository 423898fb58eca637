"""The tiny stack in the formats of open weights, against what its own tools compute from it."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from marks import slow

pytest.importorskip("torch")

from convert.open import convert_open  # noqa: E402
from spirit_jax import speech_tokenizer  # noqa: E402
from spirit_jax.spiritlm import SpiritLM  # noqa: E402
from spirit_jax.units import Units, dedup  # noqa: E402

FOLDER = Path(__file__).parents[2] / "shared" / "golden" / "open_tiny"
AUDIO = FOLDER.parent / "release_tiny" / "audio"
if not FOLDER.is_dir():
    pytest.skip(f"the golden stack is not at {FOLDER}", allow_module_level=True)
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
RECORDINGS = list(EXPECTED["units"])
PROMPTS = range(len(EXPECTED["prompts"]))


@pytest.fixture(scope="module", autouse=True)
def few_buckets():
    """Audio is padded to one of two lengths, so that few programs are compiled."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(speech_tokenizer, "BUCKET_SECONDS", (10, 30))
        yield


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    output = tmp_path_factory.mktemp("open") / "model"
    names = ("mhubert", "km500.bin", "hifigan.pt", "speech_lm", "text_tokenizer")
    convert_open(*(FOLDER / name for name in names), output)
    return SpiritLM.from_pretrained(output)


@pytest.fixture(scope="module")
def arrays():
    return np.load(FOLDER / "expected_arrays.npz")


def content_of(content):
    if isinstance(content, str):
        return content
    units = np.array(EXPECTED["units"][content["units_of"]])
    return Units(units[dedup(units)][: content["first_deduplicated"]], timed=False)


def build(lm, number):
    prompt = EXPECTED["prompts"][number]
    inputs = [(modality, content_of(content)) for modality, content in prompt["inputs"]]
    return lm.build_prompt(inputs, prompt["output"] or "arbitrary")


def test_units_are_equal(lm):
    encoded = lm.speech_tokenizer.encode_batch([AUDIO / name for name in RECORDINGS])
    assert [units.hubert.tolist() for units in encoded] == list(EXPECTED["units"].values())


@pytest.mark.parametrize("name", [slow(name) if "vm" in name else name for name in RECORDINGS])
def test_waveforms_are_equal(lm, arrays, name):
    units = Units(EXPECTED["units"][name])
    for kind, predict in (("wave", False), ("wave_dedup", True)):
        expected = arrays[f"{name}/{kind}"]
        wave = lm.speech_tokenizer.decode(units, predict_durations=predict)
        assert wave.shape == expected.shape
        assert np.abs(wave - expected).max() < 1e-4 * expected.std(), kind


def test_prompts_are_equal(lm):
    assert lm.vocab.text_size == EXPECTED["text_pieces"]
    assert lm.vocab.padded_size == EXPECTED["vocab_size"]
    for number in PROMPTS:
        expected = EXPECTED["prompts"][number]
        string = build(lm, number)
        assert string == expected["string"]
        ids = lm.text_tokenizer.encode(string)
        assert ids == expected["ids"]
        assert lm.text_tokenizer.decode_prompt(ids) == string


def test_logits_and_greedy_ids_are_equal(lm, arrays):
    for number in PROMPTS:
        expected = EXPECTED["prompts"][number]
        logits = lm.logits(expected["string"])[-1]
        last = arrays[f"prompt{number}/logits_last"]
        assert np.abs(logits - last).max() < 1e-4 * np.abs(last).max()
        modality = expected["output"] or "arbitrary"
        (ids,) = lm.generate_ids([expected["string"]], modality, max_new_tokens=24)
        assert ids == expected["greedy_ids"]


@pytest.mark.slow
def test_speech_comes_out(lm):
    """Whatever the notation of a prompt is."""
    (text,) = lm.generate([("text", "the young queen")], "text", max_new_tokens=8)
    assert isinstance(text.content, str)
    options = {"max_new_tokens": 30}
    outputs = [
        lm.generate(prompt=f"{start}the young queen{end}", output_modality="speech", **options)
        for start, end in (("<text>", "<speech>"), ("[Text]", "[Speech]"))
    ]
    waves = [output[-1].content for output in outputs]
    assert waves[0].dtype == np.float32 and len(waves[0]) >= 30 * 640
    assert np.array_equal(*waves)
    parts = lm.stream([("text", "the young queen")], "speech", **options)
    streamed = np.concatenate([part.content for part in parts])
    assert len(streamed) == len(waves[0])
    string = lm.build_prompt([("speech", "<Un5><Un7>"), ("text", " <Un5>[Hu5]")], "speech")
    assert string == "<speech><Un5><Un7><text> <\\Un5>[\\Hu5]<speech>"
    ids = lm.text_tokenizer.encode(string)
    units = [i for i in ids if lm.vocab.is_unit(i)]
    assert units == [lm.vocab.first_unit + 5, lm.vocab.first_unit + 7]
    assert lm.text_tokenizer.decode(ids) == "<speech><Un5><Un7><text> <Un5>[Hu5]<speech>"


def test_scores_count_a_modality(lm):
    """By SlamKit's masks: the first token, without BOS, has no probability."""
    string = EXPECTED["prompts"][4]["string"]
    ids = np.array(EXPECTED["prompts"][4]["ids"])
    logits = lm.logits(string)
    shifted = logits - logits.max(-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    taken = logs[np.arange(len(ids) - 1), ids[1:]]
    first, markers = lm.vocab.first_unit, (lm.vocab.text_marker, lm.vocab.speech_marker)
    is_unit = (ids[1:] >= first) & (ids[1:] < first + 500)
    assert np.isin(ids[1:], markers).any()
    for counted, mask in (("speech", is_unit), ("text", ~is_unit), ("arbitrary", is_unit >= 0)):
        ((total, count),) = lm.score([("", string)], counted=counted)
        assert count == mask.sum()
        assert total == pytest.approx(taken[mask].sum(), rel=1e-4)


def test_a_hostile_k_means_is_refused(tmp_path):
    from convert.hubert import read_kmeans
    from spirit_jax.errors import InputError

    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "hacked",)

    data = (FOLDER / "km500.bin").read_bytes()
    call = pickle.dumps(Hostile(), 2)[2:-1]
    for name, content in (
        ("alone", pickle.dumps(Hostile())),
        ("inside", data[:2] + call + data[2:]),
    ):
        (tmp_path / f"{name}.bin").write_bytes(content)
        with pytest.raises(InputError, match="could run code"):
            read_kmeans(tmp_path / f"{name}.bin")
    (tmp_path / "cut.bin").write_bytes(data[:-3000])
    with pytest.raises(InputError, match="cut.bin: is not a whole"):
        read_kmeans(tmp_path / "cut.bin")
    assert not (tmp_path / "hacked").exists()
    centroids = read_kmeans(FOLDER / "km500.bin")[1]["centroids"]
    assert centroids.shape == (500, 32)
