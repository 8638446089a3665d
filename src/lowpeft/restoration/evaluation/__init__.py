"""Evaluation on whole scenes: measure by protocol, compare with the frozen base, write tables, files and pictures."""

from .comparison import Comparison, check_control, compare, methods, trained_otherwise
from .difference import Difference, Gain, gain
from .disparity import AttendedDisparity, attended_disparity, most_confident
from .journal import Journal, resume, unfinished
from .measure import (
    Method,
    by_bicubic,
    by_frozen,
    by_network,
    by_network_alone,
    evaluate,
    measure,
    measure_scene,
    reports_of,
)
from .other_view import CONTROL, SAME_VIEW, OtherView
from .outcome import Outcome
from .page import Origin, ScenePictures, write_outcome_page
from .report import Report, ReportRow, overview
from .results import finish, working_folder, write_results

__all__ = [
    "CONTROL",
    "SAME_VIEW",
    "AttendedDisparity",
    "Comparison",
    "Difference",
    "Gain",
    "Journal",
    "Method",
    "Origin",
    "OtherView",
    "Outcome",
    "Report",
    "ReportRow",
    "ScenePictures",
    "attended_disparity",
    "by_bicubic",
    "by_frozen",
    "by_network",
    "by_network_alone",
    "check_control",
    "compare",
    "evaluate",
    "finish",
    "gain",
    "measure",
    "measure_scene",
    "methods",
    "most_confident",
    "overview",
    "reports_of",
    "resume",
    "trained_otherwise",
    "unfinished",
    "working_folder",
    "write_outcome_page",
    "write_results",
]
