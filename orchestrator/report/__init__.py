"""A sweep on one page: findings, figures, tables and provenance. Start at `collect`, then `page`."""

from orchestrator.report.collect import collect_contents
from orchestrator.report.page import render
from orchestrator.report.page_data import Contents, Missing, Origin, SweepText
from orchestrator.report.rows_file import rows_csv

__all__ = ["Contents", "Missing", "Origin", "SweepText", "collect_contents", "render", "rows_csv"]
