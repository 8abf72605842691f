"""From selectors to evaluation jobs: what `orch evaluate` and `import orch` share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from orchestrator import queue, results
from orchestrator.config.evaluation.evaluation import EvaluationPlan
from orchestrator.config.evaluation.families import FAMILIES
from orchestrator.config.evaluation.reading import families_hint, parse_plan, unknown_family
from orchestrator.errors import ConfigError, NotFound, SubjectError
from orchestrator.job_states import OPEN
from orchestrator.queue import Asked
from orchestrator.results.choice import Choice, choose
from orchestrator.saes import SaeEntry
from orchestrator.settings import Settings
from orchestrator.sweep.plan_paths import with_checked_paths
from orchestrator.units import is_number


@dataclass(frozen=True)
class Evaluations:
    """What became of a request to evaluate SAEs."""

    plan: EvaluationPlan
    asked: Sequence[Asked]
    """Of each SAE, in the order asked."""
    in_training: int
    """Jobs of the selectors that may still come to an SAE."""

    @property
    def added(self) -> list[Asked]:
        """Return those that are new."""
        return [one for one in self.asked if one.is_new]

    @property
    def there(self) -> list[Asked]:
        """Return those that were there already."""
        return [one for one in self.asked if not one.is_new and not one.refused]

    @property
    def refused(self) -> list[Asked]:
        """Return those of SAEs that cannot be measured."""
        return [one for one in self.asked if one.refused]

    @property
    def job_ids(self) -> list[int]:
        """Return the jobs, new ones and those that were there."""
        return [one.job_id for one in self.asked if one.job_id is not None]


def plan_of(
    file: Mapping[str, Any] | Sequence[str] | None = None, *, metrics: Sequence[str] = (), tokens: int | None = None,
    source: str | None = None, at_layers: Any = None, where: str = "",
) -> EvaluationPlan:  # fmt: skip
    """Return a plan by the content of a file of one, and by what is asked for beside it, which comes first.

    `where`: the path of the file, which relative paths are read from.

    Raises:
        ConfigError: says what is wrong, and what was probably meant.
    """
    folder = Path(where).parent.absolute() if where else None
    plan = parse_plan({} if file is None else file, where, folder)
    if wrong := [name for name in metrics if name not in FAMILIES]:
        raise ConfigError(unknown_family(wrong[0]), hint=families_hint())
    given: dict[str, Any] = {
        "metrics": list(metrics) or None, "tokens": tokens, "source": source, "at_layers": at_layers,
    }  # fmt: skip
    values = plan.model_dump(mode="json") | {name: value for name, value in given.items() if value is not None}
    return with_checked_paths(parse_plan(values, where), folder, takes_selectors=True)


def request_evaluations(
    engine: Engine, settings: Settings, selectors: Sequence[str], plan: EvaluationPlan, *,
    where: Mapping[str, Sequence[Any]] | None = None, again: bool = False, dry_run: bool = False,
) -> Evaluations:  # fmt: skip
    """Queue the evaluation of the SAEs of selectors; with `where` of those alone whose jobs have such configs.

    Raises:
        NotFound: a selector, or one of `structure.against`, means no SAE; or none has such a config.
        SubjectError: none of them can be measured; the message says why.
        StateError: a worker of an earlier version is at work.
    """
    plan = _with_others(engine, settings, plan)
    entries = results.find_saes(engine, selectors)
    if where:
        entries = _having(engine, entries, where)
    asked = queue.evaluate(engine, plan, [entry.id for entry in entries], again=again, dry_run=dry_run)
    found = Evaluations(plan, asked, _in_training(engine, selectors, where))
    if asked and len(found.refused) == len(asked):
        first = asked[0]
        others = "the other" if len(asked) == 2 else f"the other {len(asked) - 1}"
        more = f"; nor can {others}" if len(asked) > 1 else ""
        hint = first.hint or f"orch sae show {first.label}"
        raise SubjectError(f"{first.label} cannot be evaluated: {first.refused}{more}", hint=hint)
    return found


def _with_others(engine: Engine, settings: Settings, plan: EvaluationPlan) -> EvaluationPlan:
    """Return a plan whose `structure.against` names SAEs of the table by their folders: LABEL=FOLDER."""
    against: list[str] = []
    for one in plan.structure.against:
        if Path(one).is_absolute():
            against.append(one)
            continue
        try:
            against += [f"{sae.label}={settings.artifact(sae.uri)}" for sae in results.find_saes(engine, [one])]
        except NotFound as error:
            hint = "It takes job numbers, sae:NAME, sweeps, folders and files of SAEs."
            raise NotFound(f"structure.against: {error.message}", hint=hint) from None
    structure = plan.structure.model_copy(update={"against": tuple(against)})
    return plan.model_copy(update={"structure": structure})


def _having(engine: Engine, entries: Sequence[SaeEntry], where: Mapping[str, Sequence[Any]]) -> list[SaeEntry]:
    jobs = [entry.job_id for entry in entries if entry.job_id is not None]
    chosen = {row.id for row in choose(engine, Choice(where), ids=jobs)}
    kept = [entry for entry in entries if entry.job_id in chosen]
    if not kept:
        raise NotFound("none of these SAEs is of such a config", hint="orch status --where shows jobs by it")
    return kept


def _in_training(engine: Engine, selectors: Sequence[str], where: Mapping[str, Sequence[Any]] | None) -> int:
    """Return how many jobs of the sweeps among the selectors have not ended."""
    names = [one.removeprefix("sweep:") for one in selectors if not one.startswith("sae:") and not is_number(one)]
    ids = results.find(engine, names) if names else []
    return len(choose(engine, Choice(where or {}), ids=ids, states=OPEN)) if ids else 0
