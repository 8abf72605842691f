"""`orch doctor`: print what the checks find, and what to do about it."""

import click

from orchestrator.cli import terminal
from orchestrator.cli.selection import output_option

_COLOURS = {"OK": "green", "WARN": "yellow", "FAIL": "red"}


@click.command()
@output_option("json")
@click.pass_context
def doctor(ctx: click.Context, *, output: str | None) -> None:
    """Check that everything orch needs is in order; exit code 1 if something is not."""
    from orchestrator.diagnosis.checks import run_checks

    findings = []
    for finding in run_checks():
        findings.append(finding)
        if not output:
            mark = terminal.style(f"{finding.level:<4}", fg=_COLOURS[finding.level], bold=True)
            terminal.echo(f"{mark}  {finding.name:<9} {finding.text}")
            if finding.hint:
                terminal.echo(f"{'':16}{finding.hint}")
    if output:
        terminal.echo_json(terminal.envelope("doctor", (finding._asdict() for finding in findings)))
    ctx.exit(1 if any(finding.level == "FAIL" for finding in findings) else 0)
