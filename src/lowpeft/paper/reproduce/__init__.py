"""Run experiments: train and measure every row, beside the paper's figures."""

from .cluster import Cluster
from .job import Job, Outcome
from .running import Settings, Sources, reproduce, smoke
from .table import Line, Table

__all__ = ["Cluster", "Job", "Line", "Outcome", "Settings", "Sources", "Table", "reproduce", "smoke"]
