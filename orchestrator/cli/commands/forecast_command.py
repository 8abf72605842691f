"""`orch forecast`: what sizes that were never trained are expected to reach and to cost."""

from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import terminal
from orchestrator.cli.display.formats import ratio, scientific
from orchestrator.cli.display.tables import Column, table
from orchestrator.cli.selection import database, job_choice_options, output_option, warn_of_left_out
from orchestrator.formatting import NONE, count, duration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.formatting import Interval
    from orchestrator.scaling.plan.forecast import Forecast


def whole_numbers(text: str, name: str) -> list[int]:
    """Return the whole numbers of an option: `1024,4096`, `pow2(10,14)` or `{pow2: [10, 14]}`.

    Raises:
        ConfigError: something else, or a number below 1.
    """
    from orchestrator.errors import ConfigError
    from orchestrator.sweep.overrides import listed

    found = listed(text, name)
    for value in found:
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 1 or value % 1:
            raise ConfigError(
                f"{name}: {value!r} is no whole number from 1 on",
                hint=f"Write {name} 1024,4096 or {name} 'pow2(10,14)'.",
            )
    return [int(value) for value in dict.fromkeys(found)]


@click.command()
@click.argument("sweeps", metavar="SWEEP...", nargs=-1, required=True)
@click.option("--n-latents", "sizes", required=True, metavar="N,...", help="Sizes: 1024,4096 or 'pow2(10,14)'.")
@click.option("--k", "ks", metavar="K,...", help="Latents kept per token; by default every k that was fitted.")
@job_choice_options
@click.option("--device", help="Whose hours to tell; by default the device on which most of the jobs ended.")
@output_option("json")
def forecast(
    *, sweeps: tuple[str, ...], sizes: str, ks: str | None, device: str | None, output: str | None, **choice: Any
) -> None:
    """Say what sizes that were never trained would come to, from the laws fitted to some sweeps.

    FVU is by L(N) at a k that was fitted, else by L(N,K); T(1%) by T(N). TOKENS, FLOPS (executed, the subject's among
    them) and TIME are until the stop rule ends the job, as long after T(1%) as with the jobs so far. Each with its 90%
    interval. BEYOND: how far outside the fitted sizes n lies.
    """
    from orchestrator.fits.forecast_inputs import load_inputs
    from orchestrator.fits.job_choice import JobChoice
    from orchestrator.scaling.plan.forecast import forecast as foretell
    from orchestrator.scaling.plan.forecast import ks_of, remarks_on_k

    wanted = whole_numbers(sizes, "--n-latents")
    given = whole_numbers(ks, "--k") if ks else None
    _check(wanted, given)
    with database() as (_, engine):
        loaded = load_inputs(engine, sweeps, choice=JobChoice(**choice), device=device)
        warn_of_left_out(engine, sweeps)
        known = given or sorted({k for fit in loaded.inputs.losses for k in ks_of(fit)})
        found = foretell(loaded.inputs, [(n, k) for k in known for n in wanted])
    if output == "json":
        terminal.echo_json(terminal.envelope("forecast", map(forecast_record, found)))
    else:
        for line in table(found, _columns(), width=terminal.width()):
            terminal.echo(line)
    for note in (*loaded.notes, *_remarks(found), *remarks_on_k(loaded.inputs, known)):
        terminal.note(note)


def _check(sizes: "Sequence[int]", ks: "Sequence[int] | None") -> None:
    from orchestrator.scaling.plan.forecast import check_size

    for k in ks or ():
        for n_latents in sizes:
            check_size(n_latents, k)


def _columns() -> "list[Column[Forecast]]":
    def between(write: "Callable[[float | None], str]", pick: "Callable[[Forecast], Interval | None]") -> Any:
        return lambda row: spanned(pick(row), write)

    return [
        Column("N", lambda row: str(row.n_latents), right=True),
        Column("K", lambda row: str(row.k), right=True),
        Column("FVU", between(ratio, lambda row: row.fvu), right=True),
        Column("T(1%)", between(count, lambda row: row.tokens_to_convergence), right=True, weight=6),
        Column("TOKENS", between(count, lambda row: row.tokens), right=True, weight=5),
        Column("FLOPS", between(scientific, lambda row: row.flops_executed), right=True, weight=4),
        Column("TIME", between(duration, lambda row: row.seconds), right=True, weight=7),
        Column("BEYOND", _beyond, weight=8),
    ]


def spanned(found: "Interval | None", write: "Callable[[float | None], str]") -> str:
    """Write a value and its interval."""
    return NONE if found is None else f"{write(found.value)} ({write(found.low)}–{write(found.high)})"


def _beyond(row: "Forecast") -> str:
    if row.extrapolation == 1:
        return "within"
    return f"{row.extrapolation:.3g}×" if row.extrapolation > 1 else f"1/{1 / row.extrapolation:.3g}×"


def _remarks(found: "Sequence[Forecast]") -> list[str]:
    forms = dict.fromkeys(
        f"k = {row.k} by {row.law}, form {row.form}{'' if row.taken == row.form else f' (interval: {row.taken})'},"
        f" around which one job errs by {row.noise:.1%}"
        for row in found
    )
    speeds = {row.speed.n_latents: row.speed for row in found if row.speed}
    rivals = {row.form: row.rivals for row in found if row.rivals}
    lines = [f"FVU: {'; '.join(forms)}."]
    if rivals:
        told = "; ".join(f"{' and '.join(others)} beside {form}" for form, others in rivals.items())
        lines.append(f"AICc does not rule out {told}: FVU's intervals do not allow for that, BEYOND above all.")
    if any(row.extrapolation != 1 for row in found):
        lines.append("BEYOND the sizes that were fitted, intervals hold only if the law's form does.")
    for n_latents, one in sorted(speeds.items()):
        jobs = f"job{'' if len(one.jobs) == 1 else 's'} " + ", ".join(map(str, one.jobs[:6]))
        jobs += ", …" if len(one.jobs) > 6 else ""
        lines.append(
            f"TIME on {one.device}: {count(one.tokens_per_second)} tokens/s, {scientific(one.flops_per_second.value)}"
            f" FLOPs/s, as measured at n = {n_latents} ({jobs}), scaled by FLOPs."
        )
    return lines if speeds else [*lines, "TIME: no job of these sweeps ended on a device that could be measured."]


def forecast_record(row: "Forecast") -> dict[str, Any]:
    """Return one size for a program."""
    pace = row.speed
    names = ("fvu", "tokens_to_convergence", "tokens", "flops_dense", "flops_executed", "seconds")
    values: dict[str, Interval | None] = {name: getattr(row, name) for name in names}
    intervals = {name: None if value is None else value._asdict() for name, value in values.items()}
    measured = None if pace is None else pace._asdict() | {"flops_per_second": pace.flops_per_second._asdict()}
    return {
        "n_latents": row.n_latents, "k": row.k, **intervals, "extrapolation": row.extrapolation, "law": row.law,
        "form": row.form, "drawn_form": row.taken, "noise": row.noise, "rivals": list(row.rivals), "speed": measured,
    }  # fmt: skip
