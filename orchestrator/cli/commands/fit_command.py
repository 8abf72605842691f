"""`orch fit`: scaling laws from the jobs in the database."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import terminal
from orchestrator.cli.commands.services import ship
from orchestrator.cli.selection import (
    database,
    job_choice_options,
    output_option,
    tokens_given,
    warn_of_left_out,
    yes_option,
)

if TYPE_CHECKING:
    from orchestrator.scaling.fit.fitting import Fitted

_LAWS = "ln, lc, lnk, tn, lr, ls, lnt or lrt"


@click.command()
@click.argument("sweeps", metavar="SWEEP...", nargs=-1, required=True)
@click.option("-l", "--law", "laws", metavar="LAW", multiple=True,
              help=f"{_LAWS}; may be given several times. Without it: every law the jobs allow.")  # fmt: skip
@click.option("--epsilon", type=float, default=0.01, show_default=True,
              help="Of tokens to convergence: 0.002, 0.005, 0.01 or 0.02.")  # fmt: skip
@click.option("--loss", type=click.Choice(["fvu", "l_inf"]), default="fvu", show_default=True,
              help="A job's last held-out fvu, or the limit of its curve's tail.")  # fmt: skip
@click.option("--flops", type=click.Choice(["dense", "executed", "subject+executed"]), default="dense",
              show_default=True, help="What the axis of L(C) counts.")  # fmt: skip
@click.option("--tokens", metavar="TOKENS", callback=tokens_given,
              help="Compare at equal tokens too: lnt and lrt, after so many, such as 5M.")  # fmt: skip
@job_choice_options
@click.option("--bootstrap", type=click.IntRange(100, 100_000), default=2000, show_default=True,
              help="Refits behind the intervals.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the bootstrap.")
@click.option("--store/--no-store", default=True, help="Keep the fits in the database (the default), or only print.")
@click.option("--remove", is_flag=True,
              help="Fit nothing: remove stored fits, of --law alone if it is given; a number is one fit.")  # fmt: skip
@yes_option()
@output_option("json")
def fit(
    *, sweeps: tuple[str, ...], laws: tuple[str, ...], epsilon: float, loss: str, flops: str, tokens: int | None,
    bootstrap: int, seed: int, store: bool, remove: bool, yes: bool, output: str | None, **choice: Any,
) -> None:  # fmt: skip
    """Fit scaling laws to the jobs of sweeps, and keep the fits.

    ln is L(N), the loss at convergence by latents; lc is L(C), by FLOPs, on the envelope of all curves; lnk is L(N,K);
    tn is T(N), tokens to convergence; lr is lr*(N), the largest learning rate that converges; ls is L(N) across
    subjects. Two compare jobs after equal tokens, converged or not, with --tokens or where they are named:
    lnt is L_T(N); lrt is lr_T(N), the learning rate of the lowest loss.

    A fit supersedes the older one of the same law, sweeps, k, subject, hook point, text and activation, and overwrites
    none. With --remove, the one it had superseded stands again.
    """
    from orchestrator import results
    from orchestrator.cli.commands.fit_removal import remove_fits
    from orchestrator.fits import store as fit_store
    from orchestrator.fits.job_choice import JobChoice
    from orchestrator.scaling.fit.fitting import fit_laws
    from orchestrator.scaling.fit.options import options_of
    from orchestrator.scaling.laws.registry import LAWS, law_named, laws_to_fit

    named = list(dict.fromkeys(law_named(name) for name in laws))
    wanted = named or laws_to_fit(at_equal_tokens=tokens is not None)
    with database() as (_, engine):
        if remove:
            remove_fits(engine, sweeps, named, JobChoice(**choice), yes=yes, output=output)
            return
        reads_curves = any(LAWS[law].reads_curves for law in wanted)
        rows = results.measured(engine, sweeps, curves=reads_curves, layer=choice["layer"])
        warn_of_left_out(engine, sweeps)
        options = options_of(
            epsilon=epsilon, loss=loss, flops=flops, tokens=tokens, **JobChoice(**choice).grounds(rows)
        )
        done = fit_laws(wanted, rows, options, n_bootstrap=bootstrap, seed=seed)
        is_short = tokens is None and any(row.outcome == "max_tokens" for row in rows)
        if not done.fits:
            raise done.refused[0].error
        ids = fit_store.save(engine, done.fits) if store else []
    _print(done, ids, output, sweeps, is_asked=bool(laws), is_short=is_short)
    if ids:
        ship(sweeps)


def _print(
    done: "Fitted", ids: list[int], output: str | None, sweeps: Sequence[str], *, is_asked: bool, is_short: bool
) -> None:
    from orchestrator.cli.display.fit_tables import fit_lines, fit_record
    from orchestrator.scaling.laws.registry import LAWS

    numbers: list[int | None] = [*ids] or [None] * len(done.fits)
    if output == "json":
        items = [fit_record(one, number) for one, number in zip(done.fits, numbers, strict=True)]
        refused = [{"law": one.law, "group": one.group, "why": one.error.message} for one in done.refused]
        terminal.echo_json(terminal.envelope("fit", items) | {"refused": refused})
        return
    for at, (one, number) in enumerate(zip(done.fits, numbers, strict=True)):
        if at:
            terminal.echo()
        for line in fit_lines(one, number, width=terminal.width()):
            terminal.echo(line)
    if is_asked:
        for refusal in done.refused:
            title, why = LAWS[refusal.law].title, refusal.error.message
            said = f"Not fitted: {why if why.startswith(title) else f'{title}: {why}'}"
            terminal.warn(said, refusal.error.hint)
        return
    for line in _refused(done, sweeps):
        terminal.note(line)
    if done.refused and is_short:
        terminal.note(f"Jobs that used up their budgets are compared by: orch fit {' '.join(sweeps)} --tokens TOKENS")


def _refused(done: "Fitted", sweeps: Sequence[str]) -> list[str]:
    """Say of each law that nobody asked for, once, what it needs; and where to read what is missing."""
    from orchestrator.scaling.laws.registry import LAWS

    groups: dict[tuple[str, str], list[str]] = {}
    for one in done.refused:
        law, why = LAWS[one.law], one.error.message
        is_short = why.startswith(law.title)
        key = (law.title, f"needs {law.needs}") if is_short else ("", why)
        groups.setdefault(key, []).append(one.group if is_short else law.title)
    lines = []
    for (title, why), names in groups.items():
        inside = f" ({'; '.join(filter(None, names))})" if any(names) else ""
        lines.append(f"Not fitted: {title}{inside} {why}" if title else f"Not fitted: {', '.join(names)}: {why}")
    if done.refused:
        lines.append(f"What is missing: orch fit {' '.join(sweeps)} --law {done.refused[0].law}")
    return lines
