"""A plan as a sweep file, ready to enqueue."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli import terminal
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from orchestrator.config.job import JobConfig

MARK = "Written by: orch plan"
"""How a sweep file begins that may be written again."""


def write(
    engine: "Engine", name: str, configs: "Sequence[JobConfig]", *, remarks: Sequence[str] = (), head: Sequence[str],
    output: str | None,
) -> None:  # fmt: skip
    """Write configs as a sweep file that adds to a sweep, or say how to.

    Raises:
        ConfigError: a file of that name is there, and no plan.
    """
    from orchestrator.results.stored_configs import stored_sweep
    from orchestrator.sweep.written import sweep_text

    if output == "json" or not configs:
        return
    if output is None:
        terminal.note(
            "\nTo have it as a sweep file: the same, with -o FILE. Then: orch enqueue FILE\n"
            "To enqueue it at once: the same, with -o - | orch enqueue -"
        )
        return
    sweep = replace(stored_sweep(engine, name), configs=tuple(configs))
    if output == "-":
        terminal.echo_exact(sweep_text(sweep, head=[*head, "To run it: orch enqueue FILE"], remarks=remarks))
        return
    file = Path(output)
    if file.exists() and not file.read_text("utf-8", errors="replace").startswith(f"# {MARK}"):
        raise ConfigError(f"{file} is there already, and no plan", hint="Name another file, or remove that one.")
    file.write_text(sweep_text(sweep, head=[*head, f"To run it: orch enqueue {file}"], remarks=remarks), "utf-8")
    terminal.note(f"\nNext:  orch enqueue {output}")
