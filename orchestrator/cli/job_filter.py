"""The options that say which jobs of a list are shown, in which order, and in which columns."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from orchestrator.cli.display.tables import Column
from orchestrator.errors import ConfigError
from orchestrator.formatting import NONE

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from orchestrator.results import JobRow
    from orchestrator.results.choice import Choice

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def filter_options(command: _Decorated) -> _Decorated:
    """Give a command --where, --label, --best-by, --sort and --columns."""
    for option in (
        click.option("--columns", metavar="KEY,...", help="Show these alone: fields as -o json names them, or keys."),
        click.option("--sort", metavar="[-]KEY", default="", help="Order by it, such as fvu; -fvu: the highest first."),
        click.option("--best-by", metavar="KEY,...", help="Of jobs alike in these, and in L0: the lowest fvu alone."),
        click.option("--label", "labels", metavar="NAME=VALUE", multiple=True, help="Only of sweeps with this label."),
        click.option("--where", metavar="KEY=VALUE[,...]", multiple=True, help="Only jobs of this config: sae.k=8,16."),
    ):
        command = option(command)
    return command


def choice_of(where: Sequence[str], labels: Sequence[str], best_by: str | None, sort: str) -> "Choice":
    """Return a choice from what a person typed.

    Raises:
        ConfigError: an unknown key, a key given twice with different values, or a text of another form.
    """
    from orchestrator.results.choice import Choice, checked

    return checked(Choice(where_of(where), _by_key(labels, "--label"), _keys(best_by), sort))


def where_of(where: Sequence[str]) -> dict[str, list[Any]]:
    """Return what --where asks for: by key of a config, the values of which a job must have one.

    Raises:
        ConfigError: an unknown key, a key given twice with different values, or a text of another form.
    """
    from orchestrator.results.choice import Choice, checked

    pairs = {key: _values(key, text) for key, text in _by_key(where, "--where").items()}
    checked(Choice(pairs))
    return pairs


def columns_of(engine: "Engine", rows: "Sequence[JobRow]", keys: Sequence[str]) -> "list[Column[JobRow]]":
    """Return the columns of some keys, each under its own name."""
    from orchestrator.results.choice import values

    found = values(engine, rows, keys)

    def column(key: str) -> "Column[JobRow]":
        is_text = any(isinstance(found[row.id][key], str) for row in rows)
        return Column(key, lambda row: _cell(found[row.id][key]), right=not is_text)

    return [column(key) for key in keys]


def keys_of(columns: str | None) -> list[str]:
    """Return the keys of --columns.

    Raises:
        ConfigError: an unknown key.
    """
    from orchestrator.results.choice import check

    keys = list(_keys(columns))
    check(keys)
    return keys


def _values(key: str, text: str) -> list[Any]:
    from orchestrator.sweep.overrides import listed

    return listed(text, f"--where {key}")


def _keys(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def _parted(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{option} {text!r} has no '='", hint=f"Such as {option} sae.k=8, or --label project=x")
    return key.strip(), value.strip()


def _by_key(texts: Sequence[str], option: str) -> dict[str, str]:
    """Return the value of each key of an option that may be repeated."""
    found: dict[str, str] = {}
    for text in texts:
        key, value = _parted(text, option)
        if found.setdefault(key, value) != value:
            several = f"Several values go into one {option}: {key}={found[key]},{value}"
            raise ConfigError(
                f"{option} {key} is given twice, with different values",
                hint=several if option == "--where" else f"A sweep has one value of a label: give {option} {key} once.",
            )
    return found


def _cell(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, dict):
        return ",".join(f"{key}={inner}" for key, inner in value.items()) or NONE
    return f"{value:.6g}" if isinstance(value, float) else str(value)
