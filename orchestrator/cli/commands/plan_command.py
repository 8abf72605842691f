"""`orch plan`: the jobs to run next, as a sweep file ready to enqueue."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import terminal
from orchestrator.cli.commands.forecast_command import whole_numbers
from orchestrator.cli.commands.plan_file import MARK, write
from orchestrator.cli.display.formats import plural, scientific
from orchestrator.cli.display.tables import Column, table
from orchestrator.cli.selection import database, job_choice_options, warn_of_left_out
from orchestrator.formatting import NONE, count, duration

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from orchestrator.fits.job_choice import JobChoice
    from orchestrator.scaling.plan.budget_plan import Choice


@click.command()
@click.argument("sweeps", metavar="SWEEP...", nargs=-1, required=True)
@click.option("--budget", metavar="AMOUNT", help='Shrink the doubt within it: "200 GPU-hours", 3h, "1e18 FLOPs".')
@click.option("--target-fvu", type=float, metavar="FVU", help="Reach this fvu for the least compute.")
@click.option("--lr", "rates", is_flag=True, help="Search the learning rate of each n: by factors of two from auto.")
@click.option("--follow", is_flag=True, help="With --lr: enqueue, watch, and cancel what cannot catch up, to the end.")
@click.option("--n-latents", "sizes", metavar="N,...", help="With --lr: search these sizes too.")
@click.option("--k", "ks", metavar="K,...", help="With --target-fvu or --lr: these k alone.")
@job_choice_options
@click.option("--device", help="Whose hours to count; by default the device on which most of the jobs ended.")
@click.option(
    "-o", "--output", metavar="FILE|json", help="Write the sweep file, - for stdout; json prints for a program instead."
)
def plan(
    *, sweeps: tuple[str, ...], budget: str | None, target_fvu: float | None, rates: bool, follow: bool,
    sizes: str | None, ks: str | None, device: str | None, output: str | None, **choice: Any,
) -> None:  # fmt: skip
    """Propose the jobs to run next, as a sweep file ready to enqueue. Nothing is enqueued, but by --follow.

    Give one of --budget, --target-fvu and --lr. Hours are of one device; FLOPs are executed ones, the subject's too.
    Every job counts with its whole budget of tokens, so that no plan costs more than it says.
    """
    if [budget is not None, target_fvu is not None, rates].count(True) != 1:
        raise click.UsageError("Give one of --budget, --target-fvu and --lr.")
    if (follow and not rates) or (sizes and not rates) or (ks and budget is not None):
        raise click.UsageError("--follow and --n-latents go with --lr, --k with --lr or --target-fvu.")
    wanted = whole_numbers(sizes, "--n-latents") if sizes else []
    given = whole_numbers(ks, "--k") if ks else []
    from orchestrator.fits.job_choice import JobChoice

    meant = JobChoice(**choice)
    with database() as (settings, engine):
        warn_of_left_out(engine, sweeps)
        if rates:
            from orchestrator.cli.commands.lr_search_follow import search
            from orchestrator.lr_search import SearchScope

            scope = SearchScope(sweeps, tuple(wanted), tuple(given), meant)
            search(settings, engine, scope, follow=follow, output=output)
        else:
            _propose(
                engine, sweeps, choice=meant, device=device, budget=budget, target=target_fvu, ks=given, output=output
            )


def _propose(
    engine: "Engine", sweeps: tuple[str, ...], *, choice: "JobChoice", device: str | None, budget: str | None,
    target: float | None, ks: Sequence[int], output: str | None,
) -> None:  # fmt: skip
    from orchestrator.fits.forecast_inputs import load_inputs
    from orchestrator.scaling.plan.budget import allowance
    from orchestrator.scaling.plan.budget_plan import plan_within_budget
    from orchestrator.scaling.plan.target_plan import plan_for_target

    limit = allowance(budget) if budget is not None else None
    loaded = load_inputs(engine, sweeps, choice=choice, device=device, rates=True)
    if limit is not None:
        choices, expected = plan_within_budget(loaded.inputs, limit)
        told = f"--budget {budget!r}"
    else:
        choices, expected = plan_for_target(loaded.inputs, target or 0.0, ks)
        told = f"--target-fvu {target:g}"
    if limit and limit.unit == "seconds":
        kind = loaded.inputs.device or "no device"
        doubt = " It is no GPU." if limit.device == "gpu" and not kind.startswith("cuda") else ""
        expected = [f"Hours are of {kind}, on which most of the jobs ended; another: --device.{doubt}", *expected]
    told += "".join(f" --{name} {value!r}" for name, value in choice._asdict().items() if value is not None)
    head = [f"{MARK} {' '.join(sweeps)} {told}", *loaded.notes, *expected]
    _show(choices, output)
    if output != "json":
        for line in (*loaded.notes, *expected):
            terminal.note(line)
    configs, remarks = [one.job.config for one in choices], [one.why for one in choices]
    write(engine, sweeps[0], configs, remarks=remarks, head=head, output=output)


def _show(choices: "Sequence[Choice]", output: str | None) -> None:
    if output == "json":
        terminal.echo_json(terminal.envelope("plan", map(choice_record, choices)))
        return
    columns: list[Column[Choice]] = [
        Column("N", lambda row: str(row.job.n_latents), right=True),
        Column("K", lambda row: str(row.job.k), right=True),
        Column("LR", lambda row: "auto" if row.job.lr is None else f"{row.job.lr:g}", right=True),
        Column("SEED", lambda row: str(row.job.seed), right=True),
        Column("TOKENS", lambda row: count(row.job.max_tokens), right=True),
        Column("FLOPS", lambda row: scientific(row.job.flops), right=True, weight=7),
        Column("TIME", lambda row: duration(row.job.seconds), right=True, weight=8),
        Column("WHY", lambda row: f"{row.why}; lr: {row.job.lr_from}", weight=9),
    ]
    say = terminal.note if output == "-" else terminal.echo
    for line in table(choices, columns, width=terminal.width()):
        say(line)
    if not choices:
        terminal.note("No job would shrink the doubt any more: it is all noise between jobs.")
        return
    flops = [one.job.flops for one in choices if one.job.flops is not None]
    seconds = [one.job.seconds for one in choices if one.job.seconds is not None]
    total = f"{scientific(sum(flops)) if flops else NONE} FLOPs executed, {duration(sum(seconds)) if seconds else NONE}"
    say(f"\n{plural(len(choices), 'job')}, at most {total} of one device")


def choice_record(choice: "Choice") -> dict[str, Any]:
    """Return one job of a plan for a program."""
    job = choice.job
    return {
        "n_latents": job.n_latents, "k": job.k, "lr": "auto" if job.lr is None else job.lr, "lr_from": job.lr_from,
        "seed": job.seed, "max_tokens": job.max_tokens, "flops_executed": job.flops, "seconds": job.seconds,
        "why": choice.why, "config_id": job.config.config_id, "config": job.config.model_dump(mode="json"),
    }  # fmt: skip
