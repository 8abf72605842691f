"""A sweep on one page: what was found, the figures, the tables behind them, and where all of it comes from."""

from orchestrator.report.collect import collect
from orchestrator.report.contents import Contents, Missing, Origin, SweepText
from orchestrator.report.page import render

__all__ = ["Contents", "Missing", "Origin", "SweepText", "collect", "render"]
