"""L(C): the loss on the lower envelope of all curves, by the compute that was spent."""

from orchestrator.scaling.fit import envelope
from orchestrator.scaling.fit.eligible_jobs import why_without_curve
from orchestrator.scaling.fit.missing_jobs import like_the_others
from orchestrator.scaling.fit.options import FitOptions
from orchestrator.scaling.fit.sample import Sample, group, per_k
from orchestrator.scaling.forms import LINE, Form
from orchestrator.scaling.law import Figure, Law
from orchestrator.scaling.plots import job_plots
from orchestrator.scaling.types import Excluded, JobMeasurement

_LEAST_SIZES = 3
"""With fewer, the envelope is their own curves: how they fall with tokens, not L(C)."""

_FORMS = (
    Form("pure", LINE, (), ("A", "alpha"), ("exp", "minus"), "fvu = A·C^(−alpha)"),
    Form("+e", LINE, ("1",), ("A", "alpha", "e"), ("exp", "minus", "exp"), "fvu = A·C^(−alpha) + e"),
)


def _samples(kept: list[JobMeasurement], excluded: list[Excluded], options: FitOptions) -> list[Sample]:
    return [
        envelope.sample(rows, excluded, options.flops, name=group(k, options), k=k) for k, rows in per_k(kept).items()
    ]


def _has_enough_sizes(sample: Sample) -> bool:
    return len({one.cell for one in (*sample.observations, *sample.shown)}) >= _LEAST_SIZES


LOSS_BY_COMPUTE = Law(
    key="lc",
    title="L(C)",
    about="fvu against compute",
    forms=_FORMS,
    exponent="alpha",
    finding="the lowest fvu for a given compute falls as C^(−α)",
    needs="curves of 3 sizes or more on their lower envelope, with points in 4 bins of FLOPs or more",
    why_excluded=lambda row, _: why_without_curve(row),
    samples=_samples,
    missing_job=like_the_others,
    is_enough=_has_enough_sizes,
    is_over_compute=True,
    figures=(Figure("lc", job_plots.compute),),
)
