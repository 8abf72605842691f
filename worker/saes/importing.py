"""Bring in an SAE: read its files, try them on its subject's activations, keep them in our own format, enter a row."""

import hashlib
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Engine

from orchestrator import saes
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.config.sae_reading import config_of, stated_place
from orchestrator.errors import ConfigError, MachineError, OrchError, SubjectError
from orchestrator.saes import Measured, NewSae, SaeState
from orchestrator.settings import Settings
from orchestrator.storage.garbage import IMPORTED
from worker import checked_folder
from worker.formats.registry import Detection, detect, read, write
from worker.formats.variants import Variant, variants
from worker.saes import verification
from worker.saes.hub_files import local_files
from worker.saes.subject_vectors import Vectors, read_vectors
from worker.saes.verification import Found

_NAME = re.compile(r"[A-Za-z_][\w.-]{0,99}", re.ASCII)
_FOLDER = "sae"
AS_READ = "as-read"
"""The convention that the files seem to mean."""


class Judged(NamedTuple):
    """The reading that is meant, and what was found of it."""

    variant: Variant
    measured: Measured | None
    state: SaeState
    note: str
    conventions: list[dict[str, Any]]


def import_sae(engine: Engine, settings: Settings, source: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Bring in an SAE; return what is said of it, or, as `refused`, why it is not entered.

    Raises:
        ConfigError: its files cannot be read as an SAE, or do not fit the subject.
        StateError: its name is taken.
        StorageError: it cannot be kept here; nothing half-written stays.
    """
    path = local_files(source)
    name = _name(asked.get("name"), path)
    saes.check_name(engine, name)
    found = Detection(asked["format"], ["--format says so"]) if asked.get("format") else detect(path)
    sae = read(path, format=found.name, named=source).sae
    if sae.facts.lens is not None:
        raise ConfigError(
            f"{source} reads the space of the tuned lens {sae.facts.lens[:12]}, and such an SAE is kept with the job "
            "that trained it alone",
            hint="Use it where its job is.",
        )
    vectors, away = (
        (None, "a transcoder is not measured yet") if sae.facts.is_transcoder else _vectors(sae.facts, asked, settings)
    )
    judged = _judge(variants(sae), vectors, away, asked.get("convention"))
    if not isinstance(judged, Judged):
        return judged
    place = vectors.place if vectors else stated_place(asked)
    facts = replace(judged.variant.sae.facts, **place)
    sha256 = _sha256(path)
    folder = settings.artifacts_folder / IMPORTED / f"{name}-{uuid.uuid4().hex[:8]}" / _FOLDER
    write(judged.variant.sae, folder, format="orch", facts=facts)
    new = NewSae(
        name=name, format=found.name, source=source, sha256=sha256, uri=str(folder.absolute()), facts=facts,
        measured=judged.measured, state=judged.state, note=judged.note,
    )  # fmt: skip
    try:
        number = saes.add(engine, new)
    except OrchError:  # the name was given meanwhile, or the database is away
        shutil.rmtree(folder.parent, ignore_errors=True)
        raise
    return {
        "id": number,
        "selector": f"sae:{name}",
        "format": found.name,
        "state": judged.state,
        "note": judged.note,
        "conventions": judged.conventions,
        "lines": [
            f"sae:{name} is {judged.state}: {judged.note}",
            f"Read as {found.name}: {'; '.join(found.reasons)}",
            *_other_place(judged.variant.sae.facts, facts),
        ],
    }


def _other_place(stated: SaeFacts, taken: SaeFacts) -> list[str]:
    """Say where the SAE was taken for one of another place than its files state."""
    pairs = (
        ("subject", stated.subject, taken.subject),
        ("layer", ", ".join(map(str, stated.layers)), ", ".join(map(str, taken.layers))),
        ("site", stated.site, taken.site),
    )
    return [f"Its files state {name} {one}, not {other}" for name, one, other in pairs if one and other != one]


def _name(asked: str | None, path: Path) -> str:
    name = asked or re.sub(r"[^\w.-]+", "-", path.stem if path.is_file() else path.absolute().name).strip("-.")
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name of an SAE", hint="--name NAME: begin with a letter; then letters, digits, . _ and -."
        )
    return name


def _vectors(facts: SaeFacts, asked: Mapping[str, Any], settings: Settings) -> tuple[Vectors | None, str]:
    """Return the activations to try it on; without them, why there are none."""
    try:
        vectors = read_vectors(config_of(facts, asked), settings.home / "tokens", asked.get("device") or "cpu")
    except (SubjectError, MachineError) as error:
        return None, error.message
    if vectors.values.shape[1] != facts.d_model:
        raise ConfigError(
            f"the SAE reads {facts.d_model} dimensions, and this place of {facts.subject or asked.get('subject')} has "
            f"{vectors.values.shape[1]}",
            hint="Another subject, layer or site is meant.",
        )
    return vectors, ""


def _judge(
    several: Sequence[Variant], vectors: Vectors | None, away: str, convention: str | None
) -> Judged | dict[str, Any]:
    several = [one._replace(flag=one.flag or AS_READ) for one in several]
    meant = _named(several, convention)
    if vectors is None:
        return Judged(meant, None, "unverified", away, [])
    if len(vectors.values) < verification.LEAST_TOKENS:
        raise ConfigError(f"the text gives {len(vectors.values)} tokens: {verification.LEAST_TOKENS} are needed")
    found = verification.measure({one.flag: one.sae for one in several}, vectors.values)
    mine = found[meant.flag]
    why = verification.why_not(mine)
    conventions = [
        {"name": one.flag, "fvu": found[one.flag].fvu_raw, "l0": found[one.flag].l0, "note": one.name}
        for one in several
    ]
    better = verification.clearly_better(mine, [one for one in found.values() if one is not mine])
    if convention is None and (why or better):
        return _refused(mine, why, better, conventions)
    measured = Measured(mine.fvu, mine.fvu_raw, mine.l0, len(vectors.values), vectors.text)
    agrees = f"fvu {mine.fvu:.4f}, L0 {mine.l0:.1f} on {len(vectors.values):,} tokens of {vectors.text}"
    if why:
        return Judged(meant, measured, "refused", why, conventions)
    if better:
        note = f"{agrees}; read as {better[0].name} it reconstructs clearly better"
        return Judged(meant, measured, "unverified", note, conventions)
    return Judged(meant, measured, "verified", agrees, conventions)


def _refused(mine: Found, why: str, better: Sequence[Found], conventions: list[dict[str, Any]]) -> dict[str, Any]:
    if better:
        names = ", ".join(one.name for one in better)
        reason = f"its files seem to mean {mine.name}, and {names} reconstructs clearly better"
        hint = f"Say which is meant: --convention {better[0].name}, or --convention {mine.name}"
    else:
        reason = f"it does not reconstruct this subject's activations as it should: {why}"
        hint = f"Is it of this model, layer, site and text? To enter it all the same: --convention {mine.name}"
    return {"refused": f"nothing is entered: {reason}", "hint": hint, "conventions": conventions}


def _named(several: Sequence[Variant], convention: str | None) -> Variant:
    for one in several:
        if one.flag == (convention or AS_READ):
            return one
    names = ", ".join(one.flag for one in several)
    raise ConfigError(f"{convention!r} is no convention of these files", hint=f"There are: {names}")


def _sha256(path: Path) -> str:
    """Return the sha256 of a file; of a folder that of its files' names and sums."""
    if path.is_file():
        return checked_folder.sha256_of_file(path)
    sums = [
        f"{one.relative_to(path)} {checked_folder.sha256_of_file(one)}"
        for one in sorted(path.rglob("*"))
        if one.is_file()
    ]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()
