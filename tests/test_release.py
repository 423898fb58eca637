"""Converting the release: damaged and dangerous files, other Llamas, verification, memory."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from marks import slow  # noqa: E402
from toy_tokenizers import train_sentencepiece  # noqa: E402

from convert import llama as convert_llama  # noqa: E402
from convert import release, verify  # noqa: E402
from convert.release import convert_release  # noqa: E402
from spirit_jax import InputError, SpiritLM  # noqa: E402
from spirit_jax.cli import running  # noqa: E402

BASE = "spirit-lm-base-7b"
ROOT = Path(__file__).parents[1]  # convert/ runs from here


@pytest.fixture
def tree(golden, tmp_path):
    """A copy of the golden tree that a test may damage."""
    return shutil.copytree(golden / "checkpoints", tmp_path / "tree")


def refused(tree, tmp_path, match, model=BASE):
    output = tmp_path / "out"
    with pytest.raises(InputError, match=match):
        convert_release(tree, model, output)
    assert sorted(path.name for path in tmp_path.iterdir()) == [tree.name]  # nothing half-written


class RunsCode:
    """Pickled as a call, which a careless reader would make."""

    def __reduce__(self):
        return os.makedirs, ("this-must-not-exist",)


@pytest.mark.parametrize(
    "path",
    [
        "speech_tokenizer/hubert_25hz/mhubert_base_25hz.pt",
        "speech_tokenizer/hifigan_spiritlm_base/generator.pt",
        slow("spiritlm_model/spirit-lm-base-7b/pytorch_model.bin"),
    ],
)
def test_a_pickle_that_would_run_code_is_not_run(tree, tmp_path, path, monkeypatch):
    monkeypatch.chdir(tree)
    torch.save({"model_weight": RunsCode(), "generator": {}}, tree / path)
    refused(tree, tmp_path, "could run code")
    (tree / path).write_bytes(pickle.dumps(RunsCode()))
    refused(tree, tmp_path, "was not read|not a whole PyTorch checkpoint")
    assert not (tree / "this-must-not-exist").exists()


@pytest.mark.parametrize(
    "path",
    [
        "speech_tokenizer/hubert_25hz/L11_quantizer_500.pt",
        "speech_tokenizer/hifigan_spiritlm_base/generator.pt",
        "speech_tokenizer/hifigan_spiritlm_base/config.json",
        slow("spiritlm_model/spirit-lm-base-7b/pytorch_model.bin"),
        "spiritlm_model/spirit-lm-base-7b/config.json",
        "spiritlm_model/spirit-lm-base-7b/tokenizer.model",
    ],
)
def test_missing_and_half_copied_files_are_named(tree, tmp_path, path):
    whole = (tree / path).read_bytes()
    (tree / path).write_bytes(whole[: len(whole) // 2])
    refused(tree, tmp_path, (tree / path).name.split(".")[0])
    (tree / path).unlink()
    refused(tree, tmp_path, (tree / path).name.split(".")[0] + "|no weights")


def test_wrong_folders_and_names_are_named(tree, tmp_path):
    refused(tree, tmp_path, "known are spirit-lm-base-7b, spirit-lm-expressive-7b", model="spirit")
    with pytest.raises(InputError, match="has no folder 'speech_tokenizer'"):
        convert_release(tmp_path, BASE, tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out: exists already"):
        convert_release(tree, BASE, tmp_path / "out")


def test_the_environment_names_the_checkpoints(golden, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--model", BASE, "--output", str(tmp_path / "out")])
    monkeypatch.delenv("SPIRITLM_CHECKPOINTS_DIR", raising=False)
    with pytest.raises(SystemExit, match="1"):
        running.run(release.main)
    assert "SPIRITLM_CHECKPOINTS_DIR" in capsys.readouterr().err
    monkeypatch.setenv("SPIRITLM_CHECKPOINTS_DIR", str(golden / "checkpoints"))
    running.run(release.main)
    assert "spirit-jax encode" in capsys.readouterr().out
    assert (tmp_path / "out" / "vocab.json").is_file()


@pytest.mark.slow
def test_verify_tells_other_weights_from_the_released_ones(golden, tmp_path, monkeypatch, capsys):
    convert_release(golden / "checkpoints", BASE, tmp_path / "model")
    audio = golden / "audio" / "librispeech_7143-88743-0029.flac"
    argv = ["x", "--model", str(tmp_path / "model"), "--audio", str(audio)]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit, match="3 checks failed"):
        running.run(verify.main)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok   samples of the utterance"
    assert lines[1].startswith("FAIL hubert units: expected 99 at index 0, got ")


def write_llama(folder, vocab_size, **changes):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        **changes,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_big_tokenizer(path, pieces):
    """A byte-level BPE in the manner of Llama 3, of made-up pieces but for the bytes."""
    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    names = ["<unk>", "<s>", "</s>", *alphabet]
    names += [f"\u0120made-up-{i}" for i in range(pieces - len(names))]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[])
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        pytest.param(1_000, "base", marks=pytest.mark.slow),
        (2_000, "expressive"),
        pytest.param(128_256, "expressive", marks=pytest.mark.slow),  # as many as Llama 3 has
    ],
)
def test_any_llama_becomes_a_starting_point(tmp_path, monkeypatch, pieces, kind):
    source = write_llama(tmp_path / "hf", pieces, num_key_value_heads=1)
    if pieces == 1_000:
        train_sentencepiece(source / "tokenizer.model")
    else:
        write_big_tokenizer(source / "tokenizer.json", pieces)
    convert_llama.main(source, tmp_path / "model", kind)

    lm = SpiritLM.from_pretrained(tmp_path / "model")
    assert lm.vocab.text_size == pieces
    assert lm.vocab.size == pieces + (503 if kind == "base" else 667)
    prompt = lm.build_prompt([("text", "It was said"), ("speech", "[Hu7][Hu500]")], "text")
    ids = lm.text_tokenizer.encode(prompt)
    assert ids[0] == 1 and ids[-4:-1] == [pieces + 1, pieces + 2 + 7, pieces + 2 + 500]
    (text,) = lm.generate_ids([prompt], "text", max_new_tokens=12)
    assert all(token < pieces for token in text)
    (speech,) = lm.generate_ids([prompt], "speech", max_new_tokens=12)
    assert all(pieces + 2 <= token < lm.vocab.size or token == 2 for token in speech)
    assert speech

    # The old tokens' logits are what they were.
    hf = transformers.LlamaForCausalLM.from_pretrained(source).eval()
    tokens = [1, 5, 9, 70]
    with torch.no_grad():
        expected = hf(torch.tensor([tokens])).logits[0, -1].numpy()
    monkeypatch.setattr(lm.text_tokenizer, "encode", lambda string: tokens)
    logits = lm.logits("")[-1][:pieces]
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_failed_conversion_of_a_llama_leaves_nothing(tmp_path):
    source = write_llama(tmp_path / "hf", 1_000)
    train_sentencepiece(source / "tokenizer.model")
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match="model.safetensors"):
        convert_llama.main(source, tmp_path / "model", "base")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
def test_conversion_holds_a_small_part_of_the_weights_in_memory(tmp_path):
    """Twice the weights do not take more memory; 13.5 GB take under 4 GiB."""

    def peak_bytes(layers):
        folder = tmp_path / f"hf{layers}"
        folder.mkdir()
        config = {
            "model_type": "llama",
            "vocab_size": 1000,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": layers,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "max_position_embeddings": 128,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e4,
            "tie_word_embeddings": False,
        }
        (folder / "config.json").write_text(json.dumps(config))
        wide, narrow = (6144, 2048), (2048, 2048)
        state = {"model.norm.weight": torch.ones(2048, dtype=torch.bfloat16)}
        for name in ("model.embed_tokens", "lm_head"):
            state[f"{name}.weight"] = torch.zeros(1000, 2048, dtype=torch.bfloat16)
        for i in range(layers):
            shapes = {f"self_attn.{x}_proj": narrow for x in "qkvo"}
            shapes |= {"mlp.gate_proj": wide, "mlp.up_proj": wide, "mlp.down_proj": wide[::-1]}
            shapes |= {"input_layernorm": (2048,), "post_attention_layernorm": (2048,)}
            for name, shape in shapes.items():
                weight = torch.empty(shape, dtype=torch.bfloat16).normal_()
                state[f"model.layers.{i}.{name}.weight"] = weight
        torch.save(state, folder / "pytorch_model.bin")
        del state
        code = (
            "import sys; from convert.llama import convert_llama;"
            "convert_llama(sys.argv[1], sys.argv[2]);"
            "status = open('/proc/self/status').read();"  # getrusage counts the parent's peak too
            "print(status.split('VmHWM:')[1].split()[0])"
        )
        command = [sys.executable, "-c", code, str(folder), str(tmp_path / f"out{layers}")]
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        return int(result.stdout.split()[-1]) * 1024, (folder / "pytorch_model.bin").stat().st_size

    small, _ = peak_bytes(8)
    large, size = peak_bytes(24)
    assert large - small < 0.15 * size, (small, large, size)
    assert large < 4 << 30
