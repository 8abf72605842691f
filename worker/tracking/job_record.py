"""One job with all rows that belong to it, read in one transaction; and a plot of its curve."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Engine, select

from orchestrator.config.flat_keys import flatten
from orchestrator.curves.point import LayerPoint
from orchestrator.database.engine import reading
from orchestrator.database.models import (
    Attempt,
    CheckpointRow,
    ConvergenceRow,
    CurvePoint,
    Job,
    ResultRow,
    SweepRow,
)
from orchestrator.job_states import TERMINAL
from orchestrator.masking import clean
from orchestrator.results.auto_values import measured_share, stored_window
from orchestrator.results.varied_keys import differences

_MEASURES = (
    "fvu", "fvu_raw", "fvu_averaged", "loss", "aux_loss", "aux_nothing", "dead_share", "l0", "grad_norm",
    "wall_seconds", "flops_dense", "flops_executed", "flops_subject", "sparsity_coef",
)  # fmt: skip
_RESOLVED = ("lr", "n_latents", "d_model", "k_aux", "dead_after_tokens")
_NAME_LENGTH = 200
_FINAL = ("fvu", "fvu_raw", "untrained_fvu", "dead_share", "l0", "l_inf", "l_inf_se", "tokens_seen", "wall_seconds")


class JobRecord(NamedTuple):
    """One job with all rows that belong to it."""

    job: Job
    sweep: SweepRow
    attempts: list[Attempt]
    points: list[CurvePoint]
    """In order of tokens_seen."""
    result: ResultRow | None
    counts: list[ConvergenceRow]
    settled_tokens: float
    """Points up to here are final: a checkpoint follows them, or the job has ended."""
    swept: dict[str, Any]
    """The dotted keys, but n_latents and k, that set its config apart from the others of its sweep."""

    @property
    def name(self) -> str:
        """Return what its run is called: job 3: n=512 k=8 lr=0.001."""
        lasts = [key.rpartition(".")[2] for key in self.swept]
        told = (
            f"{last if lasts.count(last) == 1 else key}={value:g}" if isinstance(value, float)
            else f"{last if lasts.count(last) == 1 else key}={value}"
            for last, (key, value) in zip(lasts, self.swept.items(), strict=True)
        )  # fmt: skip
        return " ".join((f"job {self.job.id}: n={self.job.n_latents or 'auto'} k={self.job.k}", *told))[:_NAME_LENGTH]

    @property
    def resolved(self) -> dict[str, str]:
        """Return what `auto` and sizes that were left open came to; empty before an attempt has told."""
        told = [attempt.facts for attempt in self.attempts if attempt.facts]
        facts = told[0] if told else {}
        return {f"resolved.{name}": str(facts[name]) for name in _RESOLVED if facts.get(name) is not None}

    @property
    def params(self) -> dict[str, str]:
        """Return the config that was enqueued as flat names and texts: MLflow's params never change."""
        asked = self.job.asked_config or self.job.config
        return {name: str(value) for name, value in flatten(json.loads(asked)).items()}

    @property
    def final_values(self) -> dict[str, float]:
        """Return what the job came to, as numbers: of one point each, so that a folder keeps them from the curves."""
        if self.result is None:
            return {}
        values = {f"final/{name}": getattr(self.result, name) for name in _FINAL}
        values |= {f"final/tokens_to_convergence_{count.epsilon:g}": count.tokens for count in self.counts}
        return {name: float(value) for name, value in values.items() if value is not None}


def read(engine: Engine, job_id: int) -> JobRecord:
    """Read a job and all rows that belong to it.

    Raises:
        StorageError: the database did not answer.
    """
    with reading(engine) as session:
        job = session.get_one(Job, job_id)
        record = JobRecord(
            job=job,
            sweep=session.get_one(SweepRow, job.sweep_id),
            attempts=[*session.scalars(select(Attempt).filter_by(job_id=job_id).order_by(Attempt.attempt))],
            points=[*session.scalars(select(CurvePoint).filter_by(job_id=job_id).order_by(CurvePoint.tokens_seen))],
            result=session.get(ResultRow, job_id),
            swept=differences(session, {job_id: job.sweep_id})[job_id],
            counts=[*session.scalars(select(ConvergenceRow).filter_by(job_id=job_id))],
            settled_tokens=math.inf if job.state in TERMINAL else max(
                session.scalars(select(CheckpointRow.tokens_seen).filter_by(job_id=job_id)), default=0
            ),
        )  # fmt: skip
        session.expunge_all()
    _leave_out_unmeasured(record)
    return record


def _leave_out_unmeasured(record: JobRecord) -> None:
    """Take the shares of dead latents out of points and result where no latent could be dead."""
    if record.job.kind != "train":  # an evaluation has no curve
        return
    window = stored_window(record.job.config, record.job.d_model)
    rows: list[CurvePoint | ResultRow] = [*record.points, *([record.result] if record.result else [])]
    for row in rows:
        row.dead_share = measured_share(row.dead_share, row.tokens_seen, window)
        if row.dead_share is None and isinstance(row, CurvePoint) and row.by_layer:
            row.by_layer = [LayerPoint(*one)._replace(dead_share=None) for one in row.by_layer]


def measures_of(point: CurvePoint) -> dict[str, float | None]:
    """Return what is measured at a point by MLflow's names: `fvu`, and of several layers `fvu.layer_3` beside it."""
    found: dict[str, float | None] = {name: getattr(point, name) for name in _MEASURES}
    for values in point.by_layer or ():
        one = LayerPoint(*values)
        found |= {f"{name}.layer_{one.layer}": getattr(one, name) for name in ("fvu", "l0", "dead_share")}
    return found


def draw_curve(record: JobRecord, file: Path) -> None:
    """Draw fvu over tokens on two log axes, with the asymptote and the counted convergence."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = [(point.tokens_seen, point.fvu) for point in record.points if point.fvu]
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="training tokens", ylabel="fvu (held out)")
    axes.plot(*zip(*points, strict=True), marker=".", color="#1f4e79")
    job, result = record.job, record.result
    if result and result.l_inf:
        axes.axhline(result.l_inf, linestyle=":", color="grey", label=f"L∞ = {result.l_inf:.4g}")
    for count in record.counts:
        if count.epsilon == 0.01 and count.tokens:
            axes.axvline(count.tokens, linestyle="--", color="#b5542b", label=f"within 1% at {count.tokens:,.0f}")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    outcome = f": {result.outcome}" if result else ""
    axes.set_title(f"{clean(record.sweep.name)}, job {job.id} (n = {job.n_latents}, k = {job.k}){outcome}", fontsize=10)
    axes.grid(which="both", alpha=0.25)
    figure.savefig(file, dpi=120)
