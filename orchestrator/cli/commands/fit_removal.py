"""`orch fit --remove`: take stored fits out of the database."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.cli import terminal
from orchestrator.cli.display.fit_tables import fit_line
from orchestrator.cli.display.formats import plural
from orchestrator.errors import NotFound
from orchestrator.units import is_number, row_id

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from orchestrator.fits.job_choice import JobChoice
    from orchestrator.scaling.types import LawName, StoredFit


def remove_fits(
    engine: "Engine", names: Sequence[str], laws: "Sequence[LawName]", choice: "JobChoice", *, yes: bool,
    output: str | None,
) -> None:  # fmt: skip
    """Remove the fits of these numbers, or those to exactly these sweeps that are of the laws and jobs meant.

    Raises:
        NotFound: there is no such sweep or fit; the message says what is stored.
    """
    from orchestrator.fits import store

    numbers = [_fit_id(name) for name in names if is_number(name)]
    sweeps = [name for name in names if not is_number(name)]
    found = [*numbers, *(_matching(engine, sweeps, laws, choice) if sweeps else [])]
    if len(found) > 1:
        terminal.confirm(f"Remove {plural(len(found), 'fit')}?", yes=yes)
    removed = store.remove(engine, found)
    if output == "json":
        items = [{"id": one.id, "law": one.fit.law, "group": one.fit.group, "hook": one.fit.hook} for one in removed]
        terminal.echo_json(terminal.envelope("fit-removed", items))
        return
    for one in removed:
        terminal.echo(f"Removed {fit_line(one)}")


def _fit_id(name: str) -> int:
    found = row_id(name)
    if found is None:
        raise NotFound(f"there is no fit {name}", hint="The fits of a sweep: orch fit SWEEP")
    return found


def _matching(
    engine: "Engine", sweeps: Sequence[str], laws: "Sequence[LawName]", choice: "JobChoice"
) -> "list[int]":  # fmt: skip
    """Return the ids of the fits to exactly these sweeps that are meant."""
    from orchestrator import results
    from orchestrator.fits import store

    stored = [one for one in store.history(engine, sweep=sweeps[0]) if set(one.fit.sweeps) == set(sweeps)]
    grounds = choice.grounds(results.measured(engine, sweeps, curves=False, layer=choice.layer, missing_ok=True))
    wanted = {name: value for name, value in grounds.items() if value is not None}
    meant = [one.id for one in stored if not laws or one.fit.law in laws if _is_of(one, wanted)]
    if not meant:
        kept = "\n".join(map(fit_line, stored)) or "None is stored: orch fit stores them."
        raise NotFound(f"no stored fit to {', '.join(sweeps)} is of that", hint=kept)
    return meant


def _is_of(stored: "StoredFit", wanted: dict[str, str]) -> bool:
    return all(getattr(stored.fit, name) == value for name, value in wanted.items())
