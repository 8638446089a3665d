"""Sphinx configuration. Build with `sphinx-build -W -b html docs docs/_build/html`."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "src"), str(HERE.parent / "benchmarks")]

project = "lowpeft"
author = "The lowpeft authors"
copyright = f"2026 {author}"  # noqa: A001 - Sphinx gives it this name
release = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

extensions = ["myst_parser", "tables"]
exclude_patterns = ["_build"]
highlight_language = "none"  # indented blocks are formulas and trees; code names its language

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"lowpeft {release}"
html_copy_source = False
