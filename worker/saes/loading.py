"""An SAE of the table as a module: of a job, from its own folder; of an import, from the copy that was kept."""

from pathlib import Path

from orchestrator.saes import SaeEntry
from orchestrator.settings import Settings
from worker.formats import portable
from worker.sae.inference import InferenceSae


def load_sae(entry: SaeEntry, settings: Settings, *, device: str = "cpu") -> InferenceSae:
    """Return an SAE with what is known of it in its `facts`.

    Raises:
        ConfigError: its folder is gone or damaged.
    """
    return portable.read(Path(settings.artifact(entry.uri))).changed({}, facts=entry.facts).to(device)
