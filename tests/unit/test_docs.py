"""The README and the pages in docs/ tell the truth: what they name is there, and the README stays short."""

import re
from pathlib import Path

import click
import pytest

from orchestrator.cli.main import cli
from orchestrator.config.validation import field_paths
from orchestrator.settings import NAMES

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
WINGS = ("orch", "orchestrator", "worker")
TOP = ("orch", "orchestrator", "worker", "migrations", "benchmarks", "examples", "tests", "docs")
MOST_LINES, WIDTH = 140, 120
_SUFFIXES = "py|md|yaml|toml|css|ipynb"


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _prose(page: Path) -> list[str]:
    """Return the lines of a page that are neither code nor table."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [line for line in text.splitlines() if not line.startswith(("|", "<", ":", "    "))]


def _packages() -> set[Path]:
    """Return every package of both wings, and the folders at the top."""
    found = {path.parent for wing in WINGS for path in (ROOT / wing).rglob("__init__.py")}
    return {path.relative_to(ROOT) for path in found}


def test_the_readme_is_short() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES
    assert [line for line in lines if len(line) > WIDTH] == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_prose_is_wrapped(page: Path) -> None:
    assert [line for line in _prose(page) if len(line) > WIDTH] == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_page_says_first_what_it_is_for(page: Path) -> None:
    body = [line for line in page.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert body[0].startswith("# ")
    if page not in (README, ROOT / "docs" / "index.md"):
        assert body[1].startswith("After this page you ")


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_paths_that_are_named_are_there(page: Path) -> None:
    tops = "|".join(TOP)
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(rf"`((?:{tops})/[\w./-]*)`", text))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    # A file named alone stands somewhere in the wings, or beside the README.
    alone = set(re.findall(rf"`((?:\w+/)*\w+\.(?:{_SUFFIXES}))`", text)) - named
    known = {path.relative_to(ROOT).as_posix() for top in TOP for path in (ROOT / top).rglob("*.*")}
    known |= {path.name for path in ROOT.iterdir()} | {"orch.toml", "common.yaml", "mine.yaml", "load.py"}
    lost = [path for path in sorted(alone) if not any(f"/{one}".endswith(f"/{path}") for one in known)]
    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    links += re.findall(r'src="([^":]+)"', page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_shows_every_package() -> None:
    text = README.read_text(encoding="utf-8")
    tree = text[text.index("\n```\norch/") :]
    tree = tree[: tree.index("\n```\n", 5)]
    for package in _packages():
        assert re.search(rf"\b{package.name}/", tree), f"the README's tree lacks {package}"
    shown = {word.rstrip("/") for word in re.findall(r"\b(\w+)/(?!\w)", tree)}
    there = {package.name for package in _packages()} | set(TOP)
    assert shown <= there, f"the README's tree shows {shown - there}, which are not there"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_and_targets_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    context = click.Context(cli)
    spoken = set(re.findall(r"`orch ([a-z]+(?: [a-z]+)?)", text))
    spoken |= set(re.findall(r"^(?:\$ )?orch ([a-z]+(?: [a-z]+)?)", text, re.M))
    for words in spoken:
        name, _, inner = words.partition(" ")
        command = cli.get_command(context, name)
        assert command, f"`orch {words}`"
        if isinstance(command, click.Group) and inner:
            assert command.get_command(context, inner) or command.params, f"`orch {words}`"
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for spoken_targets in re.findall(r"`make ([a-z -]+)", text):
        assert set(spoken_targets.split()) <= set(targets)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_config_keys_and_settings_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for key in re.findall(r"`((?:subject|data|sae|optimizer|training|stop)\.[a-z_]+)[`: ]", text):
        assert key in field_paths() or key.endswith((".safetensors", ".py")), key
    for name in re.findall(r"ORCH_([A-Z_]+[A-Z])\b", text):
        assert name.lower() in NAMES, name


def test_operations_lists_every_setting() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = text[text.index("| setting | default |") :].partition("\n\n")[0]
    assert set(re.findall(r"`([a-z_]+)`", table)) >= set(NAMES)
