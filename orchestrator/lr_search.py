"""A learning-rate search on the queue: what `scaling.plan.lr_search` decides is enqueued and cancelled here."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from sqlalchemy import Engine

from orchestrator import queue
from orchestrator.config.activation_functions import ACTIVATIONS
from orchestrator.config.job import JobConfig
from orchestrator.dispatch import wake
from orchestrator.errors import ConfigError, NotFound, StateError
from orchestrator.fits.forecast_inputs import check_one_kind
from orchestrator.fits.job_choice import ANY, JobChoice
from orchestrator.results.fit_rows import measured
from orchestrator.results.stored_configs import configs, stored_sweep
from orchestrator.scaling.plan.forecast import check_size, sized
from orchestrator.scaling.plan.lr_search import Rate, Step, next_step
from orchestrator.scaling.sparsity import why_other_sparsity
from orchestrator.scaling.types import JobMeasurement
from orchestrator.settings import Settings

POLL_SECONDS = 2.0


class SearchScope(NamedTuple):
    """What is searched: jobs are added to the first sweep, those of all sweeps are looked at."""

    sweeps: tuple[str, ...]
    sizes: tuple[int, ...]
    """Values of n_latents beside those the sweeps have."""
    ks: tuple[int, ...]
    """Empty: every k the sweeps have."""
    choice: JobChoice = ANY
    """Which of their jobs are meant."""


class SearchStep(NamedTuple):
    """What to do now, with the configs of the jobs to enqueue."""

    step: Step
    configs: tuple[JobConfig, ...]
    """One for each of `step.enqueue`."""


class SearchRound(NamedTuple):
    """One round of a search that is followed: what was known, and what was cancelled."""

    step: Step
    cancelled: tuple[queue.Change, ...]


def propose(engine: Engine, scope: SearchScope) -> SearchStep:
    """Return what a search has found so far and what comes next; nothing is written.

    Raises:
        NotFound: an unknown sweep, or one without a job of the wanted k.
        ConfigError: jobs of several subjects, or a size that no job can have, or jobs whose L0 is not their k.
    """
    meant = scope.choice.of(measured(engine, scope.sweeps, layer=scope.choice.layer))
    rows = [row for row in meant if not scope.ks or row.k in scope.ks]
    if not rows:
        raise NotFound(
            f"no job of {', '.join(scope.sweeps)} has such a k",
            hint="A search takes all but n, k and lr from a job: enqueue one first.",
        )
    check_one_kind(rows)
    _check_sparsity(rows)
    ks = scope.ks or tuple(sorted({row.k for row in rows}))
    sizes = [(n_latents, k) for n_latents in scope.sizes for k in ks]
    for size in sizes:
        check_size(*size)
    step = next_step(rows, sizes=sizes)
    return SearchStep(step, tuple(_config(engine, rate, rows) for rate in step.enqueue))


def _check_sparsity(rows: Sequence[JobMeasurement]) -> None:
    """Refuse jobs whose L0 moves with the learning rate: of theirs, the lowest fvu is the least sparse one's."""
    for row in rows:
        why = why_other_sparsity(row)
        is_set_by_k = any(name == row.activation and facts.selects_per_token for name, facts in ACTIVATIONS.items())
        if why and not is_set_by_k:
            raise ConfigError(
                f"learning rates are compared at one L0, and job {row.job_id} has another: {why}",
                hint="Search with sae.activation topk, whose L0 is k, or compare jobs of one L0: orch report",
            )


def follow(settings: Settings, engine: Engine, scope: SearchScope) -> Iterator[SearchRound]:
    """Enqueue and cancel, round after round, until each size is bracketed or cannot be; yield each round.

    All state is in the database: the iteration may be given up and begun again at any time.

    Raises:
        NotFound: an unknown sweep, or one without a job of the wanted k.
        ConfigError: jobs of several subjects, or a size that no job can have.
    """
    cancelled: set[int] = set()
    while True:
        step, wanted = propose(engine, scope)
        changes = _cancel(engine, [job_id for job_id in step.cancel if job_id not in cancelled])
        cancelled |= set(step.cancel)  # each once: a person who retries such a job has a reason
        _enqueue(settings, engine, scope.sweeps[0], wanted)
        yield SearchRound(step, tuple(changes))
        if step.is_done:
            return
        time.sleep(POLL_SECONDS)


def _cancel(engine: Engine, job_ids: Sequence[int]) -> list[queue.Change]:
    changes = []
    for job_id in job_ids:
        try:
            changes += queue.cancel(engine, [job_id])
        except StateError:
            continue  # it has ended meanwhile
    return changes


def _enqueue(settings: Settings, engine: Engine, name: str, wanted: tuple[JobConfig, ...]) -> None:
    """Add configs to a sweep; what it holds already, by another search at the same time, is not added again."""
    if wanted:
        added = queue.enqueue(engine, replace(stored_sweep(engine, name), configs=wanted))
        wake(settings, [job_id for job_id in added.job_ids if job_id is not None])


def _config(engine: Engine, rate: Rate, rows: Sequence[JobMeasurement]) -> JobConfig:
    """Return the config of a rate: all else as in a job of the same size, else as in one of the nearest size."""

    def distance(row: JobMeasurement) -> tuple[float, bool, int, int]:
        log_ratio = abs(math.log((row.n_latents or 1) / rate.n_latents))
        return log_ratio, row.k != rate.k, row.seed, row.job_id

    nearest = min(rows, key=distance)
    base = configs(engine, [nearest.job_id])[nearest.job_id]
    config = sized(base, rate.n_latents, rate.k, max_tokens=base.training.max_tokens)
    optimizer = config.optimizer.model_copy(update={"lr": "auto" if rate.lr is None else rate.lr})
    return config.model_copy(update={"optimizer": optimizer})
