"""T(N): the tokens that jobs take to converge, by size; a job that ended before is a lower bound."""

from orchestrator.scaling.fit.eligible_jobs import why_diverged, why_without_count, why_without_loss
from orchestrator.scaling.fit.missing_jobs import like_the_others
from orchestrator.scaling.fit.options import FitOptions
from orchestrator.scaling.fit.sample import Observation, Sample, best, group, per_k, subject_of
from orchestrator.scaling.forms import LINE, Form
from orchestrator.scaling.law import Figure, Law, Quantity
from orchestrator.scaling.plots import law_plots
from orchestrator.scaling.types import Excluded, JobMeasurement


def _why_excluded(row: JobMeasurement, options: FitOptions) -> str:
    return why_diverged(row) or why_without_count(row, options.epsilon) or why_without_loss(row, options)


def _samples(kept: list[JobMeasurement], excluded: list[Excluded], options: FitOptions) -> list[Sample]:
    found = []
    for k, rows in per_k(kept).items():
        chosen, worse = best(rows, options)
        observations = tuple(_observation(row, options.epsilon) for row in chosen)
        found.append(Sample(group(k, options), subject_of(rows), observations, (*excluded, *worse), k=k))
    return found


def _observation(row: JobMeasurement, epsilon: float) -> Observation:
    n, tokens = float(row.n_latents or 0), row.tokens_to_convergence.get(epsilon)
    value = tokens or row.tokens_lower_bound.get(epsilon) or 1.0
    return Observation((row.job_id,), n, 1.0, row.k, row.subject, value, cell=(n, 1.0), censored=not tokens)


TOKENS_BY_SIZE = Law(
    key="tn",
    title="T(N)",
    about="tokens to convergence",
    forms=(Form("pure", LINE, (), ("A", "p"), ("exp", "as is"), "tokens to convergence = A·n^p"),),
    exponent="p",
    finding="tokens to convergence grow as n^p",
    needs="jobs with tokens to convergence, not mere bounds, at 3 sizes or more",
    why_excluded=_why_excluded,
    samples=_samples,
    missing_job=like_the_others,
    quantity=Quantity("tokens to convergence T", is_count=True),
    figures=(Figure("tn", law_plots.against_size),),
)
