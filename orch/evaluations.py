"""Evaluations of SAEs, from Python: ask for them, read their scores."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orch.frames import frame
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from pandas import DataFrame
    from sqlalchemy import Engine

Selector = int | str | Path
"""A job's number, `sae:` with a name or number, a sweep's name (also `sweep:NAME`), or the folder of an SAE."""


class Evaluations:
    """What a `Study` does with evaluations."""

    def __init__(self, settings: Settings, engine: "Engine") -> None:
        """Read by these settings, through this engine."""
        self.settings = settings
        self._engine = engine

    def evaluate(
        self, *selectors: Selector, metrics: Sequence[str] = (), config: Mapping[str, Any] | None = None,
        tokens: int | None = None, data: str | None = None, where: Mapping[str, Any] | None = None, again: bool = False,
    ) -> list[int]:  # fmt: skip
        """Queue jobs that measure SAEs, as `orch evaluate`; return their numbers, with those there already.

        `config` is the content of a file for `orch evaluate --config`; what is given beside it comes first. SAEs that
        cannot be measured are left out, with a warning for each.

        Raises:
            NotFound: a selector means no SAE.
            ConfigError: a metric family or a key that there is not.
            SubjectError: none of the SAEs can be measured.
        """
        from orchestrator.dispatch import NOT_WOKEN, wake
        from orchestrator.evaluation.asking import plan_of, request_evaluations

        plan = plan_of(config, metrics=names(metrics), tokens=tokens, source=data)
        asked = [str(one) for one in selectors]
        found = request_evaluations(self._engine, self.settings, asked, plan, where=listed(where), again=again)
        for one in found.refused:
            warnings.warn(f"{one.label} cannot be evaluated: {one.refused}", stacklevel=2)
        if not wake(self.settings, [one.job_id for one in found.added if one.job_id is not None]):
            warnings.warn(NOT_WOKEN, stacklevel=2)
        return found.job_ids

    def scores(
        self, *selectors: Selector, metrics: Sequence[str] = (), long: bool = True, variants: bool = False,
        stale: bool = False,
    ) -> "DataFrame":  # fmt: skip
        """Return what was measured of SAEs: of each SAE, metric, variant, text and number of tokens the newest.

        `long`: a row for each score, with its uncertainty, what it is of, and details; else a row for each SAE, its
        scores the columns of `orch results -o csv`. `metrics`: names of scores, or of metric families.

        Raises:
            NotFound: a selector means no SAE, or there is no such score.
        """
        from orchestrator.evaluation import scores

        rows = scores.scores(self._engine, [str(one) for one in selectors], metrics=names(metrics), stale=stale)
        if long:
            return frame([row.flat() for row in rows], scores.ScoreEntry.flat_types())
        records = scores.wide(rows, variants=variants)
        own = scores.ScoreEntry.flat_types()
        return frame(records, {name: own.get(name, float | None) for name in (records[0] if records else ("sae",))})


def names(given: Sequence[str]) -> Sequence[str]:
    """Return some names as a list: one alone is a list of itself."""
    return [given] if isinstance(given, str) else given


def listed(where: Mapping[str, Any] | None) -> dict[str, list[Any]]:
    """Return the values of each key as a list."""
    return {key: list(value) if isinstance(value, list | tuple) else [value] for key, value in (where or {}).items()}
