"""SAEs as modules: of a job, from its own folder; of an import, from the copy that was kept; or of any folder."""

from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Engine

from orchestrator import results
from orchestrator.errors import NotFound
from orchestrator.results.selectors import is_path
from orchestrator.saes import SaeEntry
from orchestrator.settings import Settings
from worker.formats import portable
from worker.formats.registry import read
from worker.sae.inference import InferenceSae


class Chosen(NamedTuple):
    """An SAE that a selector means."""

    label: str
    sae: InferenceSae
    entry: SaeEntry | None
    """Its row; None: it is a folder or a file."""


def choose_sae(engine: Engine, settings: Settings, selector: str, *, device: str = "cpu") -> Chosen:
    """Return the SAE of a selector: of the table, or of a folder or file in any format that is known.

    Raises:
        NotFound: it is neither.
        ConfigError: its files are gone, damaged or in no format that is known.
    """
    if is_path(selector):
        if not Path(selector).expanduser().exists():
            raise NotFound(f"there is no file or folder {selector}", hint="orch sae list shows the SAEs of the table.")
        return Chosen(selector, read(Path(selector).expanduser(), named=selector).sae.to(device), None)
    (entry,) = results.find_saes(engine, [selector])
    return Chosen(entry.label, load_sae(entry, settings, device=device), entry)


def load_sae(entry: SaeEntry, settings: Settings, *, device: str = "cpu") -> InferenceSae:
    """Return an SAE with what is known of it in its `facts`.

    Raises:
        ConfigError: its folder is gone or damaged.
    """
    return portable.read(Path(settings.artifact(entry.uri))).changed({}, facts=entry.facts).to(device)
