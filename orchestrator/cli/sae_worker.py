"""Work on SAEs that needs torch: done by a process of `worker.saes`, which says as JSON what it came to."""

import json
import subprocess
from collections.abc import Mapping
from typing import Any

import click

from orchestrator.errors import OrchError
from orchestrator.processes.python_process import python_command, python_environment


def run_sae_worker(verb: str, what: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Run one verb of `worker.saes`; what it refuses, it has said on standard error, and its exit status becomes ours.

    Raises:
        OrchError: it ended without a word.
    """
    flags = [f"--{name.rstrip('_')}={value}" for name, value in options.items() if value is not None]
    command = python_command("worker.saes", verb, *flags, "--", what)
    process = subprocess.Popen(command, env=python_environment(), stdout=subprocess.PIPE, text=True)
    try:
        out, _ = process.communicate()
    finally:  # Ctrl-C reaches both of us; it ends first
        process.wait()
    if process.returncode and not out:
        click.get_current_context().exit(process.returncode)
    try:
        said: dict[str, Any] = json.loads(out)
    except ValueError as error:
        raise OrchError(f"the process that works on SAEs said nothing of use: {out[-500:]!r}") from error
    return said
