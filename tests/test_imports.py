"""Imports inside functions, which run only when a command is used, find what they import."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("spirit_jax", "convert", "corpora", "evaluators", "benchmarks", "tpu")


def find_module(name: str) -> Path | None:
    """The file of a module of this project."""
    path = ROOT.joinpath(*name.split("."))
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


@functools.cache
def names_of(path: Path) -> set[str]:
    """The names that a module defines or imports, at any depth of its `if` and `try` blocks."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.alias(name=name, asname=asname):
                names.add(asname or name)
            case ast.Constant(value=str(name)) if path.name == "__init__.py":
                names.add(name)  # imported when it is first used
    return names


def find_missing(path: Path) -> list[str]:
    """The imports of a file from this project that do not exist."""
    missing = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        if node.module.split(".")[0] not in PACKAGES:
            continue
        module = find_module(node.module)
        for alias in node.names:
            is_module = find_module(f"{node.module}.{alias.name}") is not None
            if is_module or (module is not None and alias.name in names_of(module)):
                continue
            line = f"from {node.module} import {alias.name}"
            missing.append(f"{path.relative_to(ROOT)}:{node.lineno} {line}")
    return missing


def test_every_import_from_this_project_exists():
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 100
    assert [line for file in files for line in find_missing(file)] == []


def test_a_missing_import_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "spirit_jax").mkdir()
    (tmp_path / "spirit_jax" / "a.py").write_text("def f(): pass\n")
    user = tmp_path / "spirit_jax" / "b.py"
    user.write_text(
        "from spirit_jax import a\ndef g():\n"
        "    from spirit_jax.a import f, h\n    from spirit_jax import c\n"
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert [line.split("from ")[1] for line in find_missing(user)] == [
        "spirit_jax.a import h",
        "spirit_jax import c",
    ]
