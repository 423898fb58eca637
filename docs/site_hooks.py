"""Hooks of mkdocs.yml: pages that the site has beside docs/*.md, and links out of that folder.

The home page is README.md. Each command has a page with its help, `commands/NAME.md`. A file that a
page links to outside docs/, such as a run config, is copied to the site.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from spirit_jax.cli.commands import app

ROOT = Path(__file__).parents[1]
README = "README.md"
SECTION = "Every command and option"  # of the navigation, which `on_config` fills
OUTSIDE = re.compile(r'(\]\(|src=")\.\./([^)"#]+)')  # the start of a link to a file outside docs/


def on_config(config: MkDocsConfig) -> None:
    """Adds the pages of the commands to the navigation."""
    (section,) = [entry for entry in config.nav if SECTION in entry]
    section[SECTION] = [{name: command_page(name)} for name, _ in list_commands()]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the home page, the pages of the commands, and the linked files outside docs/."""
    home = re.sub(r'(\]\(|src=")docs/', r"\1", (ROOT / README).read_text(encoding="utf-8"))
    files.append(File.generated(config, "index.md", content=home))
    for name, command in list_commands():
        files.append(File.generated(config, command_page(name), content=describe(name, command)))
    pages = [file.content_string for file in files.documentation_pages()]
    linked = {path for text in pages for _, path in OUTSIDE.findall(text)} - {README}
    for path in sorted(linked):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))


def on_page_markdown(markdown: str, **_: object) -> str:
    """Points links that leave docs/ to the copies of `on_files`."""
    return OUTSIDE.sub(
        lambda link: link[1] + ("index.md" if link[2] == README else link[2]), markdown
    )


def list_commands() -> Iterator[tuple[str, typer.core.TyperCommand]]:
    """The name, without `spirit-jax`, and the object of each command that is not a group."""
    groups = [("", typer.main.get_command(app))]
    for prefix, group in groups:
        for name in group.list_commands(None):
            _, command, _ = group.resolve_command(None, [name])
            if hasattr(command, "list_commands"):
                groups.append((f"{prefix}{name} ", command))
            else:
                yield f"{prefix}{name}", command


def command_page(name: str) -> str:
    """The path of the page of a command."""
    return f"commands/{name.replace(' ', '-')}.md"


def describe(name: str, command: typer.core.TyperCommand) -> str:
    """The help of a command as a page."""
    name = f"spirit-jax {name}"
    context = typer.Context(command, info_name=name)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    page = f"# {name}\n\n```text\n{usage}\n```\n\n{describe_help(command.help)}\n\n"
    for title, kind in (("Arguments", "argument"), ("Options", "option")):
        parameters = [p for p in command.get_params(context) if p.param_type_name == kind]
        records = [record for p in parameters if (record := p.get_help_record(context))]
        if records:
            rows = "".join(f"| `{names}` | {escape(text)} |\n" for names, text in records)
            page += f"## {title}\n\n| {kind} | meaning |\n|---|---|\n{rows}\n"
    return page


def describe_help(text: str) -> str:
    """The paragraphs of a help text; those of command lines as code."""
    paragraphs = text.replace("\b\n", "").strip().split("\n\n")
    return "\n\n".join(
        f"```bash\n{paragraph}\n```" if paragraph.startswith("spirit-jax ") else escape(paragraph)
        for paragraph in paragraphs
    )


def escape(text: str) -> str:
    """A text in which only code between backticks and names of pages are Markdown."""
    parts = re.split(r"(`[^`]+`)", text)
    parts[::2] = [re.sub(r"([\\`*_<>\[\]|#])", r"\\\1", part) for part in parts[::2]]
    # In angle brackets, so that it is not a link of `OUTSIDE`.
    return re.sub(r"\bdocs/([\w-]+\.md)", r"[\1](<../\1>)", "".join(parts))
