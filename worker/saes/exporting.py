"""Write an SAE as another library reads it, with a card; upload it where asked."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from orchestrator.errors import ConfigError, StateError, StorageError
from orchestrator.masking import clean, mask_all
from orchestrator.settings import Settings
from worker import checked_folder
from worker.formats.registry import WRITTEN, write
from worker.sae.inference import InferenceSae
from worker.saes.card import card
from worker.saes.loading import Chosen, choose_sae
from worker.subject import hub
from worker.tracking import job_record


def export_sae(engine: Engine, settings: Settings, selector: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Write an SAE to a new folder in a format, its card beside it; return what is said of it.

    Raises:
        ConfigError: there is no such format, or it cannot hold this SAE.
        StateError: the folder exists.
        StorageError: it cannot be written; nothing half-written stays.
        SubjectError, MachineError: the hub refuses the upload, or is out of reach.
    """
    folder, name = Path(asked["folder"]).expanduser(), asked["format"]
    if name not in WRITTEN:
        raise ConfigError(f"{name!r} is no format that is written", hint=f"There are: {', '.join(WRITTEN)}")
    if folder.exists():
        raise StateError(f"{folder} exists", hint="Name a new folder: nothing is written over.")
    chosen = choose_sae(engine, settings, selector)
    if asked.get("layer") is not None:
        chosen = chosen._replace(sae=at_layer(chosen.sae, asked["layer"]))
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        write(chosen.sae, beside, format=name)
        _describe(engine, chosen, beside, name)
        beside.rename(folder)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    files = sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file())
    lines = [f"{folder}: {name}: {', '.join(files)}"]
    url = _push(folder, asked["push"]) if asked.get("push") else None
    return {
        "id": chosen.entry and chosen.entry.id,
        "selector": chosen.label,
        "format": name,
        "folder": str(folder),
        "files": files,
        "url": url,
        "lines": [*lines, *([f"Uploaded: {url}"] if url else [])],
    }


def at_layer(sae: InferenceSae, layer: int) -> InferenceSae:
    """Return an SAE of several layers as one of a single layer of them, as most formats have it.

    Raises:
        ConfigError: it does not read that layer.
    """
    layers = sae.facts.layers
    if layer not in layers:
        told = ", ".join(map(str, layers)) or "none that is known"
        raise ConfigError(f"the SAE does not read layer {layer}", hint=f"It reads: {told}.")
    return sae.changed({}, facts=replace(sae.facts, layers=(layer,)))


def _describe(engine: Engine, chosen: Chosen, folder: Path, format_: str) -> None:
    """Write the card, and of a job's SAE the picture of its curve."""
    config: dict[str, Any] | None = None
    came_to: dict[str, Any] = {}
    if chosen.entry is not None and chosen.entry.job_id is not None:
        record = job_record.read(engine, chosen.entry.job_id)
        config = mask_all(json.loads(record.job.config))
        if record.result is not None:
            names = ("dead_share", "tokens_seen", "outcome")
            came_to = {name: getattr(record.result, name) for name in names}
        job_record.draw_curve(record, folder / "curve.png")
    text = card(chosen, format_, config=config, results=came_to)
    checked_folder.write_text(folder / "README.md", clean(text))


def _push(folder: Path, repository: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    what = f"SAE {repository!r}"
    if not hub.is_reachable():
        raise hub.out_of_reach(
            f"{folder} is written, and the hub cannot be reached", f"Later: hf upload {repository} {folder}"
        )
    try:
        api = HfApi()
        url = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Add an SAE")
    except HFValidationError as error:
        raise ConfigError(f"{what}: {hub.first_line(error)}", hint="--push ORG/NAME") from None
    except (OSError, ValueError) as error:
        raise hub.refused(what, error, "Check the name, and who you are: hf auth login") from None
    return str(url)
