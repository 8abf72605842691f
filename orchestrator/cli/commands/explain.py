"""`orch explain`: why a job is where it is, what it needs, and with whom it can share."""

from typing import TYPE_CHECKING

import click

from orchestrator.cli import terminal
from orchestrator.cli.display.columns import state_cell, why
from orchestrator.cli.display.formats import plural, size
from orchestrator.cli.selection import database, job_argument, job_rows
from orchestrator.formatting import duration
from orchestrator.job_states import FREED

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from orchestrator.results import JobRow
    from orchestrator.settings import Settings

_MEANINGS = {
    "Priority": "The workers are busy, or other jobs are before it: of higher priority, or older.",
    "Backoff": "Its last attempt failed; it is tried again when the time in brackets is over.",
    "Paused": "It is paused. To end that: orch resume {id}",
    "QueuePaused": "The whole queue is paused: no worker claims. To end that: orch queue resume",
    "SweepPaused": "Its sweep is paused. To end that: orch resume {sweep}",
    "Arriving": "The jobs of its sweep are still coming in, and none of the new ones starts before all are there. If "
    "no orch enqueue is at work any more, it was cut off: give the same command again, and it adds what is missing.",
    "SweepCap": "As many jobs of its sweep run as limits.max_parallel allows.",
    "NoWorker": "No worker is at work. Start one with: orch worker",
    "WorkersUnwell": "Every worker that is there is unwell: its machine cannot do its work, and it claims nothing "
    "as long as that lasts. Who, and why: orch worker list",
    "WorkersLeaving": "Every worker that is there drains or stops: it claims no more. Start another with: orch worker",
}
_HOLDERS = {
    "draining": "Its worker drains: it finishes this job, claims no more, and ends.",
    "stopping": "Its worker was asked to stop: it hands this job back, and another worker goes on from there.",
    "lost": "Its worker has not reported for {silent}.",
}
_ENDINGS = {
    "converged": "At three evaluations in a row it gained less than stop.epsilon per doubling of tokens, beyond doubt.",
    "max_tokens": "It used its whole token budget before it converged. To let it go on from there:"
    " orch extend {id} --max-tokens TOKENS",
    "not_learning": "It hardly learned: at the end of its budget its fvu is within a tenth of what untrained weights, "
    "or the mean alone, score. Its learning rate is too low, or its budget too short: orch show {id} --curve",
    "diverged": "Its loss was no longer finite, or rose far above its best, or above that of its untrained weights. "
    "That is a result: orch show {id} --curve",
}

_LENS_ENDINGS = {
    "converged": _ENDINGS["converged"],
    "max_tokens": "It used its whole token budget before it converged. With a larger one, --tokens, it is another job.",
    "not_learning": "Its KL is within a tenth of the logit lens', which it began with: raise --lr, or --tokens.",
    "diverged": "Its KL was no longer finite, or rose far above its best, or above the logit lens'. There is no "
    "lens of it: lower --lr. The curve: orch show {id} --curve",
}


@click.command()
@job_argument()
def explain(*, job: int) -> None:
    """Say why a job is, or is not, running, and what to do about it."""
    with database() as (settings, engine):
        row = job_rows(engine, [str(job)])[0]
        terminal.echo(
            f"job {row.id} of {row.sweep}: {state_cell(row, drawn=False)}" + (f" ({why(row)})" if why(row) else "")
        )
        for line in [*_explanation(settings, engine, row), *_sharing(settings, engine, row)]:
            terminal.echo(line)


def _explanation(settings: "Settings", engine: "Engine", row: "JobRow") -> list[str]:
    from orchestrator import results

    names = {"id": row.id, "sweep": row.sweep}
    if row.state == "succeeded" and row.kind == "evaluate":
        return ["All that it was to measure is measured. The scores: orch results"]
    if row.state == "succeeded" and row.kind == "lens":
        return _lens_ending(engine, row)
    if row.state == "succeeded":
        return [_ENDINGS.get(row.outcome or "", "").format(**names)]
    if row.state == "running":
        asked = {"cancel": "It was asked to cancel", "pause": "It was asked to pause"}.get(row.desired, "")
        is_held = row.lease_left is None or row.lease_left >= 0
        held = "It runs." if is_held else "It ran."
        beat = f"{asked}, and does so at its next heartbeat." if asked else held
        left = (
            f" {_lease(settings, row.lease_left, silent=_is_silent(engine, row))}" if row.lease_left is not None else ""
        )
        others = _companions(engine, row)
        with_whom = f" Its process began with job{'s' * (len(others) > 1)} {', '.join(others)} too." if others else ""
        there = f"{beat} Attempt {row.attempt}, on {row.worker or 'a worker'}.{left}{with_whom}"
        return [there, *_of_its_worker(engine, row)]
    if row.state in FREED:
        tried = [a for a in results.attempts(engine, row.id) if a.error]
        last = [f"Attempt {tried[-1].attempt}: {tried[-1].error}", f"Its log: orch logs {row.id}"] if tried else []
        measured = ["What is measured stays, and is not measured again."] if row.kind == "evaluate" else []
        return [*last, *measured, f"To try again: orch retry {row.id}"]
    first = (row.reason or "").partition("(")[0]
    lines = [_MEANINGS.get(first, "It waits for a worker.").format(**names)]
    others = [word for word in results.waiting_for(engine, row.id) if word != first]
    lines += [f"Also: {_MEANINGS[word].format(**names)}" for word in others]
    position = results.position_in_queue(engine, row.id)
    if row.state == "queued" and position.before:
        lines.append(f"{plural(position.before, 'queued job')} may run before it; the first is job {position.first}.")
    return [*lines, *_handed_back(engine, row)]


def _lens_ending(engine: "Engine", row: "JobRow") -> list[str]:
    from orchestrator import lenses

    (found,) = lenses.of_jobs(engine, [row.id])
    return [_LENS_ENDINGS.get(found.outcome or "", "").format(id=row.id), f"The lens: orch lens show {found.label}"]


def _handed_back(engine: "Engine", row: "JobRow") -> list[str]:
    """Say of a job that a machine could not serve which one, and where it can go on."""
    from orchestrator import results

    tried = {attempt.attempt: attempt for attempt in results.attempts(engine, row.id)}
    last = tried.get(row.attempt)
    if last is None or last.outcome != "machine":
        return []
    said = f"Attempt {last.attempt} was handed back by {last.worker} on {last.host}, through no fault of the job:"
    error, _, hint = (last.error or "").partition("\n")
    saved = {tried[one.attempt].host for one in results.checkpoints(engine, row.id) if one.attempt in tried}
    where = f"Its checkpoints were written on {', '.join(sorted(saved))}: it waits for a worker that can see them."
    return [f"{said} {error}", *filter(None, [hint]), *([where] if saved else [])]


def _is_silent(engine: "Engine", row: "JobRow") -> bool:
    from orchestrator import results

    return any(row.id in worker.jobs and worker.state == "lost" for worker in results.registered_workers(engine))


def _lease(settings: "Settings", left: float, *, silent: bool) -> str:
    if left >= 0 and silent:
        return f"Nobody renews its lease, which runs out in {duration(left)}; then another worker goes on."
    if left >= 0:
        return f"Its lease is renewed in time: {duration(left)} are left."
    grace = f"{settings.grace_seconds:g} s after that"
    return f"Its lease ran out {duration(-left)} ago: any worker puts it back into the queue {grace}."


def _of_its_worker(engine: "Engine", row: "JobRow") -> list[str]:
    """Say what is about to happen to a running job because of its worker."""
    from orchestrator import results

    holders = [worker for worker in results.registered_workers(engine) if row.id in worker.jobs]
    return [
        _HOLDERS[worker.state].format(silent=duration(worker.silent)) for worker in holders if worker.state in _HOLDERS
    ]


def _companions(engine: "Engine", row: "JobRow") -> list[str]:
    from orchestrator import results

    last = [attempt.facts or {} for attempt in results.attempts(engine, row.id)][-1:]
    return [str(job) for facts in last for job in facts.get("shared_with", [])]


def _sharing(settings: "Settings", engine: "Engine", row: "JobRow") -> list[str]:
    """Say what a job that may still run needs, and with whom it can share a trainer."""
    from orchestrator import results
    from orchestrator.estimates.memory import Room, state_bytes, trainer_bytes
    from orchestrator.results.stored_configs import configs

    if row.state not in {"queued", "paused"}:
        return []
    if row.kind == "evaluate":
        return _sharing_of_evaluation(engine, row)
    if row.kind == "lens":
        return ["It is trained in a process of its own."]
    config, room = configs(engine, [row.id])[row.id], Room(settings, settings.device)
    alone, own = trainer_bytes([config], kind=room.kind), state_bytes(config)
    there = "" if room.bytes is None else f" of the {size(room.bytes)} there are"
    needs = f"Memory: about {size(alone)} in a trainer of its own, {size(own)} of it its own state"
    if room.bytes is not None and alone > room.bytes:
        lines = [f"{needs}: more than the {size(room.bytes)} there are. It is tried, alone."]
    else:
        fit = plural(room.fits(config), "such job")
        lines = [f"{needs}; one trainer takes {fit}{there} (at most {settings.jobs_per_trainer})."]
    position = results.position_in_queue(engine, row.id)
    if position.is_alone:
        return [*lines, "It is trained alone: it failed or lost its worker before, or an older orch queued it."]
    at_work = f", and by {position.companions_running} running" if position.companions_running else ""
    return [
        *lines,
        f"Its stream of activations is read by {plural(position.companions_queued, 'other queued job')}{at_work}.",
    ]


def _sharing_of_evaluation(engine: "Engine", row: "JobRow") -> list[str]:
    from orchestrator import results

    position = results.position_in_queue(engine, row.id)
    if position.is_alone:
        return ["It is evaluated alone: it failed or lost its worker before."]
    others = plural(position.companions_queued, "other queued evaluation")
    at_work = f", and {position.companions_running} running" if position.companions_running else ""
    return [f"Its model and text are those of {others}{at_work}: they share one process."]
