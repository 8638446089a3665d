"""The examples run as they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SHORTER = {"stereo_from_single_image.py": ["--steps", "2"]}


TRAINS = pytest.mark.slow  # the demo's network on the demo's scenes, as other tests do

PATHS = [
    pytest.param(path, id=path.name, marks=[TRAINS] if path.name in SHORTER else [])
    for path in sorted(EXAMPLES.glob("*.py"))
]


@pytest.mark.parametrize("path", PATHS)
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", str(path), *SHORTER.get(path.name, [])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout
