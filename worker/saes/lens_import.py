"""Bring in a tuned lens: read its files, hold them against the model they are to be of, keep them, enter a row."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from orchestrator import lenses
from orchestrator.config.job import SubjectConfig
from orchestrator.errors import NotFound
from orchestrator.lenses import NewLens
from orchestrator.settings import Settings


def import_lens(engine: Engine, settings: Settings, source: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Bring in a lens of the tuned-lens library; return what is said of it.

    Raises:
        NotFound: there is no such folder, or it is a file.
        ConfigError: its files are no lens, or of another model; or it cannot be named so.
        StateError: its name is taken.
        SubjectError, MachineError: its model is not here.
        StorageError: it cannot be kept here; nothing half-written stays.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        what = f"{source} is a file, not a folder" if folder.exists() else f"there is no folder {source}"
        raise NotFound(what, hint="Give the folder that holds config.json and params.pt.")
    name = asked.get("name") or folder.absolute().name
    lenses.check_name(engine, name)
    from worker.lens.published import read_published  # with it comes torch, which takes seconds to load

    lens = read_published(folder, SubjectConfig(model=asked["subject"], revision=asked.get("revision")))
    conditions = lens.check_invertible()
    stored = lens.store(settings.artifacts_folder)
    facts = lens.facts
    new = NewLens(
        name=name, source=str(folder.absolute()), sha256=stored.sha256, uri=stored.uri, model=facts.model,
        revision=facts.revision, fingerprint=facts.fingerprint, dtype=facts.dtype, n_layers=facts.n_layers,
        d_model=facts.d_model, conditions=[*conditions],
    )  # fmt: skip
    number = lenses.add(engine, new)
    of = f"{facts.n_layers} blocks of width {facts.d_model} of {facts.model}"
    return {
        "id": number,
        "selector": name,
        "sha256": stored.sha256,
        "lines": [
            f"lens {name}: {of}, content id {stored.sha256}",
            "Condition numbers by layer: " + ", ".join(f"{condition:.3g}" for condition in conditions),
            f"The output of block l has translator l + 1 of the files; that of the last, {facts.n_layers - 1}, none.",
        ],
    }
