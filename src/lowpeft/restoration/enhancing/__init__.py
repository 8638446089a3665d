"""Enhancing files: from images, folders and patterns to the files of the results.

plan_files(inputs, out) -> FileWork (what is read and written, nothing touched yet) -> run_files -> Enhanced
"""

from .naming import FileWork, plan_files
from .running import Enhanced, enhance_files, run_files
from .settings import FORMATS, PRECISIONS, SIDES_BY_SIDE, Existing, FileSettings

__all__ = [
    "FORMATS",
    "PRECISIONS",
    "SIDES_BY_SIDE",
    "Enhanced",
    "Existing",
    "FileSettings",
    "FileWork",
    "enhance_files",
    "plan_files",
    "run_files",
]
