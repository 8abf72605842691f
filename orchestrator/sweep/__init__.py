"""A sweep file -> a Sweep of validated configs: bases, blocks, ranges, overrides, exclusions. Also a lens file.

Pure; imports config alone. Start reading at `expansion.expand`.
"""

from orchestrator.sweep.evaluation_checks import check_evaluation
from orchestrator.sweep.expansion import NO_FILE, check_name, expand, expand_text
from orchestrator.sweep.paths import check_paths, doubtful_ids
from orchestrator.sweep.subject_checks import check_subjects

__all__ = [
    "NO_FILE", "check_evaluation", "check_name", "check_paths", "check_subjects", "doubtful_ids", "expand",
    "expand_text",
]  # fmt: skip
