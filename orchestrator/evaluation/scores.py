"""Scores, joined with the SAEs they are of and the jobs that trained those and measured these."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from sqlalchemy import Engine, or_, select

from orchestrator import results, saes
from orchestrator.config.evaluation.families import FAMILIES, MAIN_SCORES
from orchestrator.database import models as m
from orchestrator.database.engine import reading
from orchestrator.errors import NotFound
from orchestrator.evaluation.measured_options import measured_options
from orchestrator.saes import SaeEntry

CONDITIONS = ("sae", "sweep", "subject", "place", "n_latents", "k", "l0", "tokens", "measured_on", "measured_with")
"""What a row of a table tells beside its scores: of which SAE they are, and what they were measured on."""
_IDS_PER_QUERY = 10_000


@dataclass(frozen=True, slots=True)
class ScoreEntry:
    """The value of one metric for one SAE, and how sure it is."""

    sae: str
    """The shortest selector that means the SAE."""
    sweep: str | None
    """Of the job that trained it."""
    subject: str | None
    place: str | None
    """What it reads: the site and the block, or the module."""
    n_latents: int
    k: int | None
    l0: float | None
    """As the table of SAEs has it."""
    family: str
    metric: str
    variant: str
    """Which of several definitions, subsets or baselines; empty: the plain one."""
    value: float | None
    std_error: float | None
    low: float | None
    """Ends of the 90% interval."""
    high: float | None
    n: int | None
    """How many tokens, examples, pairs or latents it is of."""
    seed: int
    tokens: int | None
    measured_on: str | None
    """The text."""
    measured_with: str
    """How the text is read, and options of the family, that the score depends on and that are not the defaults."""
    sae_id: int
    job_id: int
    """Of the evaluation."""
    is_stale: bool
    """Whether its job has been trained further since."""
    created_at: float
    details: dict[str, Any] | None

    @property
    def column(self) -> str:
        """Return the metric with its variant: delta_ce, delta_ce[first]."""
        return f"{self.metric}[{self.variant}]" if self.variant else self.metric

    def flat(self) -> dict[str, Any]:
        """Return its fields by name."""
        return {name: getattr(self, name) for name in type(self).__slots__}

    @classmethod
    def flat_types(cls) -> dict[str, Any]:
        """Return the types of what `flat` returns, by name."""
        return {one.name: one.type for one in fields(cls)}


def scores(
    engine: Engine, selectors: Sequence[str] = (), *, metrics: Sequence[str] = (), stale: bool = False,
    replaced: bool = False,
) -> list[ScoreEntry]:  # fmt: skip
    """Return scores by SAE, family and metric: the newest of each variant, text, number of tokens and options.

    `selectors`: those of `results.find_saes`; none: every SAE that is shown. `metrics`: names of metrics or families.
    `stale`: also those of an SAE before its job was extended. `replaced`: also those that a newer one stands for.

    Raises:
        NotFound: a selector means no SAE, or there is no such metric; the message names what is near.
    """
    entries = results.find_saes(engine, selectors) if selectors else saes.entries(engine)
    by_id = {entry.id: entry for entry in entries}
    _check_metrics(engine, metrics)
    score, family = m.ScoreRow, m.MeasuredFamily
    of_family = (family.job_id == score.job_id) & (family.family == score.family)
    query = select(score, family.tokens, family.measured_on).outerjoin(family, of_family)
    query = query.join(m.Job, m.Job.id == score.job_id).where(m.Job.hidden.is_(None)).order_by(score.id)
    if metrics:
        query = query.where(or_(score.metric.in_(metrics), score.family.in_(metrics)))
    found: dict[Any, ScoreEntry] = {}
    ids = list(by_id)
    with reading(engine) as session:
        for start in range(0, len(ids), _IDS_PER_QUERY):
            rows = session.execute(query.where(score.sae_id.in_(ids[start : start + _IDS_PER_QUERY]))).all()
            options = measured_options(session, {row.job_id for row, _, _ in rows})
            for row, tokens, text in rows:
                how = {"tokens": tokens, "measured_on": text, "measured_with": options[row.job_id, row.family]}
                one = _entry(row, by_id[row.sae_id], how)
                if stale or not one.is_stale:
                    measured_on = (text, tokens, one.measured_with, one.is_stale and row.sae_attempt)
                    key = (one.sae_id, one.family, one.metric, one.variant, measured_on)
                    found[(*key, row.id) if replaced else key] = one
    at = {sae_id: number for number, sae_id in enumerate(ids)}
    return sorted(
        found.values(), key=lambda one: (at[one.sae_id], _rank(one.family), one.measured_on or "", one.tokens or 0)
    )


def wide(rows: Sequence[ScoreEntry], *, variants: bool = False) -> list[dict[str, Any]]:
    """Return a row for each SAE, text, number of tokens and options, its scores under their names.

    With `variants` those of every variant. The uncertainty of a score is beside it, as NAME_std_error, or as NAME_low
    and NAME_high.
    """
    told = [row for row in rows if variants or not row.variant]
    names = list(dict.fromkeys(row.column for row in told))
    sure = {name: [part for part in ("std_error", "low", "high") if _has(told, name, part)] for name in names}
    found: dict[Any, dict[str, Any]] = {}
    for row in told:
        key = (row.sae_id, row.measured_on, row.tokens, row.measured_with, row.is_stale)
        values = found.setdefault(key, {name: getattr(row, name) for name in CONDITIONS} | _empty(sure))
        values[row.column] = row.value
        for part in sure[row.column]:
            values[f"{row.column}_{part}"] = getattr(row, part)
    return list(found.values())


def main_scores(rows: Sequence[ScoreEntry]) -> list[ScoreEntry]:
    """Return those that a table of many SAEs has a column for; all where there are none of these."""
    main = {(family, metric) for family, metrics in MAIN_SCORES.items() for metric in metrics}
    return [row for row in rows if (row.family, row.metric) in main and not row.variant] or list(rows)


def _empty(sure: dict[str, list[str]]) -> dict[str, Any]:
    return {column: None for name, parts in sure.items() for column in (name, *(f"{name}_{part}" for part in parts))}


def _has(rows: Sequence[ScoreEntry], name: str, part: str) -> bool:
    return any(row.column == name and getattr(row, part) is not None for row in rows)


def _entry(row: m.ScoreRow, sae: SaeEntry, how: dict[str, Any]) -> ScoreEntry:
    names = ("family", "metric", "variant", "value", "std_error", "low", "high", "n", "seed", "sae_id", "job_id")
    facts = sae.facts
    layers = ",".join(map(str, facts.layers))
    return ScoreEntry(
        sae=sae.label, sweep=sae.sweep, subject=facts.subject,
        place=f"{facts.site} {layers}" if facts.site and layers else facts.hook_point, n_latents=facts.n_latents,
        k=facts.k, l0=sae.l0, is_stale=row.sae_attempt != sae.attempt, created_at=row.created_at, details=row.details,
        **how, **{name: getattr(row, name) for name in names},
    )  # fmt: skip


def _rank(family: str) -> int:
    known = list(FAMILIES)
    return known.index(family) if family in known else len(known)


def _check_metrics(engine: Engine, metrics: Sequence[str]) -> None:
    wrong = [name for name in metrics if name not in FAMILIES]
    if not wrong:
        return
    with reading(engine) as session:
        known = set(session.scalars(select(m.ScoreRow.metric).group_by(m.ScoreRow.metric)))
    for name in wrong:
        if name not in known:
            near = get_close_matches(name, [*known, *FAMILIES], n=1)
            guess = f"; did you mean {near[0]!r}?" if near else "" if known else ": nothing has been measured yet"
            raise NotFound(f"there is no score {name!r}{guess}", hint=f"Families: {', '.join(FAMILIES)}.")
