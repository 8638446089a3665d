"""Experiments: tables of papers as data, one row per network that is adapted. Nothing here runs them."""

from .experiment import LITERATURE, Experiment, Row, bundled_experiments, experiment_from_dict, load_experiment
from .printed import Figures, Paper, Printed, Score

__all__ = [
    "LITERATURE",
    "Experiment",
    "Figures",
    "Paper",
    "Printed",
    "Row",
    "Score",
    "bundled_experiments",
    "experiment_from_dict",
    "load_experiment",
]
