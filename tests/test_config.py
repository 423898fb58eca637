"""Configs: nested, immutable, validated, and written atomically."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from spirit_jax import checksums, config, files
from spirit_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = 3
    shape: tuple[tuple[int, int], ...] = ((1, 2),)


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    rate: float = 0.5
    inner: Inner = Inner()
    spare: Inner | None = None


@pytest.mark.compat
def test_a_written_config_reads_back(tmp_path):
    value = Outer("a", 0.25, Inner(7, ((3, 4), (5, 6))), spare=Inner(1))
    config.write(value, tmp_path / "sub" / "c.json")
    assert config.read(Outer, tmp_path / "sub" / "c.json") == value
    assert hash(config.read(Outer, tmp_path / "sub" / "c.json")) == hash(value)
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["c.json"]


@pytest.mark.compat
def test_yaml_and_dotted_overrides(tmp_path):
    (tmp_path / "c.yaml").write_text("name: b\ninner:\n  width: 4\n")
    value = config.read(Outer, tmp_path / "c.yaml", ["inner.width=9", "rate=1"])
    assert value == Outer("b", 1.0, Inner(9))


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"name": "a", "rat": 1}, ["'rat'", "'rate'"]),
        ({"name": "a", "inner": {"with": 1}}, ["'with'", "inner", "'width'"]),
        ({"name": "a", "rate": "fast"}, ["fast", "rate"]),
        ({}, ["name"]),
    ],
)
def test_errors_name_the_file_and_the_field(values, parts):
    with pytest.raises(InputError) as error:
        config.from_dict(Outer, values, source="run.yaml")
    for part in ["run.yaml", *parts]:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{", "[1, 2]", ""])
def test_files_that_are_not_mappings_are_rejected(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError, match="c.json"):
        config.read(Outer, tmp_path / "c.json")
    with pytest.raises(InputError, match="absent.json"):
        config.read(Outer, tmp_path / "absent.json")


@dataclasses.dataclass(frozen=True)
class Item:
    size: int = 1


@dataclasses.dataclass(frozen=True)
class Items:
    items: tuple[Item, ...] = ()


@pytest.mark.compat
def test_a_list_of_mappings_becomes_a_tuple_of_dataclasses():
    items = config.from_dict(Items, {"items": [{"size": 3}, {}]})
    assert items == Items((Item(3), Item(1)))
    with pytest.raises(InputError, match="sise"):
        config.from_dict(Items, {"items": [{"sise": 3}]})


def test_a_mapping_may_contain_the_1e30_of_tokenizer_configs(tmp_path):
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"model_max_length": int(1e30)}))
    assert config.read_mapping(path) == {"model_max_length": int(1e30)}
    path.write_text('{"model_max_length": ' + "9" * 400 + "}")
    with pytest.raises(InputError, match="400 digits"):
        config.read_mapping(path)


SOURCES = {"items": [{"size": 3}]}


@pytest.mark.parametrize(
    "override",
    ["items=[1", "items", "=3", "a b=1", "items[5].size=1", "items[0]=1", "items[0].sise=1"],
)
def test_an_invalid_override_is_rejected_in_one_line(override):
    with pytest.raises(InputError) as error:
        config.from_dict(Items, SOURCES, [override], source="run.yaml")
    assert "\n" not in str(error.value)


def test_an_override_may_set_a_list_item_but_not_twice():
    assert config.from_dict(Items, SOURCES, ["items[0].size=5"]) == Items((Item(5),))
    with pytest.raises(InputError, match="'items' is given twice"):
        config.from_dict(Items, SOURCES, ["items=[]", "items=[]"])


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${rate}", "half \ud83d"])
def test_interpolations_and_lone_surrogates_are_rejected(text):
    with pytest.raises(InputError, match="name contains"):
        config.from_dict(Outer, {"name": text})


@pytest.mark.compat
@pytest.mark.parametrize("rate", [float("nan"), float("inf"), "NaN", "-inf", 10**30])
def test_numbers_that_are_not_finite_or_too_large_are_rejected(rate):
    with pytest.raises(InputError, match="rate is"):
        config.from_dict(Outer, {"name": "a", "rate": rate})


def test_a_listed_config_is_valid_whenever_its_writer_is_killed(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    config.write({"a": 1}, folder / "c.json")
    checksums.list_files(folder, ["c.json"])
    replace, states = Path.replace, []

    def replace_and_copy(source, target):
        replace(source, target)
        states.append(tmp_path / f"state-{len(states)}")
        shutil.copytree(folder, states[-1])

    monkeypatch.setattr(Path, "replace", replace_and_copy)
    config.write({"a": 2}, folder / "c.json")
    monkeypatch.undo()
    values = [config.read_mapping(state / "c.json") for state in states]  # raises if it is damaged
    assert values == [{"a": 1}, {"a": 2}, {"a": 2}]
    listed = checksums.read_json(folder / checksums.LIST)
    assert listed == {"files": {"c.json": checksums.of_file(folder / "c.json")}}
    config.write({"a": 2}, states[0] / "c.json")
    assert checksums.read_json(states[0] / checksums.LIST) == listed


def test_a_listed_config_that_cannot_be_written_stays_valid(tmp_path, monkeypatch):
    config.write({"a": 1}, tmp_path / "c.json")
    checksums.list_files(tmp_path, ["c.json"])
    listed = (tmp_path / checksums.LIST).read_text()

    def fail(path, text):
        raise InputError("the disk is full")

    write = files.write_text
    monkeypatch.setattr(
        files, "write_text", lambda path, text: (write if "sums" in path.name else fail)(path, text)
    )
    with pytest.raises(InputError, match="full"):
        config.write({"a": 2}, tmp_path / "c.json")
    assert config.read_mapping(tmp_path / "c.json") == {"a": 1}
    assert (tmp_path / checksums.LIST).read_text() == listed
