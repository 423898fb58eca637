"""Links, commands and layers named in README.md and docs/ exist."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer

from spirit_jax.cli.commands import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("benchmarks", "convert", "corpora", "evaluators", "spirit_jax", "tpu")
SOURCES = sorted(
    path
    for folder in (*PACKAGES, "configs", "tests")
    for suffix in ("py", "yaml")
    for path in (ROOT / folder).rglob(f"*.{suffix}")
)


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower().strip()).replace(" ", "-") for heading in headings
    }


def missing_links(page: Path) -> list[str]:
    """Links to files that do not exist, and to headings that a page does not have."""
    text = prose(page)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    missing = []
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    return missing


def commands(page: Path) -> list[str]:
    """Command lines of a page or config; continued lines are joined, comments are cut."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        fences = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
        blocks = [block for language, block in fences if language in ("", "bash")]
        inline = re.findall(r"`((?:spirit-jax|python -m) [^`]+)`", prose(page).replace("\n", " "))
        lines = "\n".join(blocks).replace("\\\n", " ").splitlines() + inline
    else:
        comments = re.findall(r"^#(.*)$", text, flags=re.MULTILINE)
        lines = "\n".join(comments).replace("\\\n", " ").splitlines()
    return [
        command.strip()
        for line in lines
        for command in re.split(r"&&|;|\|", re.sub(r"\s#.*", "", line))
    ]


def unknown(command: str) -> str:
    """The part of a command that does not exist (module, subcommand, options), or ""."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quoted separator split the command
        words = command.split()
    if words[:2] == ["python", "-m"] and words[2].split(".")[0] in PACKAGES:
        return "" if importlib.util.find_spec(words[2]) else words[2]
    if words[:1] != ["spirit-jax"] or len(words) < 2 or words[1].isupper():
        return ""
    command, given = typer.main.get_command(app), words[1:]
    while hasattr(command, "list_commands") and given and not given[0].isupper():
        if given[0] not in command.list_commands(None):
            return given[0]
        _, command, given = command.resolve_command(None, given)
    options = {
        option
        for parameter in command.params
        if parameter.param_type_name == "option"
        for option in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help"}
    used = [word.partition("=")[0] for word in words if word.startswith("--")]
    return " ".join(option for option in used if option not in options)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_commands_of_a_page_exist(page):
    assert missing_links(page) == []
    assert [command for command in commands(page) if unknown(command)] == []


def test_commands_of_configs_exist():
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        assert [command for command in commands(path) if unknown(command)] == [], path


def test_pages_named_in_the_code_exist():
    named = {
        (path.name, page)
        for path in SOURCES
        for page in re.findall(r"\bdocs/[\w-]+\.\w+", path.read_text(encoding="utf-8"))
    }
    assert named and [name for name in named if not (ROOT / name[1]).exists()] == []


def test_files_named_in_pages_exist():
    """Names such as `training/loop.py` are relative to the checkout or to spirit_jax/."""
    for page in PAGES:
        if page.stem == "add-a-network":  # the reader writes its files
            continue
        for name in re.findall(r"`([\w/]+/[\w-]+\.(?:py|yaml|txt|flac))`", prose(page)):
            places = (ROOT / name, ROOT / "spirit_jax" / name)
            assert any(place.exists() for place in places), (page.name, name)


def test_every_page_is_linked_from_the_readme():
    reached, new = set(), {ROOT / "README.md"}
    while new:
        page = new.pop()
        reached.add(page)
        links = re.findall(r"\]\(([\w./-]+\.md)", prose(page))
        new |= {(page.parent / link).resolve() for link in links} - reached
    assert reached == set(PAGES)


def test_design_lists_the_layers_of_the_import_check():
    lines = (ROOT / "setup.cfg").read_text().partition("layers =\n")[2].splitlines()
    layers = "\n".join(line.strip() for line in lines if line.startswith("    "))
    assert f"```\n{layers}\n```" in (ROOT / "docs" / "design.md").read_text()


def test_names_used_in_design_exist():
    code = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    known = set(re.findall(r"[\w-]+", code))
    text = prose(ROOT / "docs" / "design.md")
    names = re.findall(r"`([a-zA-Z_][\w.]*)(?:\([^`]*\))?`", text)
    assert len(names) > 50
    assert [name for name in names if not known.issuperset(name.split("."))] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 120
