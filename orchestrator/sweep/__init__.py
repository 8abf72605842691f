"""A sweep file -> a Sweep of validated configs: bases, blocks, ranges, overrides, exclusions.

Pure; imports config alone. Start reading at `expansion.expand`.
"""

from orchestrator.sweep.expansion import check_name, expand
from orchestrator.sweep.paths import check_paths
from orchestrator.sweep.subject_checks import check_subjects

__all__ = ["check_name", "check_paths", "check_subjects", "expand"]
