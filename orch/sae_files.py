"""SAEs as modules: of the table, or of a folder; with rows of W_dec of norm 1."""

from pathlib import Path
from typing import TYPE_CHECKING

from orch.placement import device_of, dtype_of
from orchestrator.errors import NotFound
from worker.formats import registry
from worker.saes.loading import load_sae

if TYPE_CHECKING:
    import torch

    from orchestrator.saes import SaeEntry
    from orchestrator.settings import Settings
    from worker.sae.inference import InferenceSae

_NORM_TOLERANCE = 1e-4


def load_entry(
    entry: "SaeEntry", settings: "Settings", *, device: "str | torch.device", dtype: "str | torch.dtype"
) -> "InferenceSae":
    """Return an SAE of the table.

    Raises:
        NotFound: its folder is gone.
        ConfigError: its files were changed since they were written; or device or dtype is none.
    """
    place, kind = device_of(device), dtype_of(dtype)
    folder = Path(settings.artifact(entry.uri))
    if not folder.exists():
        hint = "Was it moved? ORCH_ARTIFACTS says where the SAEs of jobs are."
        raise NotFound(f"SAE {entry.label}: its folder {folder} is gone", hint=hint)
    return _with_unit_rows(load_sae(entry, settings)).to(device=place, dtype=kind).eval()


def load_folder(folder: Path, *, device: "str | torch.device", dtype: "str | torch.dtype") -> "InferenceSae":
    """Return the SAE of a folder or file, in any format that is known.

    Raises:
        NotFound: it is not there.
        ConfigError: it is in no format that is known, or was changed since it was written; or device or dtype is none.
    """
    place, kind = device_of(device), dtype_of(dtype)
    if not folder.exists():
        raise NotFound(f"there is no folder or file {folder}", hint="An SAE of the table is a number or a name.")
    return _with_unit_rows(registry.read(folder).sae).to(device=place, dtype=kind).eval()


def _with_unit_rows(sae: "InferenceSae") -> "InferenceSae":
    norms = sae.W_dec.float().norm(dim=1)
    return sae if bool(((norms - 1).abs() < _NORM_TOLERANCE).all()) else sae.with_unit_rows()
