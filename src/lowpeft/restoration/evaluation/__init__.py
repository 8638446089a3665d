"""Evaluation on whole scenes: measure by protocol, compare with the frozen base, write tables, files and pictures."""

from .comparison import Comparison, check_control, compare, methods, trained_otherwise
from .disparity import AttendedDisparity, attended_disparity, most_confident
from .measure import by_bicubic, by_network, by_network_alone, evaluate, measure, measured_row
from .other_view import CONTROL, SAME_VIEW, OtherView
from .report import Report, ReportRow, overview, write_reports

__all__ = [
    "CONTROL",
    "SAME_VIEW",
    "AttendedDisparity",
    "Comparison",
    "OtherView",
    "Report",
    "ReportRow",
    "attended_disparity",
    "by_bicubic",
    "by_network",
    "by_network_alone",
    "check_control",
    "compare",
    "evaluate",
    "measure",
    "measured_row",
    "methods",
    "most_confident",
    "overview",
    "trained_otherwise",
    "write_reports",
]
