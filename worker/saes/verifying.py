"""Measure an SAE of the table again, and store whether it is what it should be."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine

from orchestrator import results, saes
from orchestrator.config.job import JobConfig
from orchestrator.config.lens.facts import LENSES
from orchestrator.config.sae_reading import config_of
from orchestrator.errors import SubjectError
from orchestrator.results.stored_configs import trained_config
from orchestrator.saes import Measured
from orchestrator.settings import Settings
from worker.saes import verification
from worker.saes.loading import choose_sae
from worker.saes.subject_vectors import read_vectors
from worker.saes.verification import Found

_SAME = 0.01
"""Relative difference of an fvu that is measured again on the same text."""


def verify_sae(engine: Engine, settings: Settings, selector: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Measure an SAE on its subject's activations; of one of the table, store what it came to.

    Raises:
        ConfigError: its files are gone or damaged, or what is asked for does not fit together.
        SubjectError, MachineError: its subject or text cannot be read here.
    """
    label, sae, entry = choose_sae(engine, settings, selector, device=asked.get("device") or "cpu")
    if sae.facts.is_transcoder:
        raise SubjectError(f"{label} is a transcoder: those are not measured yet")
    job_id = entry.job_id if entry is not None else None
    trained = trained_config(engine, job_id) if job_id is not None else None
    config = config_of(sae.facts, asked, trained)
    vectors = read_vectors(
        config, settings.home / "tokens", asked.get("device") or "cpu", lenses=settings.artifacts_folder / LENSES
    )
    found = verification.measure({label: sae}, vectors.values)[label]
    as_trained = trained is not None and _reads_the_same(trained, config)
    why = _differs(engine, job_id, found) if as_trained and job_id else verification.why_not(found)
    measured = Measured(found.fvu, found.fvu_raw, found.l0, len(vectors.values), vectors.text)
    came_to = f"fvu {found.fvu:.4f}, L0 {found.l0:.1f} on {measured.tokens:,} tokens of {measured.text}"
    state: saes.SaeState = "refused" if why else "verified"
    if entry is not None:
        saes.set_measured(engine, entry.id, measured, state=state, note=why or came_to)
    return {
        "id": entry and entry.id,
        "selector": label,
        "state": state,
        "note": why,
        "untrained_fvu": found.untrained,
        **measured._asdict(),
        "lines": [f"{label} is {state}: {why or came_to} (untrained: fvu {found.untrained:.4f})"],
    }


def _reads_the_same(trained: JobConfig, config: JobConfig) -> bool:
    """Say whether what is read is the held-out text of a training, all of it and no more."""
    counts = {one.training.heldout_tokens for one in (trained, config)}
    return trained.data == config.data and trained.subject == config.subject and len(counts) == 1


def _differs(engine: Engine, job_id: int, found: Found) -> str:
    """Return why a job's SAE is not the one that was measured as it was trained; empty where it is."""
    then = results.jobs(engine, ids=[job_id])[0].fvu
    if then is None or abs(found.fvu - then) <= _SAME * then:
        return ""
    return f"fvu is {found.fvu:.4f}, and was {then:.4f} when it was trained: are its files the same?"
