"""The frontier of fvu and L0: what each activation reaches at a sparsity, where sparsity is not set by k alone."""

import math
from collections.abc import Sequence

from orchestrator.formatting import digits
from orchestrator.scaling.plots.canvas import Drawing, Sheet, logarithmic, pens
from orchestrator.scaling.plots.naming import differing, in_order, place
from orchestrator.scaling.plots.sampling import sampled, told
from orchestrator.scaling.sparsity import why_other_sparsity
from orchestrator.scaling.types import JobMeasurement

_WORST = 1.0
"""An fvu above this is worse than the mean."""


def frontier(rows: Sequence[JobMeasurement]) -> Drawing | None:
    """Draw fvu against L0, and through the jobs that none beats in both a line per activation, place and n.

    None where every L0 is its job's k: then the laws over k say it.
    """
    drawn = [row for row in rows if row.outcome and _is_measured(row)]
    if not any(why_other_sparsity(row) for row in drawn):
        return None
    sheet, differs = Sheet("frontier"), differing(drawn)
    several = len({row.n_latents for row in drawn}) > 1
    groups: dict[str, list[JobMeasurement]] = {}
    for row in sorted(drawn, key=lambda row: (in_order(place(row, differs)), row.n_latents or 0)):
        size = f"n = {row.n_latents}" if several else ""
        groups.setdefault(", ".join(filter(None, (place(row, differs), size))) or row.activation, []).append(row)
    colours = pens(groups)
    few = sampled(drawn, lambda row: row.job_id)
    shown = {row.job_id for row in few}
    for name, members in groups.items():
        best, pen = unbeaten(members), colours[name]
        leading = {row.job_id for row in best}
        at = [(row.l0 or 0.0, row.fvu or 0.0) for row in best]
        sheet.panels[0].plot(*zip(*at, strict=True), color=pen.colour, linestyle=pen.line, linewidth=1.2, zorder=2)
        for row in (row for row in members if row.job_id in shown | leading):
            hint = f"job {row.job_id}: fvu {digits(row.fvu, 4)} at L0 {digits(row.l0)}, {row.outcome}"
            where = (row.l0 or 0.0, row.fvu or 0.0)
            sheet.point(where, pen, jobs=(row.job_id,), hint=hint, hollow=row.job_id not in leading)
    logarithmic(sheet.panels[0], "x", "L0 (active latents per token)", values=[row.l0 or 0.0 for row in drawn], pad=0.1)
    logarithmic(sheet.panels[0], "y", "fvu (held out)", values=[row.fvu or 0.0 for row in drawn], pad=0.1)
    sheet.legend(list(colours.items()))
    return sheet.done(
        "fvu against L0",
        "Lines: jobs that no other of their kind beats in both. Hollow: jobs that one does. Left and below is better.",
        sampled=told(few, drawn, "jobs"),
    )


def unbeaten(rows: Sequence[JobMeasurement]) -> list[JobMeasurement]:
    """Return the jobs that none beats in both fvu and L0, the sparsest first."""
    found: list[JobMeasurement] = []
    for row in sorted(rows, key=lambda row: (row.l0 or 0.0, row.fvu or 0.0)):
        if not found or (row.fvu or 0.0) < (found[-1].fvu or 0.0):
            found.append(row)
    return found


def _is_measured(row: JobMeasurement) -> bool:
    values = (row.l0, row.fvu)
    is_known = all(value is not None and math.isfinite(value) and value > 0 for value in values)
    return is_known and (row.fvu or 0.0) <= _WORST
