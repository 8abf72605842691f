"""From jobs to the samples of a law: one per fixed k where the law is per k."""

from collections.abc import Callable, Iterable, Sequence

from orchestrator.scaling import cells, envelope, learning_rates
from orchestrator.scaling.eligibility import Choices
from orchestrator.scaling.findings import Excluded, LawName, Measured
from orchestrator.scaling.samples import Observation, Sample


def samples(law: LawName, kept: list[Measured], excluded: list[Excluded], choices: Choices) -> list[Sample]:
    """Return what a law is to be fitted to, by rising k, from the jobs it may use; empty where there are none."""
    return _BUILDERS[law](kept, excluded, choices)


def _per_k(rows: Iterable[Measured]) -> dict[int, list[Measured]]:
    found: dict[int, list[Measured]] = {}
    for row in rows:
        found.setdefault(row.k, []).append(row)
    return dict(sorted(found.items()))


def _losses(kept: list[Measured], excluded: list[Excluded], choices: Choices) -> list[Sample]:
    return [_loss_sample(rows, excluded, choices, fixed=k) for k, rows in _per_k(kept).items()]


def _surface(kept: list[Measured], excluded: list[Excluded], choices: Choices) -> list[Sample]:
    return [_loss_sample(kept, excluded, choices, second=lambda row: float(row.k))] if kept else []


def _subjects(kept: list[Measured], excluded: list[Excluded], choices: Choices) -> list[Sample]:
    def size(row: Measured) -> float:
        return float(row.subject_size or 1)

    return [_loss_sample(rows, excluded, choices, fixed=k, second=size) for k, rows in _per_k(kept).items()]


def _loss_sample(
    rows: list[Measured],
    excluded: list[Excluded],
    choices: Choices,
    *,
    fixed: int | None = None,
    second: Callable[[Measured], float] = lambda _: 1.0,
) -> Sample:
    chosen, worse = cells.best(rows, choices)
    observations = [
        Observation((row.job_id,), float(row.n_latents or 0), second(row), row.k, row.subject,
                    float(choices.loss_of(row) or 0), (float(row.n_latents or 0), second(row)))
        for row in chosen
    ]  # fmt: skip
    return Sample(group(fixed, choices), subject_of(rows), tuple(observations), (*excluded, *worse), k=fixed)


def _counts(kept: list[Measured], excluded: list[Excluded], choices: Choices) -> list[Sample]:
    found = []
    for k, rows in _per_k(kept).items():
        chosen, worse = cells.best(rows, choices)
        observations = tuple(_count(row, choices.epsilon) for row in chosen)
        found.append(Sample(group(k, choices), subject_of(rows), observations, (*excluded, *worse), k=k))
    return found


def _count(row: Measured, epsilon: float) -> Observation:
    n, tokens = float(row.n_latents or 0), row.tokens_to_convergence.get(epsilon)
    value = tokens or row.tokens_lower_bound.get(epsilon) or 1.0
    return Observation((row.job_id,), n, 1.0, row.k, row.subject, value, (n, 1.0), censored=not tokens)


def _rates(kept: list[Measured], excluded: list[Excluded], choices: Choices) -> list[Sample]:
    return [
        learning_rates.sample(rows, excluded, choices, name=group(k, choices), k=k) for k, rows in _per_k(kept).items()
    ]


def _frontiers(kept: list[Measured], excluded: list[Excluded], choices: Choices) -> list[Sample]:
    return [
        envelope.sample(rows, excluded, choices.flops, name=group(k, choices), k=k) for k, rows in _per_k(kept).items()
    ]


def group(k: int | None, choices: Choices) -> str:
    """Return the name of what is held fixed, such as `k=8`."""
    return ", ".join(([f"k={k}"] if k is not None else []) + list(choices.label()))


def subject_of(rows: Sequence[Measured]) -> str:
    """Return the subject, or the subjects from small to large."""
    sizes = {row.subject: row.subject_size or 0 for row in rows}
    return ", ".join(sorted(sizes, key=lambda name: (sizes[name], name)))


_BUILDERS: dict[LawName, Callable[[list[Measured], list[Excluded], Choices], list[Sample]]] = {
    "ln": _losses, "lc": _frontiers, "lnk": _surface, "tn": _counts, "lr": _rates, "ls": _subjects,
}  # fmt: skip
