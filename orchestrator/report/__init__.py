"""A sweep on one page: what was found, the figures, the tables behind them, and where all of it comes from."""

from orchestrator.report.collect import collect_contents
from orchestrator.report.page import render
from orchestrator.report.page_data import Contents, Missing, Origin, SweepText

__all__ = ["Contents", "Missing", "Origin", "SweepText", "collect_contents", "render"]
