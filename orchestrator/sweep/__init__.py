"""A sweep file -> a Sweep: bases, grid, zip and list blocks, ranges, overrides and exclusions. Pure."""

from orchestrator.sweep.expansion import check_name, expand
from orchestrator.sweep.places import check_places

__all__ = ["check_name", "check_places", "expand"]
