"""The headline findings in sentences, each with a link to the fit or the jobs it rests on."""

import math
from collections import Counter

from orchestrator.report.contents import Contents
from orchestrator.report.markup import Html, element, job_links, join
from orchestrator.scaling.findings import Fit, StoredFit
from orchestrator.scaling.law_figures import LAW_TITLES
from orchestrator.scaling.numerals import digits, interval, named, share

FORMS = {"pure": "a pure power law", "+e": "a power law and an irreducible term e"}
_SAID = {
    "ln": ("b", "fvu falls with dictionary size as n^b"),
    "lc": ("alpha", "fvu at the best spent compute falls as C^(−α)"),
    "lnk": ("gamma", "sparsity and size work together with"),
    "tn": ("p", "tokens to convergence grow as n^p"),
    "lr": ("q", "the largest learning rate that converges goes as n^q (expected −1/2)"),
    "ls": ("gamma", "the subject's size and the dictionary's work together with"),
}
_SYMBOLS = {"alpha": "α", "beta_k": "β_k", "beta_n": "β_n", "beta_s": "β_s", "gamma": "γ", "zeta": "ζ", "eta": "η"}


def findings(contents: Contents) -> list[Html]:
    """Return the findings, the sweep's state first, then a sentence per fit, then what could not be fitted."""
    said = [_jobs(contents), *([_best(contents)] if _ended(contents) else [])]
    if len(contents.subjects) > 1:
        names = ", ".join(contents.subjects)
        said.append(
            join([f"The jobs are of {len(contents.subjects)} subjects ({names}); every law is of one of them."])
        )
    said += [finding(stored) for stored in contents.fits]
    return said + [
        join([f"{LAW_TITLES[law].partition(':')[0]} is not fitted: {why}"]) for law, why in _missing(contents)
    ]


def finding(stored: StoredFit) -> Html:
    """Return what a fit says: exponent with interval, form, irreducible term, holdout."""
    fit = stored.fit
    name, words = _SAID[fit.law]
    value = fit.coefficients[name]
    head = element("strong", f"{LAW_TITLES[fit.law].partition(':')[0]}{_group(fit)}: ")
    exponent = f"{words}, {symbol(name)} = {interval(value)}, "
    form = f"in the form of {FORMS.get(fit.form, 'a power law ' + fit.form)}. "
    jobs = element("a", named(len(fit.jobs), "job"), href=f"#fit-{stored.id}")
    return join([head, exponent, form, *_more(fit), "Fitted to ", jobs, "."])


def _more(fit: Fit) -> list[str]:
    said = []
    if fit.irreducible is not None and all(map(math.isfinite, fit.irreducible)):
        low, high = fit.irreducible
        said.append(f"The irreducible term lies between {digits(low)} and {digits(high)} (90% profile). ")
    if fit.holdout_error is not None and math.isfinite(fit.holdout_error):
        said.append(f"Fitted without the largest n it misses that by {share(math.expm1(fit.holdout_error))}. ")
    censored = sum(residual.censored for residual in fit.residuals)
    said += [f"{named(censored, 'count')} censored. "] if censored else []
    return said


def _group(fit: Fit) -> str:
    return f" at {fit.group.replace('=', ' = ')}" if fit.group else ""


def symbol(name: str) -> str:
    """Return a coefficient's name as the equations have it."""
    return _SYMBOLS.get(name, name)


def _jobs(contents: Contents) -> Html:
    words = {"max_tokens": "out of budget before convergence"}
    tally = Counter(row.outcome or row.state for row in contents.rows)
    parts = ", ".join(f"{number} {words.get(how, how)}" for how, number in tally.most_common())
    return join([f"{named(len(contents.rows), 'job')}: {parts or 'none'}."])


def _ended(contents: Contents) -> bool:
    return any(row.outcome and row.fvu is not None and math.isfinite(row.fvu) for row in contents.rows)


def _best(contents: Contents) -> Html:
    known = [row for row in contents.rows if row.outcome and row.fvu is not None and math.isfinite(row.fvu)]
    best = min(known, key=lambda row: row.fvu or math.inf)
    said = f"The lowest fvu is {digits(best.fvu, 4)}, at n = {best.n_latents}, k = {best.k}: job "
    return join([said, job_links([best.job_id]), "."])


def _missing(contents: Contents) -> list[tuple[str, str]]:
    return [(law, why if why.endswith(".") else f"{why}.") for law, why in contents.missing.items()]
