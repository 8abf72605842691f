"""What laws are fitted to, and what a fit is. Losses are fvu, lengths tokens, times seconds, logarithms natural."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from orchestrator.curves.point import Point
from orchestrator.formatting import Interval

_OWN = ("created_at", "superseded_by", "version", "commit", "mlflow_run_id")
_OF_FIT = (
    "law", "sweeps", "group", "subject", "hook", "data", "activation", "form", "equation", "holdout_error",
    "seed_sigma", "notes",
)  # fmt: skip
"""Of a fit, what one line of a table holds."""
LawName = str
"""The key of a law in `laws.registry`: ln, lc, lnk, tn, lr or ls."""


@dataclass(frozen=True, slots=True)
class JobMeasurement:
    """One job with everything that a law may read of it."""

    job_id: int
    sweep: str
    config_id: str
    state: str
    outcome: str | None
    """converged, max_tokens or diverged; None: it has not ended."""
    reason: str | None
    """Why it failed, where it did."""
    subject: str
    """The language model, with its revision where one is named."""
    subject_size: int | None
    """Parameters of it that run up to the hook point; None where no attempt has told."""
    hook: str
    """Where it is read: the module that an attempt has told, of this job or one like it; else layer and site."""
    data: str
    activation: str
    d_model: int | None
    n_latents: int | None
    k: int
    lr: float | None
    """As resolved: also what `auto` came to; None where no attempt has told."""
    lr_is_auto: bool
    seed: int
    batch_tokens: int
    max_tokens: int
    tokens_seen: int
    fvu: float | None
    """The last of the curve."""
    untrained_fvu: float | None
    dead_share: float | None
    l_inf: float | None
    l_inf_se: float | None
    tokens_to_convergence: dict[float, float | None]
    """By epsilon; None = censored."""
    tokens_lower_bound: dict[float, float | None]
    """By epsilon: what a censored count is known to exceed."""
    wall_seconds: float | None
    device: str | None
    threads: int | None
    curve: tuple[Point, ...]
    layer: int | None = None
    """As its config names it; None where that says auto, or names a module. Of an SAE that reads several layers: the
    one that `one_layer.at_layer` has taken; None while fvu, L∞, counts and curve are of the mean over them."""
    layers: tuple[int, ...] = ()
    """Those that its SAE reads; empty where it reads one, or no attempt has told what all are."""
    lens: str = ""
    """The tuned lens in whose space its SAE is trained, as its config names it; empty: none."""
    stop_epsilon: float = 0.005
    """Of its stop rule."""
    first_max_tokens: int | None = None
    """Its budget before `orch extend`; None: it never had another."""
    warmup_tokens: int = 0
    decay_tokens: int = 0
    """Over which its learning rate falls at the end of the budget: above 0, training cannot go on."""
    l0: float | None = None
    """Mean active latents per held-out token at the last point."""
    tokens_interval: dict[float, tuple[float, float]] = field(default_factory=dict)
    """By epsilon: the 90% interval of the count; no entry where it is censored."""
    trainable_tokens: int | None = None
    """Of one pass over its text; None where no attempt has told, or there is no text."""
    scores: Mapping[str, Interval] = field(default_factory=dict)
    """What evaluations measured of its SAE, with 90% intervals, by metric and variant: `delta_ce`, `delta_ce first`."""
    score_details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By metric: heat maps and histograms that are drawn, and under `measured_on` the text they are of."""

    @property
    def passes(self) -> float | None:
        """Return how many passes over its text a job has made."""
        return self.tokens_seen / self.trainable_tokens if self.trainable_tokens else None

    @property
    def is_dead(self) -> bool:
        """Say whether the SAE explains no more than the mean does."""
        return self.fvu is not None and self.fvu >= 1


@dataclass(frozen=True, slots=True)
class Score:
    """One form that was tried, and how well it did."""

    form: str
    """pure, +e, +e(k), or for L_s(N) +e(s)."""
    n_coefficients: int
    aicc: float | None
    """None where the points are too few for it."""
    rms: float | None
    """Root mean square of its log residuals."""
    holdout_error: float | None
    """|ln(predicted / observed)| at the largest n, fitted without it; the mean over k."""


@dataclass(frozen=True, slots=True)
class Residual:
    """One point the law was fitted to (or, censored, bounded by), and what the law says of it."""

    jobs: tuple[int, ...]
    """The jobs it was made of."""
    x: float
    """What the law's axis counts: latents, or FLOPs for L(C)."""
    k: int | None
    subject: str
    observed: float
    predicted: float
    log_residual: float
    """ln(observed / predicted)."""
    censored: bool = False
    """The truth is above `observed`."""
    flagged: str = ""
    """Why a reader should doubt it, such as off-trend; empty: nothing."""

    @property
    def is_fitted(self) -> bool:
        """Say whether the law was fitted to it, or only shows it: the flag of what was left out says so."""
        return not self.flagged.endswith("not fitted")


@dataclass(frozen=True, slots=True)
class Excluded:
    """A job the law was not fitted to."""

    job_id: int
    why: str


@dataclass(frozen=True, slots=True)
class Fit:
    """A law fitted to jobs, as it is stored."""

    law: LawName
    sweeps: tuple[str, ...]
    group: str
    """What was held fixed, such as `k=8`; empty: nothing."""
    subject: str
    form: str
    """The widest form that the jobs determine: always to be said beside an exponent. `scores` tells AICc's choice."""
    equation: str
    """Such as `fvu = exp(a + b·ln n) + e`."""
    coefficients: dict[str, Interval]
    """By the names of numerics 7: a, b, e; A, alpha, e; alpha, beta_k (for L_s(N) beta_s), beta_n, gamma, zeta,
    eta; A, p; A, q."""
    scores: tuple[Score, ...]
    """Every form that was tried."""
    irreducible: tuple[float, float] | None
    """The 90% profile interval of the irreducible term, at the geometric mean of k where it depends on k; None where
    the form has none."""
    residuals: tuple[Residual, ...]
    excluded: tuple[Excluded, ...]
    holdout_error: float | None
    """|ln(predicted / observed)| at the largest n of the chosen form fitted without it; None where too few are left."""
    holdout_jobs: tuple[int, ...]
    seed_sigma: float | None
    """Standard deviation of ln(loss) between seeds at one (n, k); None where no two seeds are there."""
    draws: tuple[tuple[float, ...], ...]
    """Bootstrap refits of `drawn_form`, thinned to a few hundred, in the order of its coefficients."""
    n_bootstrap: int
    notes: tuple[str, ...] = field(default=())
    """What a reader must know, in sentences."""
    options: dict[str, float | int | str | None] = field(default_factory=dict)
    """epsilon, seed of the bootstrap and what else was asked for."""
    medians: dict[str, float] = field(default_factory=dict)
    """Of the bootstrap, by coefficient; one far from its value says that the interval leans."""
    hook: str = ""
    """The hook point its jobs were read at; empty where they may differ in it, or in a fit of an earlier version."""
    data: str = ""
    """Their text, likewise."""
    activation: str = ""
    """The activation of their SAEs, likewise."""
    drawn_form: str = ""
    """The form of `draws`; another than `form` in fits stored before 2026-11-27. Empty: `form`."""

    def values(self) -> dict[str, Any]:
        """Return its fields by name, and those of its parts; `dataclasses.asdict` copies every number besides."""
        own = {name: getattr(self, name) for name in self.__slots__}
        parts = {name: [_values(one) for one in own[name]] for name in ("scores", "residuals", "excluded")}
        return own | parts

    @property
    def taken(self) -> str:
        """Return the form that bands, forecasts and plans take for true."""
        return self.drawn_form or self.form

    @property
    def jobs(self) -> tuple[int, ...]:
        """Return the ids of the jobs it was fitted to."""
        return tuple(sorted({job for residual in self.residuals for job in residual.jobs}))


def _values(part: Score | Residual | Excluded) -> dict[str, Any]:
    return {name: getattr(part, name) for name in part.__slots__}


@dataclass(frozen=True, slots=True)
class StoredFit:
    """A fit with its place in the database."""

    id: int
    created_at: float
    superseded_by: int | None
    """The newer fit of the same law, sweeps, group, subject, hook point, text and activation; None: this is the newest.
    """
    version: str
    """Of orch."""
    commit: str | None
    mlflow_run_id: str | None
    fit: Fit

    def flat(self) -> dict[str, Any]:
        """Return what a table shows of it: for each coefficient its value and the ends of its 90% interval."""
        low, high = self.fit.irreducible or (None, None)
        coefficients = {
            key: value
            for name, one in self.fit.coefficients.items()
            for key, value in ((name, one.value), (f"{name}_low", one.low), (f"{name}_high", one.high))
        }
        of_fit = {name: getattr(self.fit, name) for name in _OF_FIT}
        own = {name: getattr(self, name) for name in _OWN}
        made_of = {
            "jobs": self.fit.jobs,
            "n_jobs": len(self.fit.jobs),
            "irreducible_low": low,
            "irreducible_high": high,
        }
        return {"id": self.id, **of_fit, **made_of, **own, **coefficients}

    @classmethod
    def flat_types(cls) -> dict[str, Any]:
        """Return the types of what `flat` returns for every fit, by name."""
        types = {one.name: one.type for one in (*fields(Fit), *fields(cls))}
        made_of = {"jobs": tuple, "n_jobs": int, "irreducible_low": float, "irreducible_high": float}
        of_fit, own = ({name: types[name] for name in names} for names in (_OF_FIT, _OWN))
        return {"id": int, **of_fit, **made_of, **own}
