"""Evaluation by tasks: prompts, answers, judges and pairs, with a model that knows nothing."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from tones import write_tones

from spirit_jax import (
    GenerationConfig,
    InputError,
    SpiritLM,
    checkpoint,
    config,
    markup,
    model_folder,
)
from spirit_jax.data.manifest import Item
from spirit_jax.evaluation import configs, pairs, run, scoring, tasks
from spirit_jax.files import lock

QUIET = Console(quiet=True)
# says of each sound how long it is, of each text how many letters it has
JUDGE = """
import sys, soundfile
for line in map(str.strip, sys.stdin):
    print(f"{soundfile.info(line).duration:.1f}" if line.endswith(".wav") else len(line))
"""


@pytest.fixture(scope="module")
def lm(base_folder):
    return SpiritLM.from_pretrained(base_folder)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    path = tmp_path_factory.mktemp("items") / "items.jsonl"
    rows = [json.loads(line) for line in open(write_tones(path.parent, 3))]
    for number, row in enumerate(rows):
        row |= {"text": f"tone number {number}", "label": row["speaker"]}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ask(lm, folder, *others, **fields):
    task = tasks.TaskConfig("task", **{"generation": GenerationConfig(40)} | fields)
    return run.evaluate(lm, run.EvalConfig((task, *others)), folder, QUIET)["task"], [
        json.loads(line) for line in open(folder / "task.jsonl")
    ]


def test_error_rates_are_edits_in_a_hundred():
    rates = scoring.error_rates(["Turn on, the LIGHTS!", "yes"], ["turn on lights", "yes yes"])
    assert rates == {"wer": 100 * 2 / 5, "cer": 100 * (4 + 4) / (18 + 3)}
    assert scoring.accuracy(["open door", "no"], ["Open door.", "yes"]) == 50
    with pytest.raises(InputError, match="no words"):
        scoring.error_rates(["..."], ["a"])


@pytest.mark.parametrize(
    ("wanted", "given", "words", "wrong"),
    [
        ("it's mine", "it\u2019s mine", 3, 0),
        ("it\u2019s mine", "It is mine.", 3, 0),
        ("Wait... what?!", "wait what", 2, 0),
        ("I have 42 apples", "i have forty-two apples", 4, 0),
        ("मैं घर जाता हूँ", "मैं घर जाती हूँ", 4, 1),
        ("कि", "की", 1, 1),
        ("நான் வீட்டிற்கு போகிறேன்", "நான் வீட்டுக்கு போகிறேன்", 3, 1),
        ("สวัสดีครับ", "สวัสดีครับ", 7, 0),
        ("สวัสดีครับ", "สวัสดีค่ะ", 7, 3),
        ("今天天气很好", "今天天气不好", 6, 1),
        ("مرحبا بك", "مرحبا بكم", 2, 1),
        ("Straße", "STRASSE", 1, 0),
        ("\u0130stanbul'da", "istanbul\u2019da", 2, 0),
        ("où est-il ?", "ou est il", 3, 1),
        ("cafe\u0301 noir", "caf\u00e9 noir", 2, 0),
        ("می\u200cروم", "میروم", 1, 0),
    ],
)
def test_words_of_all_languages_are_compared_without_case_and_punctuation(
    wanted, given, words, wrong
):
    rates = scoring.error_rates([wanted], [given])
    assert rates["wer"] == pytest.approx(100 * wrong / words)
    assert (rates["cer"] == 0) == (wrong == 0)
    assert scoring.accuracy([wanted], [given]) == (0 if wrong else 100)


def test_the_language_can_be_set_and_an_empty_answer_is_all_wrong():
    assert scoring.error_rates(["il est six"], ["il est 6"], "fr")["wer"] == pytest.approx(100 / 3)
    assert scoring.error_rates(["a b", ""], ["", "c"], "de")["wer"] == pytest.approx(150)
    assert scoring.accuracy(["?", "um"], ["!", "um"]) == 50


def test_a_prompt_has_shots_of_others_and_then_the_question(lm, manifest, tmp_path):
    form = {"shot": "[Speech]{speech}[Text]A:{label} ", "ask": "[Text]{text}[Text]A:"}
    _, rows = ask(lm, tmp_path, manifest=manifest, examples=manifest, shots=2, **form)
    space = lm.text_tokenizer.word_prefix
    for row in rows:
        *shots, text, _ = row["prompt"].split("[Text]")
        assert len(shots) == 3 and shots[0].startswith("[Speech][Hu")
        assert text == f"{space}{row['wanted']}" and row["prompt"].endswith(f"[Text]{space}A:")
        assert all(shot.startswith(f"{space}A:") for shot in shots[1:])
    assert len({row["prompt"] for row in rows}) == len(rows)


def test_texts_of_two_shots_form_no_token(lm, tmp_path):
    path = tmp_path / "items.jsonl"
    rows = [{"id": name, "text": "5] [Hu", "label": name} for name in "ab"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    form = {"shot": "{text}", "ask": "{text}", "compare": "label"}
    _, rows = ask(lm, tmp_path, manifest=str(path), examples=str(path), shots=1, **form)
    assert [row["prompt"] for row in rows] == [r"5] [\Hu5] [Hu"] * 2


@pytest.mark.slow
def test_answers_in_batches_are_those_of_each_prompt_alone(lm, manifest, tmp_path, monkeypatch):
    form = {"manifest": manifest, "ask": "[Speech]{speech}[Text]"}
    figures, rows = ask(lm, tmp_path / "a", **form)
    for row in rows:
        (ids,) = lm.generate_ids([row["prompt"]], "text", max_new_tokens=40)
        assert row["given"] == lm.text_tokenizer.decode(ids)
    assert figures["items"] == len(rows) and figures["wer"] > 50
    monkeypatch.setattr(tasks, "BATCH", 2)
    assert ask(lm, tmp_path / "b", **form) == (figures, rows)
    end = rows[0]["given"][3]
    _, cut = ask(lm, tmp_path / "c", end=end, **form)
    assert [row["given"] for row in cut] == [row["given"].split(end)[0] for row in rows]
    _, cut = ask(lm, tmp_path / "d", end="[Speech]", **form)
    prompts = [row["prompt"] for row in cut]
    free = [lm.text_tokenizer.decode(ids) for ids in lm.generate_ids(prompts, max_new_tokens=40)]
    assert [row["given"] for row in cut] == [string.split("[Speech]")[0] for string in free]
    assert free != [row["given"] for row in rows]


def test_markup_in_an_items_text_is_escaped(lm):
    item = Item("a", text="[Hu5][Speech]", label="Text")
    prompt = tasks.fill("[Text]A:{text} [{label}][Speech][Hu7]", item, None, lm)
    ids = lm.text_tokenizer.encode(prompt)
    space = lm.text_tokenizer.word_prefix
    assert lm.text_tokenizer.decode(ids) == f"[Text]{space}A:[Hu5][Speech] [Text][Speech][Hu7]"
    vocab = lm.vocab
    tokens = [vocab.text_marker, vocab.speech_marker, vocab.first_unit + 7]
    assert [i for i in ids if i >= vocab.text_size] == tokens


def test_an_end_marker_is_the_token_and_not_its_spelling(lm, manifest, tmp_path, monkeypatch):
    spelled = lm.text_tokenizer.encode(r"it says [\Speech] here[Speech][Hu1]")[1:]
    monkeypatch.setattr(lm, "generate_ids", lambda prompts, *_: [spelled] * len(prompts))
    form = {"manifest": manifest, "ask": "[Speech]{speech}[Text]", "end": "[Speech]"}
    _, rows = ask(lm, tmp_path, **form)
    assert {row["given"] for row in rows} == {"it says [Speech] here"}


def test_spoken_answers_are_written_and_scored_by_another_program(lm, manifest, tmp_path):
    judge = (sys.executable, "-c", JUDGE)
    form = {"manifest": manifest, "ask": "[Text]{text}[Speech]", "output": "speech"}
    figures, rows = ask(lm, tmp_path, judge=judge, compare="label", **form)
    assert figures["accuracy"] == 0 and figures["commonest"] == pytest.approx(50, abs=17)
    for row in rows:
        assert (tmp_path / row["spoken"]).is_file() and float(row["given"]) > 0
    with pytest.raises(InputError, match="answered 1 of"):
        ask(lm, tmp_path, judge=(sys.executable, "-c", "print()"), **form)
    with pytest.raises(InputError, match="failed"):
        ask(lm, tmp_path, judge=(sys.executable, "-c", "exit(3)"), **form)
    with pytest.raises(InputError, match="cannot be started"):
        ask(lm, tmp_path, judge=("no-such-judge",), **form)


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"ask": "{label}", "compare": "label"}, "no label"),
        ({"ask": "{text}", "compare": "label"}, "no label"),
        ({"ask": "[Text]", "output": "speech"}, "judge"),
        ({"ask": "[Text]", "shots": 1}, "examples"),
        (
            {"ask": "[Speech]", "output": "speech", "judge": ("x",), "manifest": "out"},
            "is a path outside",
        ),
        ({"ask": "[Text]", "speakers": ("nobody",)}, "nobody"),
        ({"ask": "[Text]", "output": "speech", "judge": ("x",), "end": "a"}, "end is for"),
        ({"ask": "[Text]", "voice": "rms"}, "voice for"),
        ({"ask": "[Text]", "judge": ("no-such-judge",)}, "cannot be started"),
        ({"ask": "{speech}", "manifest": "gone"}, "gone.wav: there is no such file"),
    ],
)
def test_missing_fields_of_a_task_are_reported(lm, tmp_path, fields, says):
    (tmp_path / "items.jsonl").write_text('{"id": "a", "text": "b"}\n')
    (tmp_path / "out.jsonl").write_text('{"id": "/b", "text": "b"}\n')
    (tmp_path / "gone.jsonl").write_text('{"id": "a", "text": "b", "audio": "gone.wav"}\n')
    name = fields.get("manifest", "items")
    fields = {key: value for key, value in fields.items() if key != "manifest"}
    with pytest.raises(InputError, match=says):
        ask(lm, tmp_path / "results", manifest=str(tmp_path / f"{name}.jsonl"), **fields)
    assert not (tmp_path / "results").exists()


def test_pairs_go_to_the_ending_that_the_model_finds_likelier(lm, manifest, tmp_path):
    audio = [json.loads(line)["audio"] for line in open(manifest)]
    folder = manifest.rpartition("/")[0]
    texts = ["tone", "number field zero", "a"]
    row = {"id": 1} | {
        part: {"text": text, "audio": f"{folder}/{name}"}
        for part, text, name in zip(("context", "right", "wrong"), texts, audio, strict=False)
    }
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"id": 2}))
    encode = tasks.UnitStrings(lm)
    contexts = {}
    for context in ("text", "speech"):
        for ending in ("text", "speech"):
            config = pairs.PairsConfig("p", str(tmp_path / "pairs.jsonl"), ending, context)
            figures, rows = pairs.run_pairs(lm, config, encode, QUIET)
            assert [row["id"] for row in rows] == ["1", "2"] and figures["raw"] in (0, 100)
            assert figures["normalised"] == 100 * (rows[0]["right"] > rows[0]["wrong"])
            contexts[context, ending] = rows[0]
    space = lm.text_tokenizer.word_prefix
    total, count = lm.score([(f"[Text]{space}tone", " a")])[0]
    assert contexts["text", "text"]["wrong"] == pytest.approx(total / count)
    encoded = [encode(f"{folder}/{name}") for name in audio[:3]]
    total, count = lm.score([(f"[Speech]{encoded[0]}[Text]{space}", "a")])[0]
    assert contexts["speech", "text"]["wrong"] == pytest.approx(total / count)
    total, count = lm.score([(f"[Speech]{encoded[0]}", encoded[1])])[0]
    assert contexts["speech", "speech"]["right"] == pytest.approx(total / count)


def test_ties_of_pairs_count_half():
    assert pairs.percent_larger(np.array([[1.0, 0.0], [2.0, 2.0], [0.0, 1.0], [0.0, 1.0]])) == 37.5


def test_a_line_that_is_not_a_pair_is_reported(lm, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"id": "a", "right": {"text": "b"}}\n')
    (tmp_path / "alone.jsonl").write_text(
        '{"id": 7, "right": {"text": "b"}, "wrong": {"text": "c"}}'
    )
    for name, says in (("pairs", "line 1 is not a pair"), ("alone", "7: has no context")):
        config = pairs.PairsConfig("p", str(tmp_path / f"{name}.jsonl"), context="text")
        with pytest.raises(InputError, match=says):
            pairs.run_pairs(lm, config, tasks.UnitStrings(lm), QUIET)


def test_names_of_other_folders_and_duplicate_names_are_refused(lm, tmp_path):
    task = tasks.TaskConfig("a", "m", "[Text]")
    others = [(dataclasses.replace(task, name=name),) for name in ("a/b", "..", "")]
    for wrong in (*others, (task, task)):
        with pytest.raises(InputError, match="cannot name"):
            run.evaluate(lm, run.EvalConfig(wrong), tmp_path, QUIET)


def test_a_limit_and_speakers_choose_items(lm, manifest, tmp_path):
    form = {"manifest": manifest, "ask": "[Text]{text}"}
    _, rows = ask(lm, tmp_path, **form)
    _, fewer = ask(lm, tmp_path, limit=2, **form)
    assert len(fewer) == 2 < len(rows)
    speaker = json.loads(open(manifest).readline())["speaker"]
    _, selected = ask(lm, tmp_path, speakers=(speaker,), **form)
    by = [json.loads(line) for line in open(manifest)]
    assert [row["id"] for row in selected] == [
        item["id"] for item in by if item["speaker"] == speaker
    ]
    assert 0 < len(selected) < len(rows)


def test_markup_in_texts_of_pairs_is_escaped(lm, tmp_path):
    row = {"id": 1, "context": {"text": "[Hu5]"}, "right": {"text": "[Speech]"}}
    row |= {"wrong": {"text": "[Hu6] x"}}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    scored = []
    lm = SimpleNamespace(
        text_tokenizer=lm.text_tokenizer,
        score=lambda p, counted: scored.extend(p) or [(-1.0, 1)] * len(p),
    )
    pairs.run_pairs(lm, pairs.PairsConfig("p", str(tmp_path / "pairs.jsonl")), None, QUIET)
    for context, ending in scored:
        assert [p.string for p in markup.parse(context + ending) if p.is_token] == ["[Text]"]
    assert len(scored) == 2


def test_results_of_different_evaluations_are_never_mixed(lm, manifest, tmp_path, capsys):
    form = {"manifest": str(tmp_path / "copy.jsonl"), "ask": "[Text]{text}[Text]A:", "limit": 2}
    shutil.copytree(Path(manifest).parent, tmp_path, dirs_exist_ok=True)
    text = Path(manifest).read_text()
    Path(form["manifest"]).write_text(text)
    first = ask(lm, tmp_path / "out", **form)
    (tmp_path / "out" / "figures.json").unlink()  # as after a kill
    assert ask(lm, tmp_path / "out", **form) == first
    assert not capsys.readouterr().err
    kept = (tmp_path / "out" / "task.jsonl").read_text()
    Path(form["manifest"]).write_text(text.replace("tone number", "bell number"))
    assert ask(lm, tmp_path / "out", **form) != first
    assert "content of" in capsys.readouterr().err
    ask(lm, tmp_path / "out", **form | {"limit": 1})
    assert "(tasks differ)" in capsys.readouterr().err
    assert (tmp_path / "out" / "earlier-1" / "task.jsonl").read_text() == kept
    assert (tmp_path / "out" / "earlier-2" / "figures.json").is_file()


def test_results_whose_move_was_interrupted_stay_together(lm, manifest, tmp_path):
    form = {"manifest": manifest, "ask": "[Text]{text}[Text]A:"}
    ask(lm, tmp_path, **form)
    names = {path.name for path in tmp_path.iterdir()}
    (tmp_path / "earlier-1").mkdir()
    (tmp_path / "task.jsonl").rename(tmp_path / "earlier-1" / "task.jsonl")
    ask(lm, tmp_path, limit=1, **form)
    assert {path.name for path in (tmp_path / "earlier-1").iterdir()} == names
    assert not (tmp_path / "earlier-2").exists()


def test_inputs_by_their_former_name_are_read(lm, manifest, tmp_path, capsys):
    form = {"manifest": manifest, "ask": "[Text]{text}[Text]A:", "limit": 1}
    ask(lm, tmp_path, **form)
    (tmp_path / run.INPUTS).rename(tmp_path / run.FORMER_INPUTS)
    ask(lm, tmp_path, **form)
    assert not capsys.readouterr().err and not (tmp_path / run.FORMER_INPUTS).exists()
    (tmp_path / run.INPUTS).rename(tmp_path / run.FORMER_INPUTS)
    ask(lm, tmp_path, **form | {"limit": 2})
    assert "(tasks differ)" in capsys.readouterr().err
    assert (tmp_path / "earlier-1" / run.FORMER_INPUTS).is_file()


def test_two_processes_do_not_evaluate_into_one_folder(lm, manifest, tmp_path):
    form = {"manifest": manifest, "ask": "[Text]{text}", "limit": 1}
    with lock.hold(tmp_path, run.LOCK):
        with pytest.raises(InputError, match="is in use by process .*output folder"):
            ask(lm, tmp_path, **form)
    assert not list(tmp_path.iterdir())
    ask(lm, tmp_path, **form)
    assert not (tmp_path / run.LOCK).exists()


def test_a_pair_that_cannot_be_used_leaves_nothing_behind(lm, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(
        '{"id": 7, "right": {"text": "b"}, "wrong": {"text": ""}}'
    )
    settings = run.EvalConfig(pairs=(pairs.PairsConfig("p", str(tmp_path / "pairs.jsonl")),))
    with pytest.raises(InputError, match="7: its wrong has no text"):
        run.evaluate(lm, settings, tmp_path / "results", QUIET)
    assert not (tmp_path / "results").exists()


def test_a_model_is_known_by_its_content(base_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(base_folder, copy)
    before = model_folder.fingerprint(base_folder)
    assert model_folder.fingerprint(copy) == before
    params = checkpoint.load_params(copy / "llama")
    params["embed"]["embedding"][0, 0] += 1
    (copy / "llama" / "model.safetensors").unlink()
    checkpoint.save_params(copy / "llama", params)
    assert model_folder.fingerprint(copy) != before


def test_a_speech_tokenizer_is_known_by_its_networks_wherever_they_lie(base_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(base_folder / "speech_tokenizer", copy / "speech_tokenizer")
    before = model_folder.fingerprint(copy)
    (tmp_path / "networks").mkdir()
    (copy / "speech_tokenizer" / "hubert").rename(tmp_path / "networks" / "hubert")
    path = copy / "speech_tokenizer" / "speech_tokenizer.json"
    tokenizer_config = config.read(model_folder.SpeechTokenizerConfig, path)
    config.write(dataclasses.replace(tokenizer_config, shared="../../networks"), path)
    assert model_folder.fingerprint(copy) == before
    network = tmp_path / "networks" / "hubert" / "config.json"
    network.write_text(network.read_text() + " ")
    assert model_folder.fingerprint(copy) != before
    shutil.rmtree(tmp_path / "networks")
    with pytest.raises(InputError, match="hubert"):
        model_folder.fingerprint(copy)


@pytest.mark.parametrize(
    ("wanted", "given"),
    [("abc", ["a", "b", "c"]), (["a"], ["a", "b"]), ([], []), ([None], ["a"]), ([3], [3])],
)
def test_answers_that_are_no_texts_of_the_references_are_named(wanted, given):
    for compare in (scoring.error_rates, scoring.accuracy):
        with pytest.raises(InputError, match="text|references"):
            compare(wanted, given)


def test_english_in_ligatures_full_width_or_with_primes_is_english():
    wanted = ["\ufb01ve o\ufb03ces", "\uff21\uff22\uff23 twenty one", "don\u2032t", "it\u02bcs"]
    given = ["5 offices", "abc 21", "don't", "it is"]
    assert scoring.error_rates(wanted, given)["wer"] == 0


@pytest.mark.parametrize(
    ("code", "language"),
    [("EN", "en"), ("en-US", "en"), ("eng", "en"), ("zh_TW", "zh"), ("cmn-Hant-TW", "zh")],
)
def test_codes_of_one_language_are_that_language(code, language):
    text = ["It's 你好, twenty-one"]
    assert scoring.normalise(text, code) == scoring.normalise(text, language)


def test_what_is_not_a_language_code_is_named():
    for language in ("English", "e", "?", 5):
        with pytest.raises(InputError, match="expected a code"):
            scoring.normalise(["a"], language)
        with pytest.raises(InputError, match="expected a code"):
            configs.TaskConfig("a", "m.jsonl", "{text}", language=language)


@pytest.mark.parametrize(
    ("command", "lines", "says"),
    [
        (["printf", r"\xff\n"], ["x"], "not UTF-8"),
        (["cat", "\0"], ["x"], "cannot be started"),
        (["cat"], ["\ud83d"], "not valid Unicode"),
        (["printf", r"a\nb\n"], ["x"], "2 of 1 lines"),
        (["true"], ["x"], "0 of 1 lines"),
    ],
)
def test_what_a_judge_cannot_read_or_writes_wrongly_is_named(command, lines, says):
    with pytest.raises(InputError, match=says):
        scoring.ask_judge(command, lines)


def test_a_judge_may_write_any_character_in_an_answer():
    answers = ["a\u2028b\x0cc", "", "\x85"]
    assert scoring.ask_judge(["cat"], answers) == answers
    assert scoring.ask_judge(["printf", r"\xef\xbb\xbfa\r\nb"], ["x", "y"]) == ["a", "b"]
