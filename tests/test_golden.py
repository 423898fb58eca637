"""The whole way from a release-format tree: what the release computes, this computes."""

import json

import numpy as np
import pytest

pytest.importorskip("torch")

from convert.release import convert_release  # noqa: E402
from spirit_jax import SpiritLM, Units, speech_tokenizer  # noqa: E402
from spirit_jax.audio import load_audio  # noqa: E402

MODELS = ("spirit-lm-base-7b", "spirit-lm-expressive-7b")


@pytest.fixture(scope="module", autouse=True)
def few_buckets():
    """Inputs are padded to one of two lengths, so that few programs are compiled.

    With 30 s only, a predicted duration of 45.499998 frames would become 45.50002 by rounding (see
    `hifigan.to_frames`).
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(speech_tokenizer, "BUCKET_SECONDS", (10, 30))
        yield


@pytest.fixture(scope="module", params=MODELS)
def model(request, golden, tmp_path_factory):
    """(model, what is expected of it, a function to the expected arrays, audio folder)."""
    weights = request.getfixturevalue("fcpe_weights") if "expressive" in request.param else None
    folder = tmp_path_factory.mktemp("golden") / "model"
    convert_release(golden / "checkpoints", request.param, folder, weights)
    expected = json.loads((golden / "expected.json").read_text())[request.param]
    arrays = np.load(golden / "expected_arrays.npz")
    return (
        SpiritLM.from_pretrained(folder),
        expected,
        lambda name: arrays[f"{request.param}/{name}"],
        golden / "audio",
    )


def as_units(streams) -> Units:
    return Units(
        *(
            np.array(streams[name].split(), int) if streams.get(name) is not None else None
            for name in ("hubert", "pitch", "style")
        )
    )


def assert_same_wave(wave, expected):
    assert wave.shape == expected.shape
    assert np.abs(wave - expected).max() <= 1e-3 * expected.std()


def test_units_and_strings(model):
    lm, expected, _, audio = model
    paths = [audio / name for name in expected["audio"]]
    encoded = lm.speech_tokenizer.encode_batch(paths)
    for path, units in zip(paths, encoded, strict=True):
        streams = expected["audio"][path.name]
        assert units == as_units(streams)
        assert lm.speech_tokenizer.to_string(units) == streams["string"]


def test_waveforms(model):
    lm, expected, array, _ = model
    streams = expected["audio"]
    units = [as_units(values) for values in streams.values()]
    strings = [values["string"] for values in streams.values()]
    timed = lm.speech_tokenizer.decode_batch(units, speaker_id=1)
    predicted = lm.speech_tokenizer.decode_batch(strings, speaker_id=1)
    for name, own_timing, predicted_timing in zip(streams, timed, predicted, strict=True):
        assert_same_wave(own_timing, array(f"{name}/wav_units"))
        assert_same_wave(predicted_timing, array(f"{name}/wav_string"))


def test_prompts_logits_and_greedy_ids(model):
    lm, expected, array, audio = model
    first = load_audio(audio / min(expected["audio"]))[:48_000]
    speech = ("speech", first)
    texts = ("The largest country in the world is", "Listen to this: ", " and then he said")
    by_modality: dict[str, list[dict]] = {}
    for i, case in enumerate(expected["gen"]):
        assert lm.text_tokenizer.encode(case["prompt"]) == case["prompt_ids"]
        last = lm.logits(case["prompt"])[-1]
        released = array(f"gen{i}/last_logits")
        assert np.abs(last - released).max() <= 1e-4 * np.abs(released).max()
        by_modality.setdefault(case["output_modality"], []).append(case)
    for modality, cases in by_modality.items():
        prompts = [case["prompt"] for case in cases]
        together = lm.generate_ids(prompts, output_modality=modality, max_new_tokens=40)
        assert together == [case["generated_ids"] for case in cases]
    cases = [case for case in expected["gen"] if case["output_modality"] == "TEXT"]
    built = {
        ("TEXT",): [("text", texts[0])],
        ("SPEECH",): [speech],
        ("TEXT", "SPEECH"): [("text", texts[1]), speech],
        ("SPEECH", "TEXT"): [speech, ("text", texts[2])],
    }
    assert cases
    for case in cases:
        inputs = built.get(tuple(case["inputs"]))
        if inputs is not None:
            assert lm.build_prompt(inputs, "text") == case["prompt"]


def test_what_generations_say(model):
    lm, expected, _, _ = model
    for case in expected["decode_rules"]:
        (outputs,) = lm.decode_outputs([case["prompt"]], [case["generated"]], speaker_id=1)
        assert len(outputs) == len(case["outputs"])
        for output, released in zip(outputs, case["outputs"], strict=True):
            assert output.content_type.upper() == released["type"]
            if output.content_type == "text":
                assert output.content == released["text"]
            else:
                assert len(output.content) == released["samples"]
                np.testing.assert_allclose(output.content.std(), released["std"], rtol=1e-3)
