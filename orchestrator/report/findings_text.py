"""The headline findings in sentences, each with a link to its fit or its jobs."""

import math
from collections import Counter
from collections.abc import Sequence

from orchestrator.formatting import digits, interval, named, share
from orchestrator.report.html import Html, element, job_links, join
from orchestrator.report.page_data import Contents
from orchestrator.scaling.fit.repeated_text import repeating, told_passes
from orchestrator.scaling.laws.registry import LAWS
from orchestrator.scaling.plots.law_plots import spelled
from orchestrator.scaling.plots.naming import differing, place
from orchestrator.scaling.sparsity import by_l0
from orchestrator.scaling.types import Fit, JobMeasurement, StoredFit

FORMS = {"pure": "a pure power law", "+e": "a power law and an irreducible term e"}
_MANY = 2
"""Fits of a law: more of them share one sentence."""
_MOST_L0 = 12
"""Values of L0 that are listed; where a penalty sets it, every job has its own."""
_STALE = "; others have ended since, and this fit does not know of them."


def findings(contents: Contents) -> list[Html]:
    """Return the findings, the sweep's state first, then a sentence per fit, then what could not be fitted."""
    found = [_jobs(contents), *_lowest(contents), *_repeated_text(contents), *_without_loss(contents)]
    if len(contents.subjects) > 1:
        names = ", ".join(contents.subjects)
        found.append(join([f"The jobs are of {len(contents.subjects)} subjects: {names}."]))
    for law in dict.fromkeys(stored.fit.law for stored in contents.fits):
        found += _of_law(contents, [stored for stored in contents.fits if stored.fit.law == law])
    names = ", ".join(LAWS[law].title for law in contents.missing)
    return found + ([join([f"Not fitted: {names}. ", element("a", "Why", href="#not-fitted"), "."])] if names else [])


def _of_law(contents: Contents, fits: list[StoredFit]) -> list[Html]:
    """Return a sentence per fit of a law; one for all of them where they are many."""
    differs = differing([stored.fit for stored in fits])
    if len(fits) <= _MANY:
        return [finding(stored, differs, stale=stored.id in contents.stale) for stored in fits]
    law = LAWS[fits[0].fit.law]
    head = element("strong", f"{law.title}: ")
    parts = [_in_short(stored, law.exponent, differs, stale=stored.id in contents.stale) for stored in fits]
    return [join([head, f"{law.finding}. ", element("ul", *(element("li", part) for part in parts))])]


def _in_short(stored: StoredFit, name: str, differs: Sequence[str], *, stale: bool) -> Html:
    fit = stored.fit
    where = f"{_group(fit).removeprefix(' at ')}{_of(fit, differs)}: "
    missed = "" if fit.holdout_error is None else f", {share(math.expm1(fit.holdout_error))} off at the largest n"
    jobs = element("a", named(len(fit.jobs), "job"), href=f"#fit-{stored.id}")
    value = f"{spelled(name)} = {interval(fit.coefficients[name])}, form {fit.form}{missed}; "
    return join([where, value, jobs, _STALE if stale else "."])


def finding(stored: StoredFit, differs: Sequence[str] = (), *, stale: bool = False) -> Html:
    """Return what a fit says: exponent with interval, form, irreducible term, holdout; named by what `differs`."""
    fit, law = stored.fit, LAWS[stored.fit.law]
    head = element("strong", f"{law.title}{_group(fit)}{_of(fit, differs)}: ")
    exponent = f"{law.finding}, {spelled(law.exponent)} = {interval(fit.coefficients[law.exponent])}, "
    form = f"in the form of {FORMS.get(fit.form, 'a power law ' + fit.form)}. "
    jobs = element("a", named(len(fit.jobs), "job"), href=f"#fit-{stored.id}")
    return join([head, exponent, form, *_more(fit), "Fitted to ", jobs, _STALE if stale else "."])


def _more(fit: Fit) -> list[str]:
    said = []
    if fit.irreducible is not None and all(map(math.isfinite, fit.irreducible)):
        low, high = fit.irreducible
        said.append(f"The irreducible term lies between {digits(low)} and {digits(high)} (90% profile). ")
    if fit.holdout_error is not None and math.isfinite(fit.holdout_error):
        missed = share(math.expm1(fit.holdout_error))
        said.append(f"Fitted without the largest n, it misses what was measured there by {missed}. ")
    censored = sum(residual.censored for residual in fit.residuals)
    said += [f"{named(censored, 'count')} censored. "] if censored else []
    return said


def _of(fit: Fit, differs: Sequence[str]) -> str:
    told = place(fit, differs)
    return f" of {told}" if told else ""


def _group(fit: Fit) -> str:
    return f" at {fit.group.replace('=', ' = ')}" if fit.group else ""


def _jobs(contents: Contents) -> Html:
    words = {"max_tokens": "out of budget before convergence", "not_learning": "not learning"}
    tally = Counter(row.outcome or row.state for row in contents.rows)
    parts = ", ".join(f"{number} {words.get(how, how)}" for how, number in tally.most_common())
    nothing = "" if any(row.outcome for row in contents.rows) else " No job has ended yet: there is nothing to fit."
    return join([f"{named(len(contents.rows), 'job')}: {parts or 'none'}.{nothing}"])


def _without_loss(contents: Contents) -> list[Html]:
    """Name the ended jobs that no law can be fitted to, for want of a curve or of a finite loss."""
    ended = [row for row in contents.rows if row.outcome]
    no_curve = [row.job_id for row in ended if not row.curve]
    not_finite = [row.job_id for row in ended if row.fvu is not None and not math.isfinite(row.fvu)]
    pairs = (("No curve is stored of", no_curve), ("The last loss is no number of", not_finite))
    return [join([f"{words} {named(len(jobs), 'job')}: ", job_links(jobs), "."]) for words, jobs in pairs if jobs]


def _lowest(contents: Contents) -> list[Html]:
    """Return the lowest fvu at each L0, of each place and text that jobs read: no others can be compared."""
    ended = [row for row in contents.rows if row.outcome and row.fvu is not None and math.isfinite(row.fvu)]
    grounds = {row.job_id: (row.subject, row.hook, row.data) for row in ended}
    varied = [at for at, values in enumerate(zip(*grounds.values(), strict=True)) if len(set(values)) > 1]
    found = []
    for ground in dict.fromkeys(grounds.values()):
        where = "".join(f", {ground[at]}" for at in varied)
        groups = by_l0(row for row in ended if grounds[row.job_id] == ground)
        found += [_lowest_of(group, where) for group in groups]
    if len(found) <= _MANY:
        return [join(["The lowest fvu at ", one, "."]) for one in found]
    more = [element("li", f"and {len(found) - _MOST_L0} more")] if len(found) > _MOST_L0 else []
    listed = element("ul", *(element("li", one) for one in found[:_MOST_L0]), *more)
    return [join(["The lowest fvu at each L0: ", listed])]


def _lowest_of(rows: Sequence[JobMeasurement], where: str) -> Html:
    lowest = min(rows, key=lambda row: (math.inf if row.fvu is None else row.fvu, row.job_id))
    size = f"n = {lowest.n_latents}, k = {lowest.k}"
    of = f", of {named(len(rows), 'job')}" if len(rows) > 1 else ""
    said = f"L0 {digits(lowest.l0)}{where}: {digits(lowest.fvu, 4)}, at {size}: job "
    return join([said, job_links([lowest.job_id]), of])


def _repeated_text(contents: Contents) -> list[Html]:
    repeated = repeating(contents.rows)
    if not repeated:
        return []
    head = f"{named(len(repeated), 'job')} read the text more than once: {told_passes(repeated)}."
    return [join([element("strong", "Repeated text: "), head])]
