"""Which jobs of a fit read their text more than once: their losses are of repeated tokens, not of as many new ones."""

from collections.abc import Collection, Sequence

from orchestrator.formatting import count, digits, jobs_named
from orchestrator.scaling.types import JobMeasurement

_NAMED = 3


def repeating(rows: Sequence[JobMeasurement]) -> list[JobMeasurement]:
    """Return the jobs that made more than one pass over their text, the one with the most first."""
    found = [(row.passes, row) for row in rows if row.passes is not None and row.passes > 1]
    return [row for _, row in sorted(found, key=lambda pair: (-pair[0], pair[1].job_id))]


def told_passes(repeated: Sequence[JobMeasurement]) -> str:
    """Say how many passes the first of some repeating jobs made: `43.7 passes over 12.0k trainable tokens (job 3)`."""
    most = repeated[0]
    jobs = jobs_named([row.job_id for row in repeated], most=_NAMED)
    up_to = "up to " if len(repeated) > 1 else ""
    return f"{up_to}{digits(most.passes)} passes over {count(most.trainable_tokens)} trainable tokens ({jobs})"


def note_on_passes(rows: Sequence[JobMeasurement], jobs: Collection[int]) -> list[str]:
    """Say that jobs of a fit read their text more than once; nothing where none did."""
    fitted = set(jobs)
    mine = [row for row in rows if row.job_id in fitted]
    repeated = repeating(mine)
    if not repeated:
        return []
    said = f"{len(repeated)} of {len(mine)} jobs read their text more than once: {told_passes(repeated)}."
    return [f"{said} What repeated text costs, a law fitted to them cannot tell apart."]
