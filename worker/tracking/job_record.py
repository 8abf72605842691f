"""One job with all rows that belong to it, read in one transaction; and a plot of its curve."""

import json
import math
from collections.abc import Sequence
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
    LensPointRow,
    LensRow,
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
_RESOLVED = ("lr", "n_latents", "d_model", "k_aux", "dead_after_tokens", "subject_dtype")
_NAME_LENGTH = 200
_LENS_MEASURES = ("kl", "loss", "grad_norm", "wall_seconds")
_FINAL = ("fvu", "fvu_raw", "untrained_fvu", "dead_share", "l0", "l_inf", "l_inf_se", "tokens_seen", "wall_seconds")


class JobRecord(NamedTuple):
    """One job with all rows that belong to it."""

    job: Job
    sweep: SweepRow
    attempts: list[Attempt]
    points: list[CurvePoint]
    """In order of tokens_seen."""
    lens_points: list[LensPointRow]
    """The same of a job that trains a lens."""
    result: ResultRow | None
    lens: LensRow | None
    """Of a job that trains one."""
    counts: list[ConvergenceRow]
    settled_tokens: float
    """Points up to here are final: a checkpoint follows them, or the job has ended."""
    swept: dict[str, Any]
    """The dotted keys, but n_latents and k, that set its config apart from the others of its sweep."""

    @property
    def curve(self) -> Sequence[CurvePoint | LensPointRow]:
        """Return the points of the job, of its kind."""
        return self.points or self.lens_points

    @property
    def name(self) -> str:
        """Return what its run is called: job 3: n=512 k=8 lr=0.001; of a lens job 3: lens of MODEL."""
        if self.lens is not None:
            named = f" {self.lens.name}" if self.lens.name else ""
            return f"job {self.job.id}: lens{named} of {self.lens.model}"[:_NAME_LENGTH]
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
        if self.lens is not None:
            names = ("kl", "tokens_seen", "wall_seconds")
            values = {f"final/{name}": getattr(self.lens, name) for name in names}
            values |= _by_layer("final/kl", self.lens.kls) | _by_layer("final/logit_lens_kl", self.lens.logit_lens_kls)
            values |= _by_layer("final/condition", self.lens.conditions)
        elif self.result is None:
            return {}
        else:
            values = {f"final/{name}": getattr(self.result, name) for name in _FINAL}
        values |= {f"final/tokens_to_convergence_{count.epsilon:g}": count.tokens for count in self.counts}
        return {name: float(value) for name, value in values.items() if value is not None}

    @property
    def artifact(self) -> tuple[str, str] | None:
        """Return the folder of what the job has trained, and what it is called in its run; None: there is nothing."""
        if self.lens is not None:
            return (self.lens.uri, "lens") if self.lens.uri else None
        return (self.result.artifact_uri, "sae") if self.result and self.result.artifact_uri else None

    @property
    def final_tokens(self) -> int:
        """Return after how many tokens the job ended; 0: it has no result."""
        end = self.lens or self.result
        return end.tokens_seen or 0 if end is not None else 0


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
            lens_points=[*session.scalars(
                select(LensPointRow).filter_by(job_id=job_id).order_by(LensPointRow.tokens_seen)
            )],
            lens=session.scalar(select(LensRow).filter_by(job_id=job_id)),
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
    if record.job.kind != "train":  # no other job has latents
        return
    window = stored_window(record.job.config, record.job.d_model)
    rows: list[CurvePoint | ResultRow] = [*record.points, *([record.result] if record.result else [])]
    for row in rows:
        row.dead_share = measured_share(row.dead_share, row.tokens_seen, window)
        if row.dead_share is None and isinstance(row, CurvePoint) and row.by_layer:
            row.by_layer = [LayerPoint(*one)._replace(dead_share=None) for one in row.by_layer]


def measures_of(point: CurvePoint | LensPointRow) -> dict[str, float | None]:
    """Return what is measured at a point by MLflow's names: `fvu`, and of several layers `fvu.layer_3` beside it."""
    if isinstance(point, LensPointRow):
        return {name: getattr(point, name) for name in _LENS_MEASURES} | _by_layer("kl", point.kls)
    found: dict[str, float | None] = {name: getattr(point, name) for name in _MEASURES}
    for values in point.by_layer or ():
        one = LayerPoint(*values)
        found |= {f"{name}.layer_{one.layer}": getattr(one, name) for name in ("fvu", "l0", "dead_share")}
    return found


def _by_layer(name: str, values: Sequence[float | None] | None) -> dict[str, float | None]:
    return {f"{name}.layer_{layer}": value for layer, value in enumerate(values or ())}


def draw_curve(record: JobRecord, file: Path) -> None:
    """Draw fvu, of a lens its KL, over tokens on two log axes, with the asymptote and the counted convergence."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measure = "fvu" if record.lens is None else "kl"
    points = [(point.tokens_seen, getattr(point, measure)) for point in record.curve if getattr(point, measure)]
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="training tokens", ylabel=f"{measure} (held out)")
    axes.plot(*zip(*points, strict=True), marker=".", color="#1f4e79")
    job, result = record.job, record.result
    if result and result.l_inf:
        axes.axhline(result.l_inf, linestyle=":", color="grey", label=f"L∞ = {result.l_inf:.4g}")
    for count in record.counts:
        if count.epsilon == 0.01 and count.tokens:
            axes.axvline(count.tokens, linestyle="--", color="#b5542b", label=f"within 1% at {count.tokens:,.0f}")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    end = record.lens or result
    outcome = f": {end.outcome}" if end and end.outcome else ""
    what = f"n = {job.n_latents}, k = {job.k}" if record.lens is None else f"lens of {clean(record.lens.model)}"
    axes.set_title(f"{clean(record.sweep.name)}, job {job.id} ({what}){outcome}", fontsize=10)
    axes.grid(which="both", alpha=0.25)
    figure.savefig(file, dpi=120)
