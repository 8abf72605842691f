"""The inputs of forecasts and plans, from the database: jobs, their fits (stored ones, else made now), a config."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import Engine

from orchestrator.config.flat_keys import flatten, varied_keys
from orchestrator.config.job import JobConfig
from orchestrator.errors import ConfigError, FitError
from orchestrator.fits import store
from orchestrator.fits.job_choice import ANY, JobChoice
from orchestrator.formatting import named
from orchestrator.job_states import OPEN
from orchestrator.results.fit_rows import measured
from orchestrator.results.stored_configs import configs, last_ended
from orchestrator.scaling.fit.fitting import curve_points, ended, fit
from orchestrator.scaling.fit.options import GROUNDS
from orchestrator.scaling.laws.registry import LAWS
from orchestrator.scaling.plan.forecast import ForecastInputs
from orchestrator.scaling.plan.throughput import device_of
from orchestrator.scaling.types import Fit, JobMeasurement, LawName, StoredFit

_OF_THE_LAWS = ("sae.n_latents", "sae.expansion", "sae.k", "optimizer.lr", "training.seed", "training.max_tokens")
"""The keys of a config that some law knows of."""


class LoadedInputs(NamedTuple):
    """The inputs of a forecast, and what a person must know of them."""

    inputs: ForecastInputs
    notes: tuple[str, ...]
    """Sentences."""


def load_inputs(
    engine: Engine, sweeps: Sequence[str], *, choice: JobChoice = ANY, device: str | None = None,
    rates: bool = False,
) -> LoadedInputs:  # fmt: skip
    """Return what is known of sweeps: stored fits that no job is newer than, and fits made now where there are none.

    `choice` says which of their jobs are meant; `rates` asks for lr*(N) too.

    Raises:
        NotFound: one of the names is no sweep.
        ConfigError: jobs of several subjects, hook points or texts, or none that is meant; no job ended on the device
            asked for.
        FitError: too few jobs for any law of fvu.
    """
    everything = measured(engine, sweeps, layer=choice.layer)
    rows = choice.of(everything)
    check_one_kind(rows)
    known = _KnownFits(engine, sweeps, everything, rows)
    losses, no_loss = known.losses()
    lengths, no_length = known.of_or_why("tn")
    # A learning rate has other sources too: that there is no lr*(N) is not worth a note.
    largest_rates = known.of_or_why("lr")[0] if rates else []
    base = max((row for row in rows if row.n_latents), key=lambda row: (row.outcome == "converged", row.n_latents or 0))
    by_id = configs(engine, [row.job_id for row in rows])
    if device is not None and all(row.device != device for row in rows):
        there = sorted({row.device for row in rows if row.device})
        raise ConfigError(f"no job of these sweeps ran on {device!r}", hint=f"Devices: {', '.join(there) or 'none'}.")
    inputs = ForecastInputs(
        tuple(rows), by_id[base.job_id], tuple(losses), tuple(lengths), tuple(largest_rates), device or device_of(rows)
    )
    return LoadedInputs(inputs, (*_unfinished(rows), *no_loss, *no_length, *_other_keys(by_id, base.job_id)))


def check_one_kind(rows: Sequence[JobMeasurement]) -> None:
    """Refuse jobs that no law can be common to.

    Raises:
        ConfigError: names what differs, and where.
    """
    for name, plural in GROUNDS.items():
        kinds: dict[str, JobMeasurement] = {}
        for row in rows:
            kinds.setdefault(getattr(row, name), row)
        if len(kinds) > 1:
            listed = "; ".join(f"{value} (job {row.job_id} of {row.sweep})" for value, row in kinds.items())
            raise ConfigError(
                f"these jobs are of several {plural}: {listed}",
                hint=f"A law holds for one of them. Choose: --{name} {min(kinds)!r}",
            )


def _other_keys(asked: Mapping[int, JobConfig], base: int) -> list[str]:
    """Say which keys the jobs vary that no law knows of."""
    values = [flatten(config.model_dump(mode="json")) for config in asked.values()]
    varied = [key for key in varied_keys(values) if key not in _OF_THE_LAWS]
    if not varied:
        return []
    return [f"These jobs vary {', '.join(varied)} too, which no law knows of; a new job has that of job {base}."]


def _unfinished(rows: Sequence[JobMeasurement]) -> list[str]:
    """Say how many jobs have not ended: what is told of them rests on those that have."""
    waiting = Counter(row.state for row in rows if row.state in OPEN)
    if not waiting:
        return []
    parts = ", ".join(f"{number} {state}" for state, number in waiting.items())
    have = "has" if waiting.total() == 1 else "have"
    return [
        f"{waiting.total()} of these {named(len(rows), 'job')} {have} not ended ({parts}): no law knows of them yet."
    ]


class _KnownFits(NamedTuple):
    """The fits to the jobs of sweeps that are meant."""

    engine: Engine
    sweeps: Sequence[str]
    everything: Sequence[JobMeasurement]
    """Every job of the sweeps."""
    rows: Sequence[JobMeasurement]
    """Those that are meant."""

    def losses(self) -> tuple[list[Fit], list[str]]:
        """Return the fits of fvu, and what could not be fitted; one of L(N) and L(N,K) is enough."""
        found: list[Fit] = []
        errors: list[FitError] = []
        for law in ("ln", "lnk"):
            try:
                found += self.of(law)
            except FitError as error:
                errors.append(error)
        if not found:
            raise errors[0]
        return found, [] if found[0].law == "ln" else [errors[0].message]

    def of_or_why(self, law: LawName) -> tuple[list[Fit], list[str]]:
        """Return the fits of a law, or why there are none."""
        try:
            return self.of(law), []
        except FitError as error:
            return [], [error.message]

    def of(self, law: LawName) -> list[Fit]:
        """Return the stored fits of a law, if no job has ended since they were made; else fits made now."""
        names, meant = tuple(sorted(set(self.sweeps))), {row.job_id for row in self.rows}
        hooks = {"", *(row.hook for row in self.rows)}
        stored = [one for one in store.newest(self.engine, sweep=names[0], law=law) if one.fit.sweeps == names]
        last = last_ended(self.engine, self.sweeps)
        current = [one.fit for one in stored if is_current(one, self.everything, last)]
        plain = [one for one in current if _is_plain(one) and one.hook in hooks]
        return [one for one in plain if meant.issuperset(one.jobs)] or fit(law, self.rows)


def is_current(stored: StoredFit, rows: Sequence[JobMeasurement], last: float | None) -> bool:
    """Say whether no job has ended since a fit was made, nor while it was, and no curve it was made from has grown."""
    told = stored.fit.options
    has_grown = LAWS[stored.fit.law].reads_curves and told.get("curve points") != curve_points(rows)
    return stored.created_at >= (last or 0.0) and told.get("jobs ended") == ended(rows) and not has_grown


def _is_plain(found: Fit) -> bool:
    """Say whether a fit was made with the default options: its group names what else was chosen."""
    return found.group == "" or (found.group.startswith("k=") and "," not in found.group)
