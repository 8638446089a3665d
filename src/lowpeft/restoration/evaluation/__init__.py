"""Evaluation on whole scenes: measure by protocol, compare with the frozen base, write tables, files and pictures."""

from .comparison import Comparison, compare, methods
from .measure import by_bicubic, by_network, by_network_alone, evaluate, measure
from .report import Report, ReportRow, overview, write_reports

__all__ = [
    "Comparison",
    "Report",
    "ReportRow",
    "by_bicubic",
    "by_network",
    "by_network_alone",
    "compare",
    "evaluate",
    "measure",
    "methods",
    "overview",
    "write_reports",
]
