"""The documentation site builds without warnings and offline, and its pages are complete."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from markdown_it import MarkdownIt

import spirit_jax
from spirit_jax.cli.commands import app

ROOT = Path(__file__).parents[1]
RESOURCES = {"script": "src", "img": "src", "audio": "src", "source": "src", "link": "href"}
COUNTED = {"li": "list_item_open", "tr": "tr_open"}

BUILD = """
import socket, sys
from mkdocs.__main__ import cli

def refuse(*_):
    raise OSError("the site is built offline")

socket.socket.connect = refuse
sys.modules["torch"] = None  # its import fails
cli()
"""


class Elements(HTMLParser):
    """The tags of a page and their attributes, with the number of those in the article."""

    def __init__(self, page: Path):
        super().__init__()
        self.tags, self.counts, self._in_article = [], dict.fromkeys(COUNTED, 0), False
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in_article |= tag == "article"
        if self._in_article and tag in self.counts:
            self.counts[tag] += 1

    def handle_endtag(self, tag):
        self._in_article &= tag != "article"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-c", BUILD, "build", "--strict", "--site-dir", str(folder)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_links_and_resources_of_the_site_are_in_it(site):
    missing, outside = [], []
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # its links are from the root of the host
            continue
        for tag, attributes in Elements(page).tags:
            link = attributes.get("src") or attributes.get("href") or ""
            if link.startswith(("http://", "https://", "//")):
                if tag in RESOURCES and attributes.get("rel") != "canonical":
                    outside.append((page.name, link))
            elif link and not link.startswith(("#", "data:", "mailto:")):
                if not (page.parent / link.partition("#")[0]).exists():
                    missing.append((page.name, link))
    assert missing == [] and outside == []


def test_pages_have_the_lists_and_tables_of_code_hosts(site):
    """Python-Markdown needs an empty line before a list, and four spaces before its second line."""
    parser = MarkdownIt("commonmark").enable("table")
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if "\n::: " in text:  # with docstrings
            continue
        tokens = [token.type for token in parser.parse(text)]
        expected = {tag: tokens.count(name) for tag, name in COUNTED.items()}
        assert Elements(site / f"{page.stem}.html").counts == expected, page.name


def test_every_command_has_a_page_with_its_options(site):
    groups, pages = [("", typer.main.get_command(app))], []
    for prefix, group in groups:
        for name in group.list_commands(None):
            _, command, _ = group.resolve_command(None, [name])
            if hasattr(command, "list_commands"):
                groups.append((f"{prefix}{name}-", command))
                continue
            pages.append(f"commands/{prefix}{name}.html")
            text = (site / pages[-1]).read_text(encoding="utf-8")
            options = [p.opts[0] for p in command.params if p.param_type_name == "option"]
            assert [option for option in options if option not in text] == [], name
    navigation = (site / "index.html").read_text(encoding="utf-8")
    assert [page for page in pages if f'href="{page}"' not in navigation] == []
    assert "commands/convert-llama.html" in pages


def test_public_names_are_documented(site):
    text = "".join(page.read_text(encoding="utf-8") for page in site.glob("api*.html"))
    names = set(spirit_jax.__all__) - {"__version__"}
    assert [name for name in names if not re.search(rf'id="[\w.]+\.{name}"', text)] == []
