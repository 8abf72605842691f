"""The table of SAEs: those that jobs trained, entered as jobs finish, and those brought in. Its only author."""

from orchestrator.saes.job_saes import record_finished, record_missing
from orchestrator.saes.registry import NewSae, add, check_imported, check_name, remove, set_measured
from orchestrator.saes.sae_rows import SaeEntry, entries, named, of_jobs, read
from orchestrator.saes.types import Measured, SaeState

__all__ = [
    "Measured",
    "NewSae",
    "SaeEntry",
    "SaeState",
    "add",
    "check_imported",
    "check_name",
    "entries",
    "named",
    "of_jobs",
    "read",
    "record_finished",
    "record_missing",
    "remove",
    "set_measured",
]
