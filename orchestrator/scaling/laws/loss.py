"""Laws of the loss of converged jobs: L(N) at each k, L(N,K), and L_s(N) across subjects."""

from collections.abc import Sequence
from functools import partial

from orchestrator.scaling.fit.eligible_jobs import why_not_converged, why_without_loss
from orchestrator.scaling.fit.missing_jobs import like_the_others
from orchestrator.scaling.fit.options import FitOptions
from orchestrator.scaling.fit.sample import Observation, Sample, best, group, per_k, subject_of
from orchestrator.scaling.forms import LINE, Form, surface_forms
from orchestrator.scaling.law import Figure, Law, SecondVariable
from orchestrator.scaling.plots import law_plots
from orchestrator.scaling.types import Excluded, JobMeasurement

_LEAST_SIZES = 3
"""Of each subject that L_s(N) compares."""
_MOST_K = 1 / 4
"""Of d_model: above, L(N,K) does not hold."""

K = SecondVariable("k", "k", of=lambda row: float(row.k), label=lambda one: f"k = {one.k}")
SUBJECT_SIZE = SecondVariable(
    "subject_size", "the subject's size", of=lambda row: float(row.subject_size or 1),
    label=lambda one: f"{one.subject} ({one.z:g} parameters)",
)  # fmt: skip


def _why_excluded(row: JobMeasurement, options: FitOptions) -> str:
    return why_not_converged(row) or why_without_loss(row, options)


def _why_excluded_over_k(row: JobMeasurement, options: FitOptions) -> str:
    if why := why_not_converged(row):
        return why
    if row.d_model is not None and row.k > row.d_model * _MOST_K:
        return f"k = {row.k} is above d_model / 4 = {row.d_model / 4:g}: the law holds for k well below d_model"
    return why_without_loss(row, options)


def _why_excluded_by_subject(row: JobMeasurement, options: FitOptions) -> str:
    if why := why_not_converged(row):
        return why
    if row.subject_size is None:
        return "the size of its subject is not known: no attempt has told"
    return why_without_loss(row, options)


def _sample(
    rows: list[JobMeasurement], excluded: Sequence[Excluded], options: FitOptions, *, k: int | None = None,
    second: SecondVariable | None = None,
) -> Sample:  # fmt: skip
    """Return an observation per job with the best learning rate of its cell; `k` is the one that all have."""
    kept, worse = best(rows, options)
    observations = []
    for row in kept:
        n, z = float(row.n_latents or 0), second.of(row) if second else 1.0
        loss = float(options.loss_of(row) or 0)
        observations.append(Observation((row.job_id,), n, z, row.k, row.subject, loss, cell=(n, z)))
    return Sample(group(k, options), subject_of(rows), tuple(observations), (*excluded, *worse), k=k)


def _samples_per_k(
    kept: list[JobMeasurement], excluded: list[Excluded], options: FitOptions, *, second: SecondVariable | None = None
) -> list[Sample]:
    return [_sample(rows, excluded, options, k=k, second=second) for k, rows in per_k(kept).items()]


def _sample_over_k(kept: list[JobMeasurement], excluded: list[Excluded], options: FitOptions) -> list[Sample]:
    return [_sample(kept, excluded, options, second=K)] if kept else []


def _has_enough_subjects(sample: Sample) -> bool:
    sizes: dict[str, set[float]] = {}
    for one in sample.observations:
        sizes.setdefault(one.subject, set()).add(one.x)
    return len(sizes) > 1 and min(map(len, sizes.values())) >= _LEAST_SIZES


LOSS_BY_SIZE = Law(
    key="ln",
    title="L(N)",
    about="fvu against dictionary size",
    forms=(
        Form("pure", LINE, (), ("a", "b"), ("as is", "as is"), "fvu = exp(a + b·ln n)"),
        Form("+e", LINE, ("1",), ("a", "b", "e"), ("as is", "as is", "exp"), "fvu = exp(a + b·ln n) + e"),
    ),
    exponent="b",
    finding="fvu falls with dictionary size as n^b",
    needs="converged jobs at 3 sizes or more",
    why_excluded=_why_excluded,
    samples=_samples_per_k,
    missing_job=like_the_others,
    figures=(Figure("ln", law_plots.against_size),),
)

LOSS_BY_SIZE_AND_K = Law(
    key="lnk",
    title="L(N,K)",
    about="fvu against dictionary size and sparsity",
    forms=surface_forms("k"),
    exponent="gamma",
    finding="k and n act together through γ·ln k·ln n",
    needs="converged jobs at 3 sizes and 2 values of k or more, in 5 cells or more, 2 of the k at 2 of the sizes each",
    why_excluded=_why_excluded_over_k,
    samples=_sample_over_k,
    missing_job=like_the_others,
    second=K,
    figures=(Figure("lnk", law_plots.surface),),
)

LOSS_BY_SUBJECT = Law(
    key="ls",
    title="L_s(N)",
    about="the law of each subject",
    forms=surface_forms("s"),
    exponent="gamma",
    finding="the size s of the subject and n act together through γ·ln s·ln n",
    needs="converged jobs of 2 subjects or more, at 3 sizes of each",
    why_excluded=_why_excluded_by_subject,
    samples=partial(_samples_per_k, second=SUBJECT_SIZE),
    missing_job=like_the_others,
    is_enough=_has_enough_subjects,
    second=SUBJECT_SIZE,
    grounds=("data", "activation"),  # each subject has a hook point of its own
    figures=(Figure("ls", law_plots.against_size),),
)
