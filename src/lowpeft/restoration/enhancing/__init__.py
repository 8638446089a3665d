"""Enhancing files: from images, folders and patterns to the files of the results.

plan_files(inputs, out) -> FileWork (what is read and written, nothing touched yet) -> run_files -> Outcome
"""

from .naming import FileWork, plan_files
from .running import Outcome, enhance_files, run_files
from .settings import FORMATS, PRECISIONS, SIDES_BY_SIDE, Existing, FileSettings

__all__ = [
    "FORMATS",
    "PRECISIONS",
    "SIDES_BY_SIDE",
    "Existing",
    "FileSettings",
    "FileWork",
    "Outcome",
    "enhance_files",
    "plan_files",
    "run_files",
]
