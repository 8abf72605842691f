"""MkDocs calls this while it builds: a page of the API for every package, so that a new package has one by itself."""

import ast
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOOR = "orch"
PACKAGES = ("orchestrator", "worker")
ROOT = Path(__file__).parents[1]
PLACE = "<!-- packages -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each package."""
    for name in packages():
        page = f"---\ntitle: {name}\n---\n\n::: {name}\n"
        files.append(File.generated(config, f"api/{name}.md", content=page))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the list of packages into the page that asks for it."""
    if PLACE not in markdown:
        return markdown
    rows = [f"| [`{name}`](api/{name}.md) | {purpose(name)} |" for name in packages()]
    return markdown.replace(PLACE, "\n".join(["| package | what it holds |", "|---|---|", *rows]))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leave out what mkdocs-click writes for an option without a default: click's internal mark."""
    return html.replace("<code>Sentinel.UNSET</code>", "")


def packages() -> list[str]:
    """Return the packages that get a page: the door, and the children of both wings."""
    found = (path.parent for wing in PACKAGES for path in (ROOT / wing).glob("*/__init__.py"))
    return [DOOR, *sorted(".".join(path.relative_to(ROOT).parts) for path in found)]


def purpose(name: str) -> str:
    """Return the first line of a package's docstring."""
    source = ROOT.joinpath(*name.split("."), "__init__.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
