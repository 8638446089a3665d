"""Experiments: tables of papers as data, one row per network that is adapted. Nothing here runs them."""

from .experiment import Experiment, Row, bundled_experiments, experiment_from_dict, load_experiment
from .printed import Paper, Printed, PrintedFigures, Score

__all__ = [
    "Experiment",
    "Paper",
    "Printed",
    "PrintedFigures",
    "Row",
    "Score",
    "bundled_experiments",
    "experiment_from_dict",
    "load_experiment",
]
